//! Masquerade rules: the nft tables `ip netd` and `ip6 netd`.
//!
//! Each family has a table of its own with the same rules. The meaning is that of flannel's iptables rules; its nft rules differ from them by mistake (the mark is compared
//! without a mask, and one rule makes the last unreachable). In the order of the rules:
//!
//! 1. What the service proxy marked is masqueraded by the service proxy; two translations would race for ports.
//! 2. Pod to Pod keeps its source, on every node it passes.
//! 3. What comes in to a Pod of this node keeps its source: the answer comes back through here anyway.
//! 4. A Pod that talks to the outside is seen as this node, except in multicast groups and in the networks of
//!    `NonMasqueradeCIDRs`.
//! 5. What is not a Pod and talks to a Pod of another node is seen as this node, so that the answer comes back here.
//!
//! A family that the network's configuration does not masquerade keeps the chain with one rule that does nothing to a packet: the kernel goes on
//! translating what is open only while there is such a chain and a rule that asks for connections. Without `--ip-masq` there is neither, and
//! this program has no connection tracked.
//!
//! There is no chain of the forward hook here, though flannel has one: what it accepts is judged by every other chain of the hook all the
//! same, so it lets nothing pass and costs each packet. The accepts stand in the foreign chains that deny (`run::forward`).
//!
//! Invariant: the rules depend on the Pod network and this node's subnet only, never on the leases.

use std::collections::{BTreeMap, BTreeSet};

use netstate::mark::MASQUERADE;
use netstate::nft::{
    Chain, ChainKind, CtStatus, Hook, Match, Name, Op, Policy, Row, RowKey, Rule, Ruleset, Statement, TableKey,
    Verdict, priority,
};
use netstate::{IpFamily, Prefix};

use super::{Place, untracked};
use crate::format::net_conf::{Egress, Network};

/// Name of the tables that hold the rules of a host's only network, one of each family.
pub(crate) const TABLE: Name = Name::literal("netd");

/// Which rules are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Masquerade {
    /// Name of the tables that hold them.
    pub table: Name,
    /// Masquerade what leaves the Pod network (`--ip-masq`).
    pub masquerade: bool,
    /// Choose source ports at random (not `--ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// Accept forwarded packets of the Pod network in foreign chains that deny (`--iptables-forward-rules`).
    pub forward: bool,
    /// Drop what is sent to addresses of the own subnet that no Pod has (`--ip-blackhole-route`).
    pub blackhole: bool,
    /// Keep the tunnel's own packets out of the tracking of connections (`--untracked-tunnel`).
    pub untracked: bool,
}

#[cfg(test)]
impl Masquerade {
    /// What `--ip-masq` alone asks for.
    pub(crate) const MASQ: Self =
        Self { table: TABLE, masquerade: true, fully_random: true, forward: true, blackhole: false, untracked: false };
}

/// The rules for the family of this node's place; `ports` are the tunnels'.
pub(super) fn rows(
    wanted: &Masquerade,
    network: &Network,
    place: &Place,
    ports: &BTreeSet<u16>,
) -> BTreeMap<RowKey, Row> {
    let own = place.subnet;
    let family = own.family();
    let Some(pods) = network.pool(&own).map(|pool| pool.network) else { return BTreeMap::new() };
    let mut ruleset = Ruleset::new(TableKey { family: family.into(), name: wanted.table.clone() });
    let chains = &mut ruleset.table.chains;
    if wanted.masquerade {
        let rules = match *network.egress.masquerade.get(family) {
            true => masquerading(wanted.fully_random, &network.egress, pods, own),
            false => vec![Rule::new().when(Match::CtStatus(CtStatus::SNAT)).then(Verdict::Return)],
        };
        let chain = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
        chains.insert(Name::literal("postrouting"), Chain { rules, ..chain });
    }
    if wanted.untracked && !ports.is_empty() {
        chains.insert(Name::literal("leaving"), untracked::leaving(place, ports));
    }
    if chains.is_empty() { BTreeMap::new() } else { ruleset.into_rows().collect() }
}

fn masquerading(fully_random: bool, egress: &Egress, pods: Prefix, own: Prefix) -> Vec<Rule> {
    let masquerade = || Statement::Masquerade { fully_random };
    let from_pods = || Rule::new().when(Match::Saddr(Op::Is, pods));
    let family: IpFamily = pods.family();
    let mut rules = vec![
        Rule::new().when(MASQUERADE.is_set()).then(Verdict::Return),
        from_pods().when(Match::Daddr(Op::Is, pods)).then(Verdict::Return),
        Rule::new().when(Match::Daddr(Op::Is, own)).then(Verdict::Return),
    ];
    let exempt = egress.exempt.get(family);
    rules.extend(exempt.iter().map(|to| from_pods().when(Match::Daddr(Op::Is, *to)).then(Verdict::Return)));
    rules.push(from_pods().when(Match::Daddr(Op::IsNot, family.multicast())).then(masquerade()));
    let to_remote_pods = Rule::new().when(Match::Saddr(Op::IsNot, pods)).when(Match::Daddr(Op::Is, pods));
    rules.push(to_remote_pods.then(masquerade()));
    rules
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::choose::interface::NodeAddress;
    use crate::format::net_conf::NetConf;

    fn text(wanted: Masquerade) -> Option<String> {
        text_in(&wanted, r#"{"Network":"172.7.0.0/16"}"#, "172.7.21.0/24")
    }

    fn text_in(wanted: &Masquerade, conf: &str, own: &str) -> Option<String> {
        let network = NetConf::parse(conf).unwrap().network;
        let own: Prefix = own.parse().unwrap();
        let address: IpAddr =
            if own.addr().is_ipv4() { [10, 4, 7, 21].into() } else { "fd00:10:4:7::21".parse().unwrap() };
        let node = NodeAddress { address, network: Prefix::host(address), public_ip: address };
        let place = Place { subnet: own, ..Place::new(&node, "02:00:00:00:00:21".parse().unwrap()) };
        let rows = rows(wanted, &network, &place, &BTreeSet::from([8472]));
        let mut ruleset = Ruleset::new(TableKey { family: own.family().into(), name: TABLE });
        match rows.into_values().next()? {
            Row::Table(table) => ruleset.table = *table,
            other => panic!("{other:?}"),
        }
        Some(ruleset.render())
    }

    #[test]
    fn rules_read_as_an_operator_expects_them() {
        let expected = "\
table ip netd {
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
        assert_eq!(text(Masquerade::MASQ).unwrap(), expected);
    }

    #[test]
    fn what_is_switched_off_is_not_there() {
        let none = Masquerade { masquerade: false, ..Masquerade::MASQ };
        assert_eq!(text(none), None);
        let plain = text(Masquerade { fully_random: false, ..Masquerade::MASQ }).unwrap();
        assert!(!plain.contains("fully-random") && !plain.contains("hook forward"), "{plain}");
    }

    #[test]
    fn tunnels_packets_that_leave_are_kept_out_of_the_tracking() {
        let only = Masquerade { masquerade: false, untracked: true, ..Masquerade::MASQ };
        let expected = "\
table ip netd {
\tchain leaving {
\t\ttype filter hook output priority raw; policy accept;
\t\tip saddr 10.4.7.21 udp dport 8472 notrack
\t}
}
";
        assert_eq!(text(only).unwrap(), expected);
        assert!(!text(Masquerade::MASQ).unwrap().contains("notrack"), "by default everything is tracked");
    }

    #[test]
    fn ipv6_has_the_same_rules_in_a_table_of_its_own() {
        let conf = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48"}"#;
        let expected = "\
table ip6 netd {
\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark & 0x00004000 == 0x00004000 return
\t\tip6 saddr fd00:7::/48 ip6 daddr fd00:7::/48 return
\t\tip6 daddr fd00:7:0:21::/64 return
\t\tip6 saddr fd00:7::/48 ip6 daddr != ff00::/8 masquerade fully-random
\t\tip6 saddr != fd00:7::/48 ip6 daddr fd00:7::/48 masquerade fully-random
\t}
}
";
        assert_eq!(text_in(&Masquerade::MASQ, conf, "fd00:7:0:21::/64").unwrap(), expected);
    }

    #[test]
    fn pods_keep_their_address_towards_exempt_networks_and_in_families_that_are_off() {
        let conf = r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48",
            "NonMasqueradeCIDRs":["10.0.0.0/8","fd00:10::/32"],"MasqueradeIPv6":false}"#;
        let v4 = text_in(&Masquerade::MASQ, conf, "172.7.21.0/24").unwrap();
        let rules: Vec<&str> =
            v4.lines().map(str::trim).filter(|line| line.starts_with("ip saddr 172.7.0.0/16 ip daddr")).collect();
        assert_eq!(
            rules,
            [
                "ip saddr 172.7.0.0/16 ip daddr 172.7.0.0/16 return",
                "ip saddr 172.7.0.0/16 ip daddr 10.0.0.0/8 return",
                "ip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            ]
        );
        let v6 = text_in(&Masquerade::MASQ, conf, "fd00:7:0:21::/64").unwrap();
        let chain = v6.split_once("chain postrouting").unwrap().1;
        assert!(!chain.contains("masquerade"), "{v6}");
        assert!(chain.contains("\t\tct status snat return\n\t}"), "{v6}");
    }
}
