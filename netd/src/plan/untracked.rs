//! The tunnel's own packets out of the tracking of connections (`--untracked-tunnel`): as they arrive the nft table `netdev netd`, as they leave
//! a chain of `ip netd` and `ip6 netd`.
//!
//! A tunnel's packet from node to node is no connection that anybody translates or answers: only what is inside of it is one. At the ingress
//! of the interface towards the other nodes it is decided before the packet enters the hooks of IP, where rules cost about what they spare.
//!
//! Fragments stay tracked: the kernel puts a packet together before it tracks it, and then needs all of its parts.
//!
//! Invariant: only what goes from or to this node's own address and to a tunnel's port is left untracked. The table names a link that may be
//! gone, and a kernel may lack its family; so it is a row apart from the other rules.

use std::collections::{BTreeMap, BTreeSet};

use netstate::nft::{
    Chain, ChainKind, Family, Hook, Match, Name, Op, Policy, Row, RowKey, Rule, Ruleset, Statement, TableKey, priority,
};
use netstate::{IfName, IpFamily, Prefix, Protocol};

use super::backend::Backend;
use super::{Place, Planner};

impl Planner {
    /// The table for what arrives, where the tunnel has a port.
    pub(super) fn arriving(&self) -> BTreeMap<RowKey, Row> {
        let ports: BTreeSet<u16> = self.backends().flat_map(Backend::tunnel_ports).collect();
        if !self.masquerade.untracked || ports.is_empty() {
            return BTreeMap::new();
        }
        let places = self.local.places.present().map(|(family, place)| (family, *place));
        let rules = places.flat_map(|(family, place)| arriving(family, &place, &ports));
        rows(&self.masquerade.table, &self.local.interface, rules.collect())
    }
}

fn rows(table: &Name, interface: &IfName, rules: Vec<Rule>) -> BTreeMap<RowKey, Row> {
    let mut ruleset = Ruleset::new(TableKey { family: Family::Netdev, name: table.clone() });
    let chain = Chain::ingress(interface.clone(), priority::FILTER, Policy::Accept);
    ruleset.table.chains.insert(Name::literal("arriving"), Chain { rules, ..chain });
    ruleset.into_rows().collect()
}

fn arriving(family: IpFamily, place: &Place, ports: &BTreeSet<u16>) -> Vec<Rule> {
    let own = Rule::new().when(Match::Daddr(Op::Is, Prefix::host(place.address))).when(Match::Whole(family));
    ports.iter().map(|port| untracked(own.clone(), *port)).collect()
}

/// The chain for what leaves, which is not in fragments yet.
pub(super) fn leaving(place: &Place, ports: &BTreeSet<u16>) -> Chain {
    let own = Rule::new().when(Match::Saddr(Op::Is, Prefix::host(place.address)));
    let chain = Chain::base(ChainKind::Filter, Hook::Output, priority::RAW, Policy::Accept);
    Chain { rules: ports.iter().map(|port| untracked(own.clone(), *port)).collect(), ..chain }
}

fn untracked(rule: Rule, port: u16) -> Rule {
    rule.when(Match::Dport(Op::Is, Protocol::Udp, port)).then(Statement::Notrack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_an_operator_expects_them() {
        let place = |address: &str| {
            let address = address.parse().unwrap();
            let subnet = Prefix::host(address);
            let mac = "02:00:00:00:00:21".parse().unwrap();
            Place { subnet, public_ip: "192.0.2.1".parse().unwrap(), address, node_network: subnet, mac }
        };
        let ports = BTreeSet::from([8472, 51820]);
        let mut rules = arriving(IpFamily::V4, &place("10.4.7.21"), &ports);
        rules.extend(arriving(IpFamily::V6, &place("fd00:10:4:7::21"), &BTreeSet::from([8472])));
        let (key, row) = rows(&Name::literal("netd"), &IfName::literal("eth0"), rules).pop_first().unwrap();
        let (RowKey::Table(key), Row::Table(table)) = (key, row) else { panic!("no table") };
        let text = Ruleset { table: *table, ..Ruleset::new(key) }.render();
        let expected = "\
table netdev netd {
\tchain arriving {
\t\ttype filter hook ingress device \"eth0\" priority filter; policy accept;
\t\tip daddr 10.4.7.21 ip frag-off & 16383 == 0 udp dport 8472 notrack
\t\tip daddr 10.4.7.21 ip frag-off & 16383 == 0 udp dport 51820 notrack
\t\tip6 daddr fd00:10:4:7::21 exthdr frag missing udp dport 8472 notrack
\t}
}
";
        assert_eq!(text, expected);
    }
}
