//! Names of the nft tables and of their elements for addresses, and who is masqueraded.
//!
//! Invariant: a packet is masqueraded because it carries the mark or because a Pod reaches itself (no host returns its own address), whichever
//! data path chose the endpoint. Of an endpoint here the set `hairpin` has its address twice. Of others that come through this node to a
//! ClusterIP, whose own node has no proxy, the packet puts its destination twice into the set `itself`, in which its source and destination
//! are looked up then: no rule compares two fields of a packet, and an element for each endpoint of the cluster is not needed. The mark is the one kube-proxy uses, other programs know
//! to leave it alone, and it is cleared behind the masquerade: a packet that goes into a tunnel takes its mark along, and the tunnel's
//! own packet must not be masqueraded.

use std::net::IpAddr;
use std::sync::Arc;

use netstate::IpFamily;
use netstate::mark::MASQUERADE;
use netstate::nft::{
    Chain, ChainKind, Datum, Element, ElementKey, Field, Hook, Match, Name, Op, Policy, Row, RowKey, Rule, Statement,
    TableKey, Verdict, priority,
};

/// The set of Pods that may reach themselves.
pub(super) const HAIRPIN: &str = "hairpin";

/// The set of endpoints that packets to virtual addresses were led to lately, each address twice.
pub(super) const ITSELF: &str = "itself";

/// For how long: behind the packet that put an endpoint in nobody needs it.
const LATELY: u32 = 60;

/// The set of virtual addresses.
pub(super) const VIPS: &str = "vips";

/// The set of external addresses and those of load balancers that the node has not itself.
pub(super) const EXTERNAL: &str = "external";

/// The table of a family.
#[must_use]
pub(crate) fn table_key(family: IpFamily) -> TableKey {
    TableKey { family: family.into(), name: Name::literal("ipvs-proxy") }
}

/// The key of an element.
pub(super) fn element(family: IpFamily, set: &'static str, key: impl Into<Arc<[Datum]>>) -> RowKey {
    RowKey::Element(ElementKey { table: table_key(family), set: Name::literal(set), key: key.into() })
}

/// The element of an address that may reach itself.
#[must_use]
pub(crate) fn hairpin(addr: IpAddr) -> (RowKey, Row) {
    (element(IpFamily::of(addr), HAIRPIN, [addr.into(), addr.into()]), Row::Element(Element::member()))
}

/// The element of a virtual address.
#[must_use]
pub(crate) fn vip(addr: IpAddr) -> (RowKey, Row) {
    (element(IpFamily::of(addr), VIPS, [addr.into()]), Row::Element(Element::member()))
}

/// The element of an external address.
#[must_use]
pub(crate) fn external(addr: IpAddr) -> (RowKey, Row) {
    (element(IpFamily::of(addr), EXTERNAL, [addr.into()]), Row::Element(Element::member()))
}

/// The chain that masquerades.
pub(super) fn masquerade(family: IpFamily) -> Chain {
    let from_to = |set| Match::Lookup(Op::Is, vec![Field::Saddr(family), Field::Daddr(family)], Name::literal(set));
    let masquerade = |packet| Rule::new().when(packet).then(Statement::Masquerade { fully_random: true });
    let led = Rule::new().when(Match::Lookup(Op::Is, vec![Field::CtOriginalDaddr(family)], Name::literal(VIPS)));
    let to_twice = vec![Field::Daddr(family), Field::Daddr(family)];
    let noted = led.then(Statement::Update { fields: to_twice, set: Name::literal(ITSELF), seconds: LATELY });
    let rules = vec![masquerade(from_to(HAIRPIN)), masquerade(MASQUERADE.is_set()), noted, masquerade(from_to(ITSELF))];
    Chain { rules, ..Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept) }
}

/// The chain behind it that clears the mark.
pub(super) fn unmark() -> Chain {
    let rule = Rule::new().when(MASQUERADE.is_set()).then(MASQUERADE.clear()).then(Verdict::Accept);
    let chain = Chain::base(ChainKind::Filter, Hook::Postrouting, priority::SRCNAT + 10, Policy::Accept);
    Chain { rules: vec![rule], ..chain }
}
