//! The static part of the tables `ip ipvs-proxy` and `ip6 ipvs-proxy`, the same for both data paths: chains that are hung into the
//! path of packets, and the maps and sets that Services fill.
//!
//! | packets | go through |
//! |---|---|
//! | the first one of a connection, from elsewhere or from this node | the maps `services` and `node-ports` to a chain that chooses an endpoint, or marks for IPVS what is to be masqueraded: behind it a packet no longer carries the virtual address |
//! | one that no endpoint was chosen for | a filter: refused where nobody serves, dropped at an address that no Service has ([`super::unallocated`]), also where a route alone makes that local ([`local`]) |
//! | some others | dropped ([`super::guards`]) |
//! | the first one of a connection, on its way out | masqueraded where it is marked, or when a Pod reaches itself |
//!
//! What comes to a virtual address and finds no virtual server is refused behind IPVS, before a process of this host that listens on all
//! addresses can answer: a port that no Service has, or a server that somebody deleted. Answers to this host's own connections come to a
//! virtual address too, because the host used it as its source: only new connections are refused. An address that is not local yet goes
//! where it went without us: its virtual server is on the way, and the client tries again.
//!
//! The mark is the one kube-proxy uses and is cleared behind the masquerade: a packet that goes into a tunnel takes its mark
//! along, and the tunnel's own packet must not be masqueraded.
//!
//! The elements of `services` and `node-ports` count: each connection has them looked up once, with its first packet, whoever carries it
//! then. A number for each processor is added to; nothing else is done for it.
//!
//! The tables also hold the [`record`] of which virtual servers are ours, and [`since`] when real servers drain.

use netstate::nft::{
    Chain, ChainKind, CtState, Field, Hook, Match, Name, Op, Policy, Reject, Row, RowKey, Rule, Set, SetKey, Statement,
    Table, Type, Verdict, priority,
};
use netstate::{IpFamily, Protocol};

use super::super::nft::{self, EXTERNAL, HAIRPIN, ITSELF, VIPS, table_key};
use super::super::{Options, local, record, since};
use super::unallocated::Unallocated;
use super::{
    ENDPOINTS, NODE_ENDPOINTS, NODE_PORT_ADDRESSES, NODE_PORTS, REFUSED, REFUSED_NODE_PORTS, SERVICES, guards,
};

/// IPVS takes the packets of its virtual servers at priorities 98 and 99 of the input hook, and answers at 99 and 100 of the forward hook
/// (net/netfilter/ipvs/ip_vs_core.c).
const BEHIND_IPVS: i32 = 110;

/// The table of a family.
#[must_use]
pub(crate) fn table(family: IpFamily, options: &Options) -> (RowKey, Row) {
    let mut table = Table::default();
    let (unallocated, wanted) = (Unallocated::of(family, options), options.guards);
    let elsewhere = || refuse(family, &unallocated).into_iter();
    let round = options.node.uplinks.get(family).as_ref().map(|uplink| guards::round(family, uplink));
    let forwarded = elsewhere().chain(round).chain(wanted.invalid.then(guards::invalid)).collect();
    let loopback = if wanted.loopback { guards::loopback(family) } else { Vec::new() };
    let to_nobody = local::to_nobody(family, options);
    let to_nobody = to_nobody.iter().flat_map(Unallocated::rules);
    let arriving = loopback.into_iter().chain(refuse_behind_ipvs(family)).chain(to_nobody).collect();
    table.sets.extend(sets(family).map(|(name, set)| (Name::literal(name), set)));
    // Every packet meets these chains, and their rules are about first packets and those of no connection.
    let filter = |hook, priority, rules: Vec<Rule>| {
        base(ChainKind::Filter, hook, priority, std::iter::once(known()).chain(rules).collect())
    };
    let nat = |hook| base(ChainKind::Nat, hook, priority::DSTNAT, vec![Rule::new().then(jump("services"))]);
    let chains = [
        ("prerouting", nat(Hook::Prerouting)),
        ("output", nat(Hook::Output)),
        ("services", Chain::regular(services(family))),
        ("refuse-input", filter(Hook::Input, BEHIND_IPVS, arriving)),
        ("refuse-forward", filter(Hook::Forward, BEHIND_IPVS, forwarded)),
        ("refuse-output", filter(Hook::Output, priority::FILTER, elsewhere().collect())),
        ("postrouting", nft::masquerade(family)),
        ("unmark", nft::unmark()),
    ];
    table.chains.extend(chains.map(|(name, chain)| (Name::literal(name), chain)));
    (RowKey::Table(table_key(family)), table.into())
}

fn sets(family: IpFamily) -> [(&'static str, Set); 13] {
    let addr = match family {
        IpFamily::V4 => Type::Ipv4Addr,
        IpFamily::V6 => Type::Ipv6Addr,
    };
    let port = vec![Type::InetProto, Type::InetService];
    let behind = |first: Type| [vec![first], port.clone()].concat();
    let indexed = |key: Vec<Type>| [key, vec![Type::Index]].concat();
    let endpoint = vec![addr, Type::InetService];
    [
        (SERVICES, Set::verdict_map(behind(addr)).counting()),
        (ENDPOINTS, Set::map(indexed(behind(addr)), endpoint.clone())),
        (NODE_PORT_ADDRESSES, Set::of(vec![addr])),
        (NODE_PORTS, Set::verdict_map(port.clone()).counting()),
        (NODE_ENDPOINTS, Set::map(indexed(port.clone()), endpoint)),
        (REFUSED, Set::of(behind(addr))),
        (REFUSED_NODE_PORTS, Set::of(port.clone())),
        (VIPS, Set::of(vec![addr])),
        (EXTERNAL, Set::of(vec![addr])),
        (record::SET, record::set(addr)),
        (since::SET, since::set(family)),
        (HAIRPIN, Set::of(vec![addr, addr])),
        (ITSELF, Set::dynamic(vec![addr, addr])),
    ]
}

/// The maps whose elements count the first packets of connections, one for each frontend, as they are declared.
pub(crate) fn counting(family: IpFamily) -> impl Iterator<Item = (SetKey, Set)> {
    let key = move |name| SetKey { table: table_key(family), set: Name::literal(name) };
    sets(family).into_iter().filter(|(_, set)| set.counts).map(move |(name, set)| (key(name), set))
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

fn at_vip(family: IpFamily) -> Match {
    is_in(vec![Field::Daddr(family)], VIPS)
}

fn at_address(family: IpFamily) -> Vec<Field> {
    vec![Field::Daddr(family), Field::L4Proto, Field::Dport]
}

/// A packet to an address at which node ports are.
fn to_this_node(family: IpFamily) -> Rule {
    Rule::new().when(is_in(vec![Field::Daddr(family)], NODE_PORT_ADDRESSES))
}

const NODE_PORT: [Field; 2] = [Field::L4Proto, Field::Dport];

fn services(family: IpFamily) -> Vec<Rule> {
    vec![
        Rule::new().then(Statement::Vmap(at_address(family), Name::literal(SERVICES))),
        to_this_node(family).then(Statement::Vmap(NODE_PORT.to_vec(), Name::literal(NODE_PORTS))),
    ]
}

fn new() -> Rule {
    Rule::new().when(Match::CtState(CtState::NEW))
}

/// What is of a connection that has been judged goes on.
fn known() -> Rule {
    Rule::new().when(Match::CtState(CtState::ESTABLISHED | CtState::RELATED)).then(Verdict::Accept)
}

/// Behind IPVS: whatever still comes to a virtual address, other than pings, finds no virtual server.
fn refuse_behind_ipvs(family: IpFamily) -> Vec<Rule> {
    let to_vip = |protocol| new().when(Match::L4Proto(Op::Is, protocol)).when(at_vip(family));
    let unserved = Protocol::ALL.map(|protocol| to_vip(protocol).then(Reject::PortUnreachable));
    let [at_address, at_node] = refuse_listed(family);
    std::iter::once(at_address).chain(unserved).chain([at_node]).collect()
}

/// Elsewhere: what comes to a virtual address that is not local, and has no virtual server on its way; or to one that no Service has. An
/// external one that is local answers a ping as the node does, and refuses ports where it comes in.
fn refuse(family: IpFamily, unallocated: &[Unallocated]) -> Vec<Rule> {
    let unrecorded = Match::Lookup(Op::IsNot, at_address(family), Name::literal(record::SET));
    let internal = Match::Lookup(Op::IsNot, vec![Field::Daddr(family)], Name::literal(EXTERNAL));
    let unserved = new().when(at_vip(family)).when(internal).when(unrecorded).then(Reject::PortUnreachable);
    let [at_address, at_node] = refuse_listed(family);
    [at_address, unserved, at_node].into_iter().chain(unallocated.iter().flat_map(Unallocated::rules)).collect()
}

/// Where a Service has no endpoint. What none was chosen for still has its first destination.
fn refuse_listed(family: IpFamily) -> [Rule; 2] {
    let to_this_node = Rule { statements: [new().statements, to_this_node(family).statements].concat(), comment: None };
    [
        new().when(is_in(at_address(family), REFUSED)).then(Reject::PortUnreachable),
        to_this_node.when(is_in(NODE_PORT.to_vec(), REFUSED_NODE_PORTS)).then(Reject::PortUnreachable),
    ]
}
