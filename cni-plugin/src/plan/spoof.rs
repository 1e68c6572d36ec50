//! `macspoofchk`: a Pod sends from its own hardware address only.
//!
//! One table per network, `bridge netd-spoof-<network>`, with one static rule. What comes in by a guarded port with a
//! sender that is not allowed there is dropped before the bridge learns anything from it. A Pod is two elements, in two
//! sets; no chain is made for it, as the reference does.
//!
//! Invariants: a port is guarded before it exists, so not one frame passes it unseen; every element's comment begins
//! with the name of its owner's host end, see [`Tag`].

use netstate::MacAddr;
use netstate::nft::{
    Chain, ChainKind, Datum, Element, Family, Field, Hook, Match, Name, Op, Policy, Rule, Ruleset, Set, TableKey, Type,
    Verdict,
};

use super::tag::Tag;

/// Names of the ports whose senders are examined.
const GUARDED: Name = Name::literal("guarded");
/// Each of them with the hardware address that may be its sender.
const ALLOWED: Name = Name::literal("allowed");

/// Where bridges translate destinations (NF_BR_PRI_NAT_DST_BRIDGED, include/uapi/linux/netfilter_bridge.h): first of
/// all, as in the reference.
const PRIORITY: i32 = -300;

/// The table of `network`; `None` for a name that nftables cannot hold.
#[must_use]
pub(crate) fn table_key(network: &str) -> Option<TableKey> {
    let name = Name::new(format!("netd-spoof-{network}")).ok()?;
    Some(TableKey { family: Family::Bridge, name })
}

/// The table of the attachment's network with the attachment's elements; its Pod has the hardware address `mac`. `None` for a name
/// that nftables cannot hold.
#[must_use]
pub(crate) fn ruleset(tag: &Tag, mac: MacAddr) -> Option<Ruleset> {
    let mut ruleset = Ruleset::new(table_key(&tag.network)?);
    ruleset.table.sets.insert(GUARDED, Set::of(vec![Type::IfName]));
    ruleset.table.sets.insert(ALLOWED, Set::of(vec![Type::IfName, Type::EtherAddr]));
    let mut chain = Chain::base(ChainKind::Filter, Hook::Prerouting, PRIORITY, Policy::Accept);
    let guarded = Match::Lookup(Op::Is, vec![Field::Iifname], GUARDED);
    let foreign = Match::Lookup(Op::IsNot, vec![Field::Iifname, Field::EtherSaddr], ALLOWED);
    chain.rules.push(Rule::new().when(guarded).when(foreign).then(Verdict::Drop));
    ruleset.table.chains.insert(Name::literal("prerouting"), chain);
    let member = || Element::member().comment(tag.comment());
    let port = Datum::IfName(tag.attachment.host_link().clone());
    ruleset.insert(GUARDED, vec![port.clone()], member());
    ruleset.insert(ALLOWED, vec![port, Datum::Mac(mac)], member());
    Some(ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::attachment::{Attachment, ContainerId};

    fn tag(id: &str) -> Tag {
        let attachment = Attachment::new(ContainerId::new(id).unwrap(), "eth0".parse().unwrap());
        Tag { attachment, network: "cbr0".to_owned(), has_own_link: true }
    }

    #[test]
    fn golden() {
        let ruleset = ruleset(&tag("web-1"), MacAddr([0x0a, 0x58, 172, 7, 21, 2])).unwrap();
        assert_eq!(
            ruleset.render(),
            "table bridge netd-spoof-cbr0 {
\tset allowed {
\t\ttype ifname . ether_addr
\t\telements = { \"vethgn5ac9sfczt\" . 0a:58:ac:07:15:02 comment \"vethgn5ac9sfczt cbr0 web-1@eth0\" }
\t}

\tset guarded {
\t\ttype ifname
\t\telements = { \"vethgn5ac9sfczt\" comment \"vethgn5ac9sfczt cbr0 web-1@eth0\" }
\t}

\tchain prerouting {
\t\ttype filter hook prerouting priority dstnat; policy accept;
\t\tiifname @guarded iifname . ether saddr != @allowed drop
\t}
}
"
        );
        assert!(ruleset.elements.values().all(|element| tag("web-1").owns(element)));
        assert!(!ruleset.elements.values().any(|element| tag("web-2").owns(element)));
    }
}
