//! Programs as text, instruction by instruction: what `nft --debug=netlink` would list.

use netstate::IfName;
use netstate::nft::{CtState, CtStatus, Name, Verdict};

use super::*;
use crate::golden::hex;

fn instruction(expression: &Expression) -> String {
    match expression {
        Expression::Meta { key, to } => format!("meta {key} => {to}"),
        Expression::MetaSet { key, from } => format!("meta {key} set {from}"),
        Expression::Ct { key, direction, to } => format!("ct {key} dir {direction:?} => {to}"),
        Expression::Payload { base, offset, length, to } => format!("payload {length}b @ {base} + {offset} => {to}"),
        Expression::HasHeader { header, to } => format!("exthdr {header} => {to}"),
        Expression::Fib { flags, result, to } => format!("fib {flags} result {result} => {to}"),
        Expression::Random { below, offset, to } => format!("numgen random mod {below} offset {offset} => {to}"),
        Expression::Bitwise { from, to, mask, xor } => format!("bitwise {from} & {} ^ {} => {to}", hex(mask), hex(xor)),
        Expression::Compare { from, op, data } => format!("cmp {op:?} {from} {}", hex(data)),
        Expression::Immediate { to, data } => format!("immediate {} => {to}", hex(data)),
        Expression::Verdict(verdict) => format!("verdict {verdict:?}"),
        Expression::Lookup { set, from, to, inverted } => {
            format!("lookup {from} in {set} => {to:?} inverted {inverted}")
        }
        Expression::Update { set, from, milliseconds } => format!("dynset update {from} in {set} for {milliseconds}"),
        Expression::Masquerade { flags } => format!("masq {flags:#x}"),
        Expression::Dnat { family, addr, port } => format!("dnat {family} addr {addr} port {port:?}"),
        Expression::Reject { kind, code } => format!("reject {kind} code {code}"),
        Expression::Notrack => "notrack".to_owned(),
        Expression::Offload(flowtable) => format!("flow_offload {flowtable}"),
        Expression::Counter => "counter".to_owned(),
        Expression::Unknown(name) => format!("unknown {name}"),
    }
}

fn program(family: Family, statement: impl Into<Statement>) -> Vec<String> {
    rule(family, &Rule::new().then(statement)).unwrap().iter().map(instruction).collect()
}

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn ifname(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

use Op::{Is, IsNot};

#[test]
fn network_of_whole_bytes_is_compared_without_a_mask() {
    assert_eq!(program(Family::Ip, Match::Saddr(Is, p("172.7.0.0/16"))), ["payload 2b @ 1 + 12 => 0", "cmp Is 0 ac07"]);
    assert_eq!(
        program(Family::Ip, Match::Daddr(IsNot, p("10.4.7.21/32"))),
        ["payload 4b @ 1 + 16 => 0", "cmp IsNot 0 0a040715"]
    );
    assert_eq!(
        program(Family::Ip6, Match::Saddr(Is, p("fd00::/48"))),
        ["payload 6b @ 1 + 8 => 0", "cmp Is 0 fd0000000000"]
    );
}

#[test]
fn whole_packets_are_those_without_a_fragments_offset_or_header() {
    assert_eq!(
        program(Family::Ip, Match::Whole(IpFamily::V4)),
        ["payload 2b @ 1 + 6 => 0", "bitwise 0 & 3fff ^ 0000 => 0", "cmp Is 0 0000"]
    );
    // In tables that see both network protocols, behind the question for the protocol.
    assert_eq!(
        program(Family::Netdev, Match::Whole(IpFamily::V6)),
        ["meta 1 => 0", "cmp Is 0 86dd", "exthdr 44 => 0", "cmp Is 0 00"]
    );
}

#[test]
fn network_within_a_byte_is_masked() {
    assert_eq!(
        program(Family::Ip, Match::Daddr(Is, p("172.7.128.0/17"))),
        ["payload 4b @ 1 + 16 => 0", "bitwise 0 & ffff8000 ^ 00000000 => 0", "cmp Is 0 ac078000"]
    );
    assert_eq!(
        program(Family::Ip, Match::Daddr(Is, p("0.0.0.0/0"))),
        ["payload 4b @ 1 + 16 => 0", "bitwise 0 & 00000000 ^ 00000000 => 0", "cmp Is 0 00000000"]
    );
    let six = program(Family::Ip6, Match::Daddr(Is, p("fd00::/63")));
    assert_eq!(six[0], "payload 16b @ 1 + 24 => 0");
    assert_eq!(six[1], format!("bitwise 0 & fffffffffffffffe{} ^ {} => 0", "00".repeat(8), "00".repeat(16)));
}

#[test]
fn table_of_both_families_asks_for_the_family_first() {
    assert_eq!(
        program(Family::Inet, Match::Saddr(Is, p("172.7.0.0/16"))),
        ["meta 15 => 0", "cmp Is 0 02", "payload 2b @ 1 + 12 => 0", "cmp Is 0 ac07"]
    );
    assert_eq!(
        program(Family::Inet, Match::Saddr(Is, p("fd00::/16"))),
        ["meta 15 => 0", "cmp Is 0 0a", "payload 2b @ 1 + 8 => 0", "cmp Is 0 fd00"]
    );
    // A bridge sees frames: their type, in network order.
    assert_eq!(program(Family::Bridge, Match::Saddr(Is, p("172.7.0.0/16")))[..2], ["meta 1 => 0", "cmp Is 0 0800"]);
    // Asked for once in a rule.
    let two = Rule::new().when(Match::Saddr(Is, p("172.7.0.0/16"))).when(Match::Daddr(IsNot, p("172.7.0.0/16")));
    let guards = rule(Family::Inet, &two).unwrap().iter().filter(|e| matches!(e, Expression::Meta { .. })).count();
    assert_eq!(guards, 1);
}

#[test]
fn address_of_another_family_is_refused() {
    for (family, network) in [(Family::Ip, "fd00::/48"), (Family::Ip6, "172.7.0.0/16")] {
        for condition in [Match::Saddr(Is, p(network)), Match::Daddr(Is, p(network))] {
            assert!(rule(family, &Rule::new().when(condition.clone())).is_err(), "{family} {condition:?}");
        }
    }
    let both = Rule::new().when(Match::Saddr(Is, p("172.7.0.0/16"))).when(Match::Daddr(Is, p("fd00::/48")));
    assert!(rule(Family::Inet, &both).is_err(), "no packet has both");
}

#[test]
fn ports_are_read_behind_their_protocol() {
    assert_eq!(
        program(Family::Ip, Match::Dport(Is, Protocol::Tcp, 80)),
        ["meta 16 => 0", "cmp Is 0 06", "payload 2b @ 2 + 2 => 0", "cmp Is 0 0050"]
    );
    assert_eq!(
        program(Family::Ip, Match::Sport(IsNot, Protocol::Udp, 53)),
        ["meta 16 => 0", "cmp Is 0 11", "payload 2b @ 2 + 0 => 0", "cmp IsNot 0 0035"]
    );
    assert_eq!(program(Family::Ip, Match::L4Proto(Is, Protocol::Sctp)), ["meta 16 => 0", "cmp Is 0 84"]);
}

#[test]
fn interface_names_fill_their_register() {
    let padded = |text: &str| format!("{}{}", hex(text.as_bytes()), "00".repeat(16 - text.len()));
    assert_eq!(
        program(Family::Ip, Match::Iifname(Is, ifname("cbr0"))),
        ["meta 6 => 0".to_owned(), format!("cmp Is 0 {}", padded("cbr0"))]
    );
    assert_eq!(
        program(Family::Ip, Match::IifnamePrefix(IsNot, ifname("veth"))),
        ["meta 6 => 0".to_owned(), format!("cmp IsNot 0 {}", hex(b"veth"))],
        "but for what they begin with"
    );
    assert_eq!(
        program(Family::Ip, Match::Oifname(IsNot, ifname("flannel.1"))),
        ["meta 7 => 0".to_owned(), format!("cmp IsNot 0 {}", padded("flannel.1"))]
    );
}

#[test]
fn marks_are_compared_whole_or_under_a_mask() {
    assert_eq!(program(Family::Ip, Match::Mark(Is, u32::MAX, 7)), ["meta 3 => 0", "cmp Is 0 07000000"]);
    assert_eq!(
        program(Family::Ip, Match::Mark(IsNot, 0xf000, 0x4000)),
        ["meta 3 => 0", "bitwise 0 & 00f00000 ^ 00000000 => 0", "cmp IsNot 0 00400000"]
    );
}

#[test]
fn states_and_properties_are_tests_of_bits() {
    assert_eq!(
        program(Family::Ip, Match::CtState(CtState::ESTABLISHED | CtState::RELATED)),
        ["ct 0 dir None => 0", "bitwise 0 & 06000000 ^ 00000000 => 0", "cmp IsNot 0 00000000"]
    );
    assert_eq!(
        program(Family::Ip, Match::CtStatus(CtStatus::DNAT)),
        ["ct 2 dir None => 0", "bitwise 0 & 20000000 ^ 00000000 => 0", "cmp IsNot 0 00000000"]
    );
    assert_eq!(
        program(Family::Ip, Match::CtOriginalDaddr(Is, p("192.168.0.10/32"))),
        ["ct 20 dir Some(0) => 0", "cmp Is 0 c0a8000a"]
    );
}

#[test]
fn own_addresses_are_asked_of_the_routing_table() {
    assert_eq!(program(Family::Ip, Match::DaddrLocal(Is)), ["fib 2 result 3 => 0", "cmp Is 0 02000000"]);
    assert_eq!(program(Family::Ip, Match::SaddrLocal(IsNot)), ["fib 1 result 3 => 0", "cmp IsNot 0 02000000"]);
}

#[test]
fn fields_of_a_key_stand_side_by_side_in_registers() {
    let fields = vec![Field::Daddr(netstate::IpFamily::V4), Field::L4Proto, Field::Dport];
    assert_eq!(
        program(Family::Ip, Match::Lookup(Is, fields.clone(), name("servers"))),
        [
            "payload 4b @ 1 + 16 => 0",
            "meta 16 => 1",
            "payload 2b @ 2 + 2 => 2",
            "lookup 0 in servers => Nothing inverted false",
        ]
    );
    let six = vec![Field::Daddr(netstate::IpFamily::V6), Field::Iifname, Field::Mark];
    assert_eq!(
        program(Family::Ip6, Match::Lookup(IsNot, six, name("s"))),
        ["payload 16b @ 1 + 24 => 0", "meta 6 => 4", "meta 3 => 8", "lookup 0 in s => Nothing inverted true",]
    );
    assert_eq!(
        program(Family::Ip, Statement::Vmap(fields[1..].to_vec(), name("verdicts"))),
        ["meta 16 => 0", "payload 2b @ 2 + 2 => 1", "lookup 0 in verdicts => Verdict inverted false"]
    );
    assert_eq!(
        program(Family::Bridge, Match::Lookup(Is, vec![Field::EtherSaddr], name("macs"))),
        ["payload 6b @ 0 + 6 => 0", "lookup 0 in macs => Nothing inverted false"]
    );
}

#[test]
fn destinations_are_fixed_or_found_in_a_map() {
    assert_eq!(
        program(Family::Ip, Destination::Fixed("172.7.21.3".parse().unwrap(), Some(80))),
        ["immediate ac071503 => 0", "immediate 0050 => 4", "dnat 2 addr 0 port Some(4)"]
    );
    assert_eq!(
        program(Family::Ip6, Destination::Fixed("fd00::3".parse().unwrap(), None)),
        [format!("immediate fd00{}0003 => 0", "00".repeat(12)), "dnat 10 addr 0 port None".to_owned()]
    );
    let fields = vec![Field::L4Proto, Field::Dport];
    let map = |family, port| Destination::Map { family, fields: fields.clone(), map: name("ports"), port };
    assert_eq!(
        program(Family::Ip, map(netstate::IpFamily::V4, true)),
        [
            "meta 16 => 0",
            "payload 2b @ 2 + 2 => 1",
            "lookup 0 in ports => Slot(0) inverted false",
            "dnat 2 addr 0 port Some(1)",
        ]
    );
    assert_eq!(program(Family::Ip6, map(netstate::IpFamily::V6, true))[3], "dnat 10 addr 0 port Some(4)");
    assert_eq!(program(Family::Ip, map(netstate::IpFamily::V4, false))[3], "dnat 2 addr 0 port None");
}

#[test]
fn marks_change_by_mask_and_xor() {
    assert_eq!(
        program(Family::Ip, MarkChange::set(0x4000)),
        ["meta 3 => 0", "bitwise 0 & ffbfffff ^ 00400000 => 0", "meta 3 set 0"]
    );
    assert_eq!(program(Family::Ip, MarkChange::replace(1)), ["immediate 01000000 => 0", "meta 3 set 0"]);
}

#[test]
fn ends_of_rules() {
    assert_eq!(program(Family::Ip, Verdict::Drop), ["verdict Drop"]);
    assert_eq!(program(Family::Ip, Statement::Counter), ["counter"]);
    assert_eq!(program(Family::Ip, Statement::Masquerade { fully_random: true }), ["masq 0x10"]);
    assert_eq!(program(Family::Ip, Statement::Masquerade { fully_random: false }), ["masq 0x0"]);
    for (family, refuse) in
        [(Family::Ip, "reject 0 code 3"), (Family::Ip6, "reject 0 code 4"), (Family::Inet, "reject 2 code 1")]
    {
        assert_eq!(program(family, Reject::PortUnreachable), [refuse]);
        assert_eq!(program(family, Reject::TcpReset), ["reject 1 code 0"]);
    }
}

#[test]
fn what_would_not_be_read_back_is_refused() {
    let unknown = Rule::new().then(Statement::Unknown("queue".to_owned()));
    assert!(rule(Family::Ip, &unknown).unwrap_err().contains("queue"));
    for comment in ["a \"quote\"", "a\nline", &"x".repeat(129)] {
        let rule = Rule::new().then(Verdict::Accept).comment(comment);
        assert!(super::rule(Family::Ip, &rule).unwrap_err().contains("128 bytes"), "{comment}");
    }
    assert!(rule(Family::Ip, &Rule::new().then(Verdict::Accept).comment("x".repeat(128))).is_ok());
}
