//! `Guards`: packets that are dropped for the good of others, whatever Services there are.
//!
//! | packet | why |
//! |---|---|
//! | one that is forwarded and belongs to no tracked connection (INVALID), and that IPVS has not translated | an endpoint's answer outside the window keeps its own address: the client, which knows nobody there, resets the connection (kubernetes#74839) |
//! | one to 127.0.0.0/8 from another machine | with `route_localnet`, as the mode iptables and plugins for host ports set it, it reaches what listens on loopback only (CVE-2020-8558) |
//! | one to an external address of a Service that came by the uplink and would leave by it again | nobody serves the port here, and a router that sends the address here would have it go round until its time to live ends |
//!
//! Invariant: nothing that a Service answers, and nothing that this node sends or takes by itself, is dropped here.

use netstate::nft::{CtState, CtStatus, Field, Match, Name, Op, Rule, Verdict};
use netstate::{IfName, IpFamily};

use super::super::nft::EXTERNAL;

/// The link of what this node sends to itself.
const LOOPBACK: IfName = IfName::literal("lo");

/// Which of them are wanted, beside the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guards {
    /// Forwarded packets of no connection are dropped: unless connection tracking is liberal about windows (`conntrack.tcpBeLiberal`),
    /// which is for networks whose answers take other ways than requests.
    pub(crate) invalid: bool,
    /// Packets from elsewhere to loopback are (`iptables.localhostNodePorts`).
    pub(crate) loopback: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self { invalid: true, loopback: true }
    }
}

/// The rule for what is forwarded, behind IPVS: what that has translated comes from an address of this node.
pub(super) fn invalid() -> Rule {
    let of_none = Rule::new().when(Match::CtState(CtState::INVALID)).when(Match::SaddrLocal(Op::IsNot));
    of_none.then(Verdict::Drop)
}

/// The rules for what comes in. IPv6 has no such parameter, and drops packets to `::1` from elsewhere.
pub(super) fn loopback(family: IpFamily) -> Vec<Rule> {
    if !family.is_v4() {
        return Vec::new();
    }
    let from_elsewhere =
        || Rule::new().when(Match::Daddr(Op::Is, family.loopback())).when(Match::Iifname(Op::IsNot, LOOPBACK));
    let led_here = from_elsewhere().when(Match::CtStatus(CtStatus::DNAT));
    let others = from_elsewhere().when(Match::CtState(CtState::NEW | CtState::INVALID));
    vec![led_here.then(Verdict::Accept), others.then(Verdict::Drop)]
}

/// The rule for what is forwarded where the default route leaves by `uplink`.
pub(super) fn round(family: IpFamily, uplink: &IfName) -> Rule {
    let at_external = Match::Lookup(Op::Is, vec![Field::Daddr(family)], Name::literal(EXTERNAL));
    let back = Rule::new()
        .when(Match::CtState(CtState::NEW | CtState::INVALID))
        .when(Match::Iifname(Op::Is, uplink.clone()))
        .when(Match::Oifname(Op::Is, uplink.clone()));
    back.when(at_external).then(Verdict::Drop)
}
