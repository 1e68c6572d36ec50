//! Masquerade and forward rules: the nft table `netd`.
//!
//! The meaning is that of flannel's iptables rules; its nft rules differ from them by mistake (the mark is compared
//! without a mask, and one rule makes the last unreachable). In the order of the rules:
//!
//! 1. What the service proxy marked is masqueraded by the service proxy; two translations would race for ports.
//! 2. Pod to Pod keeps its source, on every node it passes.
//! 3. What comes in to a Pod of this node keeps its source: the answer comes back through here anyway.
//! 4. A Pod that talks to the outside is seen as this node, except in multicast groups.
//! 5. What is not a Pod and talks to a Pod of another node is seen as this node, so that the answer comes back here.
//!
//! Invariant: the rules depend on the Pod network and this node's subnet only, never on the leases.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netstate::Prefix;
use netstate::mark::MASQUERADE;
use netstate::nft::{
    Chain, ChainKind, Family, Hook, Match, Name, Op, Policy, Row, RowKey, Rule, Ruleset, Statement, TableKey, Verdict,
    priority,
};

/// The table that holds the rules of a host's only network.
pub(crate) const TABLE: TableKey = TableKey { family: Family::Ip, name: Name::literal("netd") };

/// Which rules are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Masquerade {
    /// The table that holds them.
    pub table: TableKey,
    /// Masquerade what leaves the Pod network (`--ip-masq`).
    pub masquerade: bool,
    /// Choose source ports at random (not `--ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// Accept forwarded packets of the Pod network (`--iptables-forward-rules`).
    pub forward: bool,
}

pub(super) fn rows(wanted: &Masquerade, pods: Prefix, own: Prefix) -> BTreeMap<RowKey, Row> {
    let mut ruleset = Ruleset::new(wanted.table.clone());
    let chains = &mut ruleset.table.chains;
    if wanted.masquerade {
        chains.insert(Name::literal("postrouting"), postrouting(wanted.fully_random, pods, own));
    }
    if wanted.forward {
        chains.insert(Name::literal("forward"), forward(pods));
    }
    if chains.is_empty() { BTreeMap::new() } else { ruleset.into_rows().collect() }
}

fn postrouting(fully_random: bool, pods: Prefix, own: Prefix) -> Chain {
    let masquerade = || Statement::Masquerade { fully_random };
    let mut chain = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    chain.rules = vec![
        Rule::new().when(MASQUERADE.is_set()).then(Verdict::Return),
        Rule::new().when(Match::Saddr(Op::Is, pods)).when(Match::Daddr(Op::Is, pods)).then(Verdict::Return),
        Rule::new().when(Match::Daddr(Op::Is, own)).then(Verdict::Return),
    ];
    let mut to_outside = Rule::new().when(Match::Saddr(Op::Is, pods));
    if let Ok(multicast) = Prefix::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4) {
        to_outside = to_outside.when(Match::Daddr(Op::IsNot, multicast));
    }
    chain.rules.push(to_outside.then(masquerade()));
    let to_remote_pods = Rule::new().when(Match::Saddr(Op::IsNot, pods)).when(Match::Daddr(Op::Is, pods));
    chain.rules.push(to_remote_pods.then(masquerade()));
    chain
}

fn forward(pods: Prefix) -> Chain {
    let mut chain = Chain::base(ChainKind::Filter, Hook::Forward, priority::FILTER, Policy::Accept);
    chain.rules = vec![
        Rule::new().when(Match::Saddr(Op::Is, pods)).then(Verdict::Accept),
        Rule::new().when(Match::Daddr(Op::Is, pods)).then(Verdict::Accept),
    ];
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(wanted: Masquerade) -> Option<String> {
        let rows = rows(&wanted, "172.7.0.0/16".parse().unwrap(), "172.7.21.0/24".parse().unwrap());
        let mut ruleset = Ruleset::new(TABLE);
        match rows.into_values().next()? {
            Row::Table(table) => ruleset.table = table,
            Row::Element(element) => panic!("{element:?}"),
        }
        Some(ruleset.render())
    }

    #[test]
    fn rules_read_as_an_operator_expects_them() {
        let all = Masquerade { table: TABLE, masquerade: true, fully_random: true, forward: true };
        let expected = "\
table ip netd {
\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\tip saddr 172.7.0.0/16 accept
\t\tip daddr 172.7.0.0/16 accept
\t}

\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark & 0x00004000 == 0x00004000 return
\t\tip saddr 172.7.0.0/16 ip daddr 172.7.0.0/16 return
\t\tip daddr 172.7.21.0/24 return
\t\tip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
\t\tip saddr != 172.7.0.0/16 ip daddr 172.7.0.0/16 masquerade fully-random
\t}
}
";
        assert_eq!(text(all).unwrap(), expected);
    }

    #[test]
    fn what_is_switched_off_is_not_there() {
        let none = Masquerade { table: TABLE, masquerade: false, fully_random: true, forward: false };
        assert_eq!(text(none), None);
        let plain = text(Masquerade { table: TABLE, masquerade: true, fully_random: false, forward: false }).unwrap();
        assert!(!plain.contains("fully-random") && !plain.contains("forward"), "{plain}");
        assert!(
            !text(Masquerade { table: TABLE, masquerade: false, fully_random: true, forward: true })
                .unwrap()
                .contains("nat")
        );
    }
}
