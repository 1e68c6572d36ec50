//! The nftables table `ip ipvs-proxy`: which connections are masqueraded, and what a virtual address refuses.
//!
//! The chains are static; a Service changes elements of the sets. IPVS rewrites destinations only, so:
//!
//! * A client outside the Pod network, this host included, is masqueraded; or the answer would go to it past the IPVS
//!   that must rewrite it. Such packets are marked before IPVS sees them, because behind it they no longer carry the
//!   virtual address. How they are masqueraded behind it is common to both data paths ([`nft`]).
//! * Any other Pod keeps its source address.
//! * What comes to a virtual address and finds no virtual server is refused behind IPVS, before a process of this host that
//!   listens on all addresses can answer: a port that no Service has, or a server that somebody deleted.
//!
//! The table also holds the [`record`] of which virtual servers are ours.

use netstate::ipvs::VirtualServerKey;
use netstate::mark::MASQUERADE;
use netstate::nft::{
    Chain, ChainKind, CtState, Datum, Element, Field, Hook, Match, Name, Op, Policy, Reject, Row, RowKey, Rule, Set,
    Table, TableKey, Type, priority,
};
use netstate::{IpFamily, Prefix, Protocol};

use super::nft::{self, HAIRPIN, VIPS, element};
use super::{record, since};

const SERVICES: &str = "services";

/// The table.
#[must_use]
pub(crate) fn table_key() -> TableKey {
    nft::table_key(IpFamily::V4)
}

/// The static part of the table; `pods` is the Pod network.
#[must_use]
pub(crate) fn table(pods: Prefix) -> (RowKey, Row) {
    let mut table = Table::default();
    let sets = [
        (SERVICES, vec![Type::Ipv4Addr, Type::InetProto, Type::InetService]),
        (HAIRPIN, vec![Type::Ipv4Addr, Type::Ipv4Addr]),
        (VIPS, vec![Type::Ipv4Addr]),
    ];
    table.sets.extend(sets.map(|(name, key)| (Name::literal(name), Set::of(key))));
    table.sets.insert(Name::literal(record::SET), record::set());
    table.sets.insert(Name::literal(since::SET), since::set(IpFamily::V4));
    let chains = [
        ("prerouting", mark(Hook::Prerouting, pods)),
        ("output", mark(Hook::Output, pods)),
        ("input", refuse()),
        ("postrouting", nft::masquerade(IpFamily::V4)),
        ("unmark", nft::unmark()),
    ];
    table.chains.extend(chains.map(|(name, chain)| (Name::literal(name), chain)));
    (RowKey::Table(table_key()), Row::Table(table))
}

fn to_service(op: Op) -> Match {
    let fields = vec![Field::Daddr(IpFamily::V4), Field::L4Proto, Field::Dport];
    Match::Lookup(op, fields, Name::literal(SERVICES))
}

fn mark(hook: Hook, pods: Prefix) -> Chain {
    let mut chain = Chain::base(ChainKind::Filter, hook, priority::MANGLE, Policy::Accept);
    chain.rules = vec![Rule::new().when(Match::Saddr(Op::IsNot, pods)).when(to_service(Op::Is)).then(MASQUERADE.set())];
    chain
}

/// IPVS takes the packets of its virtual servers at priorities 98 and 99 of the hook (net/netfilter/ipvs/ip_vs_core.c);
/// what still comes to a virtual address behind them has no virtual server.
const BEHIND_IPVS: i32 = 110;

fn refuse() -> Chain {
    let mut chain = Chain::base(ChainKind::Filter, Hook::Input, BEHIND_IPVS, Policy::Accept);
    let virtual_address = || Match::Lookup(Op::Is, vec![Field::Daddr(IpFamily::V4)], Name::literal(VIPS));
    let refuse = |protocol| {
        Rule::new()
            .when(Match::L4Proto(Op::Is, protocol))
            // Answers to this host's own connections come to a virtual address too: the host used it as its source.
            .when(Match::CtState(CtState::NEW))
            .when(virtual_address())
            .then(Reject::PortUnreachable)
    };
    chain.rules = Protocol::ALL.map(refuse).into();
    chain
}

/// The element of an address and port that is served: clients outside the Pod network are masqueraded.
#[must_use]
pub(crate) fn service(key: &VirtualServerKey) -> (RowKey, Row) {
    let parts = vec![key.addr.into(), Datum::Protocol(key.protocol), Datum::Port(key.port)];
    (element(IpFamily::V4, SERVICES, parts), Row::Element(Element::member()))
}

#[cfg(test)]
mod tests {
    use netstate::ipvs::RealServerKey;
    use netstate::nft::Ruleset;

    use super::*;
    use crate::object::ObjectName;

    fn web() -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 }
    }

    #[test]
    fn the_whole_table_as_nft_prints_it() {
        let mut ruleset = Ruleset::new(table_key());
        if let (_, Row::Table(table)) = table("172.7.0.0/16".parse().unwrap()) {
            ruleset.table = table;
        }
        let name = ObjectName::new("default", "web");
        for (key, row) in [
            service(&web()),
            nft::hairpin([172, 7, 21, 2].into()),
            nft::vip(web().addr),
            record::element(&web(), &name),
            since::element(&RealServerKey { service: web(), addr: [172, 7, 21, 3].into(), port: 80 }, 7),
        ] {
            if let (RowKey::Element(key), Row::Element(element)) = (key, row) {
                ruleset.elements.insert(key, element);
            }
        }
        assert_eq!(
            ruleset.render(),
            "\
table ip ipvs-proxy {
\tset draining {
\t\ttype ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service
\t\telements = { 192.168.0.10 . tcp . 80 . 172.7.21.3 . 80 comment \"since second 7 of the boot\" }
\t}

\tset hairpin {
\t\ttype ipv4_addr . ipv4_addr
\t\telements = { 172.7.21.2 . 172.7.21.2 }
\t}

\tset record {
\t\ttype ipv4_addr . inet_proto . inet_service
\t\telements = { 192.168.0.10 . tcp . 80 comment \"default/web\" }
\t}

\tset services {
\t\ttype ipv4_addr . inet_proto . inet_service
\t\telements = { 192.168.0.10 . tcp . 80 }
\t}

\tset vips {
\t\ttype ipv4_addr
\t\telements = { 192.168.0.10 }
\t}

\tchain input {
\t\ttype filter hook input priority 110; policy accept;
\t\tmeta l4proto tcp ct state new ip daddr @vips reject
\t\tmeta l4proto udp ct state new ip daddr @vips reject
\t\tmeta l4proto sctp ct state new ip daddr @vips reject
\t}

\tchain output {
\t\ttype filter hook output priority mangle; policy accept;
\t\tip saddr != 172.7.0.0/16 ip daddr . meta l4proto . th dport @services meta mark set meta mark | 0x00004000
\t}

\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr . ip daddr @hairpin masquerade fully-random
\t\tmeta mark & 0x00004000 == 0x00004000 masquerade fully-random
\t}

\tchain prerouting {
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tip saddr != 172.7.0.0/16 ip daddr . meta l4proto . th dport @services meta mark set meta mark | 0x00004000
\t}

\tchain unmark {
\t\ttype filter hook postrouting priority srcnat + 10; policy accept;
\t\tmeta mark & 0x00004000 == 0x00004000 meta mark set meta mark & 0xffffbfff accept
\t}
}
"
        );
    }
}
