//! Every statement there and back.

use proptest::prelude::*;

use super::*;
use crate::attribute::Writer;
use crate::nft::compile;
use netstate::Prefix;
use netstate::nft::{Name, Rule, Verdict};

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn rules(family: Family) -> Vec<Rule> {
    use IpFamily::{V4, V6};
    use Op::{Is, IsNot};
    let ifname = |name: &str| IfName::new(name).unwrap();
    let name = |text| Name::new(text).unwrap();
    let mut conditions = vec![
        Match::Mark(Is, 0x4000, 0x4000),
        Match::Mark(IsNot, u32::MAX, 7),
        Match::L4Proto(IsNot, Protocol::Sctp),
        Match::Iifname(Is, ifname("cbr0")),
        Match::IifnamePrefix(IsNot, ifname("veth")),
        Match::Oifname(IsNot, ifname("flannel.1")),
        Match::Sport(Is, Protocol::Udp, 53),
        Match::Dport(IsNot, Protocol::Tcp, 80),
        Match::TcpSyn(Is),
        Match::TcpSyn(IsNot),
        Match::DaddrLocal(Is),
        Match::SaddrLocal(IsNot),
        Match::CtState(CtState::ESTABLISHED | CtState::RELATED),
        Match::CtStatus(CtStatus::DNAT),
        Match::CtOriginalDaddr(Is, p("192.168.0.10/32")),
        Match::CtOriginalDaddr(IsNot, p("192.168.0.0/17")),
        Match::CtOriginalDaddr(Is, p("fd00::/8")),
        Match::OneOf(3),
        Match::Lookup(Is, vec![Field::CtOriginalDaddr(V6), Field::L4Proto], name("s")),
        Match::Lookup(IsNot, vec![Field::Iifname, Field::Mark], name("s")),
    ];
    for (allowed, low, texts) in [
        (Family::Ip, V4, ["172.7.0.0/16", "172.7.0.0/17", "0.0.0.0/0", "10.4.7.21/32"]),
        (Family::Ip6, V6, ["fd00::/48", "fd00::/63", "::/0", "fd00::1/128"]),
    ] {
        if family == allowed || family == Family::Inet || family == Family::Bridge {
            for text in texts {
                conditions.push(Match::Saddr(Is, p(text)));
                conditions.push(Match::Daddr(IsNot, p(text)));
            }
            conditions.push(Match::Lookup(Is, vec![Field::Daddr(low), Field::L4Proto, Field::Dport], name("v")));
        }
    }
    if family == Family::Bridge {
        conditions.push(Match::Lookup(IsNot, vec![Field::Iifname, Field::EtherSaddr], name("allowed")));
        conditions.push(Match::Lookup(Is, vec![Field::EtherSaddr], name("macs")));
    }
    if family == Family::Inet {
        conditions.push(Match::Nfproto(Is, V4));
        conditions.push(Match::Nfproto(IsNot, V6));
    }
    conditions.push(Match::CtDirection(CtDirection::Original));
    conditions.push(Match::CtDirection(CtDirection::Reply));
    let mut rules: Vec<Rule> =
        conditions.into_iter().map(|condition| Rule::new().when(condition).then(Verdict::Accept)).collect();
    let fields = vec![Field::L4Proto, Field::Dport];
    let statements = [
        Statement::Notrack,
        Statement::Offload(name("f")),
        Statement::Counter,
        MarkChange::set(0x4000).into(),
        MarkChange::replace(1).into(),
        Statement::Masquerade { fully_random: true },
        Statement::Masquerade { fully_random: false },
        Destination::Fixed("172.7.21.3".parse().unwrap(), Some(80)).into(),
        Destination::Fixed("fd00::3".parse().unwrap(), Some(80)).into(),
        Destination::Fixed("fd00::3".parse().unwrap(), None).into(),
        Destination::Map { family: V4, fields: fields.clone(), map: name("m"), port: true }.into(),
        Destination::Map { family: V6, fields: fields.clone(), map: name("m"), port: true }.into(),
        Destination::Map { family: V4, fields: fields.clone(), map: name("m"), port: false }.into(),
        Destination::Map {
            family: V4,
            fields: vec![Field::Dport, Field::Random { below: 7, offset: 0 }],
            map: name("m"),
            port: true,
        }
        .into(),
        Statement::Update { fields: fields.clone(), set: name("s"), seconds: 10_800 },
        Statement::Vmap(vec![Field::L4Proto, Field::Random { below: 3, offset: 2 }], name("v")),
        Statement::Vmap(fields, name("v")),
        Verdict::Jump(name("c")).into(),
        Verdict::Goto(name("c")).into(),
        Verdict::Return.into(),
        Verdict::Drop.into(),
        Reject::PortUnreachable.into(),
        Reject::TcpReset.into(),
    ];
    rules.extend(statements.into_iter().map(|statement| Rule::new().then(statement)));
    // All in one: what is known of a packet carries over from statement to statement.
    let all: Vec<Statement> = rules.iter().flat_map(|rule| rule.statements.clone()).collect();
    if family == Family::Ip || family == Family::Ip6 {
        rules.push(Rule { statements: all, comment: None });
    }
    rules
}

/// nft compares all bytes of a name, iptables those up to the zero.
#[test]
fn name_of_an_interface_is_known_by_the_zero_that_ends_it() {
    let read = |key, data: &[u8]| {
        let compare = Expression::Compare { from: 0, op: Op::Is, data: data.to_vec() };
        super::rule(Family::Ip, &[Expression::Meta { key, to: 0 }, compare])
    };
    let eth0 = || IfName::literal("eth0");
    let padded = [&b"eth0"[..], &[0; 12]].concat();
    for data in [&b"eth0\0"[..], &padded] {
        assert_eq!(read(meta::IIFNAME, data), [Match::Iifname(Op::Is, eth0()).into()], "{data:?}");
        assert_eq!(read(meta::OIFNAME, data), [Match::Oifname(Op::Is, eth0()).into()], "{data:?}");
    }
    assert_eq!(read(meta::IIFNAME, b"eth0"), [Match::IifnamePrefix(Op::Is, eth0()).into()]);
    for data in [&b"eth0"[..], b"eth0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"\0"] {
        assert!(matches!(read(meta::OIFNAME, data)[..], [Statement::Unknown(_), ..]), "{data:?}");
    }
}

#[test]
fn every_statement_is_recognised_in_what_it_compiles_to() {
    for family in [Family::Ip, Family::Ip6, Family::Inet, Family::Bridge] {
        for each in rules(family) {
            let program = compile::rule(family, &each).unwrap();
            let mut list = Writer::default();
            program.iter().for_each(|expression| expression.write(&mut list));
            let read = Expression::list(&list.finish());
            assert_eq!(read, program, "{family}: {each:?}");
            assert_eq!(rule(family, &read), each.statements, "{family}");
        }
    }
}

proptest! {
    /// What is known of a packet carries over from statement to statement, in any order of them.
    #[test]
    fn any_sequence_of_statements_is_recognised(
        family in prop::sample::select(vec![Family::Ip, Family::Ip6, Family::Inet, Family::Bridge]),
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let single: Vec<Statement> =
            rules(family).into_iter().filter(|rule| rule.statements.len() <= 2).flat_map(|rule| rule.statements).collect();
        let statements: Vec<Statement> = chosen.iter().map(|index| index.get(&single).clone()).collect();
        let wanted = Rule { statements, comment: None };
        // Addresses of both families in one rule are refused.
        if let Ok(program) = compile::rule(family, &wanted) {
            prop_assert_eq!(rule(family, &program), wanted.statements);
        }
    }
}

#[test]
fn address_of_the_other_family_is_refused_with_the_reason() {
    let wrong = Rule::new().when(Match::Saddr(Op::Is, p("fd00::/48")));
    assert_eq!(compile::rule(Family::Ip, &wrong).unwrap_err(), "IPv6 address where every packet is IPv4");
    let both = wrong.when(Match::Daddr(Op::Is, p("10.0.0.0/8")));
    assert!(compile::rule(Family::Inet, &both).is_err());
    let mac = Rule::new().when(Match::Lookup(Op::Is, vec![Field::EtherSaddr], Name::literal("macs")));
    assert_eq!(compile::rule(Family::Inet, &mac).unwrap_err(), "hardware address in a table of family inet");
}

#[test]
fn instructions_that_mean_something_else_are_not_taken_for_ours() {
    let [meta, compare] = guard(Family::Inet, IpFamily::V4);
    let half_mask = Expression::Bitwise { from: 0, to: 0, mask: vec![0xff, 0, 0xff, 0], xor: vec![0; 4] };
    let address = Expression::Compare { from: 0, op: Op::Is, data: vec![10, 0, 7, 0] };
    for list in [
        vec![load(Field::Saddr(IpFamily::V4), 0), half_mask, address.clone()],
        vec![load(Field::Saddr(IpFamily::V4), 1), address],
        vec![Expression::Unknown("limit".to_owned())],
        vec![Expression::Masquerade { flags: 4 }],
        vec![load(Field::L4Proto, 0), Expression::Update { set: Name::literal("s"), from: 0, milliseconds: 1500 }],
        vec![
            load(Field::Random { below: 3, offset: 1 }, 0),
            Expression::Compare { from: 0, op: Op::Is, data: vec![0; 4] },
        ],
        vec![Expression::Fib { flags: 8, result: 1, to: 0 }, compare],
        vec![meta],
    ] {
        let statements = rule(Family::Ip, &list);
        assert!(statements.iter().any(|s| matches!(s, Statement::Unknown(_))), "{list:?} is {statements:?}");
    }
}
