//! The static part of the tables `ip ipvs-proxy` and `ip6 ipvs-proxy` of the nftables data path: chains that are hung into the
//! path of packets, and the maps and sets that Services fill.
//!
//! | packets | go through |
//! |---|---|
//! | the first one of a connection, from elsewhere or from this node | the maps `services` and `node-ports` to a chain that chooses an endpoint |
//! | one that no endpoint was chosen for | a filter: refused where nobody serves |
//! | the first one of a connection, on its way out | masqueraded where it is marked, or when a Pod reaches itself |
//!
//! The mark is the one kube-proxy uses and is cleared behind the masquerade: a packet that goes into a tunnel takes its mark
//! along, and the tunnel's own packet must not be masqueraded.

use netstate::nft::{
    Chain, ChainKind, CtState, Field, Hook, Match, Name, Op, Policy, Reject, Row, RowKey, Rule, Set, Statement, Table,
    Type, Verdict, priority,
};
use netstate::{IpFamily, Prefix};

use super::super::nft::{self, HAIRPIN, VIPS, table_key};
use super::{ENDPOINTS, NODE_ENDPOINTS, NODE_PORTS, REFUSED, REFUSED_NODE_PORTS, SERVICES};

/// The table of a family.
#[must_use]
pub(crate) fn table(family: IpFamily) -> (RowKey, Row) {
    let mut table = Table::default();
    table.sets.extend(sets(family).map(|(name, set)| (Name::literal(name), set)));
    let filter = |hook| base(ChainKind::Filter, hook, priority::FILTER, refuse(family));
    let nat = |hook| base(ChainKind::Nat, hook, priority::DSTNAT, vec![Rule::new().then(jump("services"))]);
    let chains = [
        ("prerouting", nat(Hook::Prerouting)),
        ("output", nat(Hook::Output)),
        ("services", Chain::regular(services(family))),
        ("refuse-input", filter(Hook::Input)),
        ("refuse-forward", filter(Hook::Forward)),
        ("refuse-output", filter(Hook::Output)),
        ("postrouting", nft::masquerade(family)),
        ("unmark", nft::unmark()),
    ];
    table.chains.extend(chains.map(|(name, chain)| (Name::literal(name), chain)));
    (RowKey::Table(table_key(family)), Row::Table(table))
}

fn sets(family: IpFamily) -> [(&'static str, Set); 8] {
    let addr = match family {
        IpFamily::V4 => Type::Ipv4Addr,
        IpFamily::V6 => Type::Ipv6Addr,
    };
    let port = vec![Type::InetProto, Type::InetService];
    let behind = |first: Type| [vec![first], port.clone()].concat();
    let indexed = |key: Vec<Type>| [key, vec![Type::Index]].concat();
    let endpoint = vec![addr, Type::InetService];
    [
        (SERVICES, Set::verdict_map(behind(addr))),
        (ENDPOINTS, Set::map(indexed(behind(addr)), endpoint.clone())),
        (NODE_PORTS, Set::verdict_map(port.clone())),
        (NODE_ENDPOINTS, Set::map(indexed(port.clone()), endpoint)),
        (REFUSED, Set::of(behind(addr))),
        (REFUSED_NODE_PORTS, Set::of(port.clone())),
        (VIPS, Set::of(vec![addr])),
        (HAIRPIN, Set::of(vec![addr, addr])),
    ]
}

fn base(kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { rules, ..Chain::base(kind, hook, priority, Policy::Accept) }
}

const fn jump(chain: &'static str) -> Verdict {
    Verdict::Jump(Name::literal(chain))
}

fn is_in(fields: Vec<Field>, set: &'static str) -> Match {
    Match::Lookup(Op::Is, fields, Name::literal(set))
}

fn at_address(family: IpFamily) -> Vec<Field> {
    vec![Field::Daddr(family), Field::L4Proto, Field::Dport]
}

/// A packet to an address of this node, other than loopback: connections to that cannot leave the node.
fn to_this_node(family: IpFamily) -> Rule {
    let to = Rule::new().when(Match::DaddrLocal(Op::Is));
    match loopback(family) {
        Some(loopback) => to.when(Match::Daddr(Op::IsNot, loopback)),
        None => to,
    }
}

fn loopback(family: IpFamily) -> Option<Prefix> {
    match family {
        IpFamily::V4 => Prefix::new([127, 0, 0, 0].into(), 8).ok(),
        IpFamily::V6 => Prefix::new(std::net::Ipv6Addr::LOCALHOST.into(), 128).ok(),
    }
}

const NODE_PORT: [Field; 2] = [Field::L4Proto, Field::Dport];

fn services(family: IpFamily) -> Vec<Rule> {
    vec![
        Rule::new().then(Statement::Vmap(at_address(family), Name::literal(SERVICES))),
        to_this_node(family).then(Statement::Vmap(NODE_PORT.to_vec(), Name::literal(NODE_PORTS))),
    ]
}

/// What no endpoint was chosen for still has its first destination.
fn refuse(family: IpFamily) -> Vec<Rule> {
    let new = || Rule::new().when(Match::CtState(CtState::NEW));
    let to_this_node = Rule { statements: [new().statements, to_this_node(family).statements].concat(), comment: None };
    vec![
        new().when(is_in(at_address(family), REFUSED)).then(Reject::PortUnreachable),
        new().when(is_in(vec![Field::Daddr(family)], VIPS)).then(Reject::PortUnreachable),
        to_this_node.when(is_in(NODE_PORT.to_vec(), REFUSED_NODE_PORTS)).then(Reject::PortUnreachable),
    ]
}
