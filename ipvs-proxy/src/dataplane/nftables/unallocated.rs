//! `Unallocated`: addresses of the Service network at which no Service is, and what becomes of packets to them.
//!
//! Invariant: an address that this node or a network of its links really has is none of them, wherever the Service network lies, and
//! neither is one of the Pod network.
//!
//! As kube-proxy's mode nftables does (chain `cluster-ips-check`), a new connection is dropped: without the rule its packets leave by the
//! default route, and a router that sends the Service network here makes them go round.
//! What IPVS led is tracked no longer when its Service is gone: a packet from within such a connection is reset, so that it ends and its
//! client need not wait until it gives up.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::nft::{CtState, Field, Match, Name, Op, Reject, Rule, Verdict};
use netstate::{IpFamily, Prefix};

use crate::dataplane::Options;
use crate::dataplane::nft::VIPS;
use crate::plan::pods::Pods;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unallocated {
    services: Prefix,
    /// Networks inside it that are others'; none lies in another.
    others: Vec<Prefix>,
}

impl Unallocated {
    /// Of each Service network of the family: the one that is configured, or else those that the API server announces. None where no
    /// network is known, or where it is all others'.
    #[must_use]
    pub(crate) fn of(family: IpFamily, options: &Options) -> Vec<Self> {
        let configured = *options.services.get(family);
        let announced = options.announced.iter().filter(|network| network.family() == family && configured.is_none());
        let networks = configured.into_iter().chain(announced.copied());
        networks.filter_map(|services| Self::inside(services, options)).collect()
    }

    /// The same of any network of Services.
    #[must_use]
    pub(in crate::dataplane) fn inside(services: Prefix, options: &Options) -> Option<Self> {
        let known = others(services.family(), options);
        let found: BTreeSet<Prefix> = known.filter(|network| network.overlaps(&services)).copied().collect();
        if found.iter().any(|network| network.covers(&services)) {
            return None;
        }
        let is_in_another = |network: &Prefix| found.iter().any(|wider| wider != network && wider.covers(network));
        let others = found.iter().filter(|network| !is_in_another(network)).copied().collect();
        Some(Self { services, others })
    }

    /// The Service network without what is others', as networks.
    #[must_use]
    pub(in crate::dataplane) fn parts(&self) -> Vec<Prefix> {
        without(self.services, &self.others)
    }

    /// For packets that have no endpoint, in the filters of what is forwarded and of what this node sends; where the network is local, of
    /// what it takes.
    #[must_use]
    pub(super) fn rules(&self) -> [Rule; 2] {
        let left = self.to_nobody(CtState::NEW | CtState::INVALID).when(Match::TcpSyn(Op::IsNot));
        [left.then(Reject::TcpReset), self.to_nobody(CtState::NEW).then(Verdict::Drop)]
    }

    fn to_nobody(&self, states: CtState) -> Rule {
        let daddr = vec![Field::Daddr(self.services.family())];
        let inside = Rule::new().when(Match::CtState(states)).when(Match::Daddr(Op::Is, self.services));
        let elsewhere = |rule: Rule, network: &Prefix| rule.when(Match::Daddr(Op::IsNot, *network));
        let unless_others = self.others.iter().fold(inside, elsewhere);
        unless_others.when(Match::Lookup(Op::IsNot, daddr, Name::literal(VIPS)))
    }
}

/// Networks of the node's links and of the Pods.
fn others(family: IpFamily, options: &Options) -> impl Iterator<Item = &Prefix> {
    let pods = match options.pods.get(family) {
        Some(Pods::Inside(network)) => Some(network),
        Some(Pods::From(_) | Pods::FromAny(_) | Pods::Unknown) | None => None,
    };
    options.node.networks.iter().chain(pods)
}

/// True for an address that none of these has.
#[must_use]
pub(in crate::dataplane) fn is_free(addr: IpAddr, options: &Options) -> bool {
    !others(IpFamily::of(addr), options).any(|network| network.contains(addr))
}

/// `network` without `others`, which lie inside it.
fn without(network: Prefix, others: &[Prefix]) -> Vec<Prefix> {
    if others.iter().any(|other| other.covers(&network)) {
        return Vec::new();
    }
    if !others.iter().any(|other| network.covers(other)) {
        return vec![network];
    }
    let lower = Prefix::new(network.addr(), network.len().saturating_add(1)).ok();
    let halves = [lower, lower.and_then(|lower| lower.next())];
    halves.into_iter().flatten().flat_map(|half| without(half, others)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_others_are_cut_out() {
        let parts = |network: &str, others: &[&str]| {
            let others: Vec<Prefix> = others.iter().map(|text| text.parse().unwrap()).collect();
            without(network.parse().unwrap(), &others).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(parts("192.168.0.0/16", &[]), ["192.168.0.0/16"]);
        assert_eq!(parts("10.96.0.0/14", &["10.97.0.0/16"]), ["10.96.0.0/16", "10.98.0.0/15"]);
        assert_eq!(parts("10.96.0.0/30", &["10.96.0.1/32", "10.96.0.3/32"]), ["10.96.0.0/32", "10.96.0.2/32"]);
        assert_eq!(parts("255.255.255.252/30", &["255.255.255.252/31"]), ["255.255.255.254/31"]);
        assert_eq!(parts("fd00::/120", &["fd00::80/121"]), ["fd00::/121"]);
        assert!(parts("10.96.0.0/24", &["10.96.0.0/16"]).is_empty());
    }
}
