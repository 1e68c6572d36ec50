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
    /// `None` where the Service network is not known, or is all others'.
    #[must_use]
    pub(crate) fn of(family: IpFamily, options: &Options) -> Option<Self> {
        let services = (*options.services.get(family))?;
        let pods = match options.pods.get(family) {
            Some(Pods::Inside(network)) => Some(network),
            Some(Pods::From(_) | Pods::FromAny(_) | Pods::Unknown) | None => None,
        };
        let known = options.node.networks.iter().chain(pods);
        let found: BTreeSet<Prefix> = known.filter(|network| network.overlaps(&services)).copied().collect();
        if found.iter().any(|network| network.covers(&services)) {
            return None;
        }
        let is_in_another = |network: &Prefix| found.iter().any(|wider| wider != network && wider.covers(network));
        let others = found.iter().filter(|network| !is_in_another(network)).copied().collect();
        Some(Self { services, others })
    }

    /// For packets that have no endpoint, in the filters of what is forwarded and of what this node sends.
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
