//! Chains, rules and sets from their attributes.

use netstate::nft::{Match, Op, Verdict};

use super::*;
use crate::nft::compile;
use crate::nft::layout::put_rule;
use crate::nft::wire::{put_number, put_value};

fn name_of(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn attributes(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    fill(&mut writer);
    writer.finish()
}

fn base(kind: &str, hook: u32, priority: i32, policy: u32) -> Vec<u8> {
    attributes(|body| {
        body.put_str(chain::TYPE, kind);
        put_number(body, chain::POLICY, policy);
        body.nest(chain::HOOK, |place| {
            put_number(place, chain::HOOK_NUMBER, hook);
            place.put(chain::HOOK_PRIORITY, &priority.to_be_bytes());
        });
    })
}

#[test]
fn base_chain_is_read_with_its_place_and_policy() {
    for (kind, of_kind) in [("filter", ChainKind::Filter), ("nat", ChainKind::Nat), ("route", ChainKind::Route)] {
        for (number, hook) in
            [(0, Hook::Prerouting), (1, Hook::Input), (2, Hook::Forward), (3, Hook::Output), (4, Hook::Postrouting)]
        {
            let read = base_chain(Family::Ip, &base(kind, number, -100, 1)).unwrap();
            assert_eq!(read, BaseChain { kind: of_kind, hook, priority: -100, policy: Policy::Accept, device: None });
        }
    }
    assert_eq!(base_chain(Family::Ip, &base("filter", 2, 10, 0)).unwrap().policy, Policy::Drop);
}

#[test]
fn place_that_nobody_here_writes_makes_a_chain_unequal() {
    assert_eq!(base_chain(Family::Ip, &base("filter", 9, 0, 1)), None);
    assert_eq!(base_chain(Family::Ip, &base("flow", 2, 0, 1)), None);
    let strange = read_chain(Family::Ip, &base("filter", 9, 0, 1));
    assert_eq!(strange.base, None);
    assert!(matches!(strange.rules[0].statements[0], Statement::Unknown(_)));
    assert_eq!(
        read_chain(
            Family::Ip,
            &attributes(|body| {
                body.put_str(chain::NAME, "aside");
            })
        ),
        Chain::default(),
        "a chain that is jumped to"
    );
}

#[test]
fn torn_chain_is_no_base_chain() {
    let whole = base("filter", 2, 10, 0);
    for length in 0..whole.len() {
        assert_eq!(base_chain(Family::Ip, &whole[..length]), None, "{length} bytes");
    }
}

#[test]
fn rule_is_read_with_its_comment() {
    let rule = Rule::new().when(Match::Saddr(Op::Is, "172.7.0.0/16".parse().unwrap())).then(Verdict::Accept);
    let program = compile::rule(Family::Ip, &rule).unwrap();
    for comment in [None, Some("why")] {
        let body = attributes(|body| put_rule(body, &program, comment));
        let wanted = Rule { comment: comment.map(str::to_owned), ..rule.clone() };
        assert_eq!(read_rule(Family::Ip, &body), wanted);
    }
    assert_eq!(read_rule(Family::Ip, &[]), Rule::new());
}

fn set_of(set: &Set) -> Set {
    let size = |types: &[Type]| u32::try_from(element::size(types)).unwrap();
    let flags = if set.kind == SetKind::Set { 0 } else { SET_MAP };
    read_set(&attributes(|body| {
        put_number(body, set::FLAGS, set.flags.0 | flags);
        put_number(body, set::KEY_TYPE, fold(&set.key));
        put_number(body, set::KEY_LEN, size(&set.key));
        match &set.kind {
            SetKind::Set => {}
            SetKind::Map(data) => {
                put_number(body, set::DATA_TYPE, fold(data));
                put_number(body, set::DATA_LEN, size(data));
            }
            SetKind::VerdictMap => put_number(body, set::DATA_TYPE, DATA_VERDICT),
        }
    }))
}

#[test]
fn set_is_read_as_it_is_declared() {
    let key = vec![Type::Ipv4Addr, Type::InetProto, Type::InetService];
    for set in [
        Set::of(vec![Type::Ipv4Addr]),
        Set::of(vec![Type::IfName]),
        Set::of(vec![Type::EtherAddr]),
        Set::of(key.clone()),
        Set::map(key.clone(), vec![Type::Ipv6Addr, Type::InetService]),
        Set::verdict_map(key.clone()),
        Set { flags: SetFlags(0x40), ..Set::of(key) },
    ] {
        assert_eq!(set_of(&set), set);
    }
}

#[test]
fn types_fold_six_bits_each_and_back() {
    let types = [Type::Ipv4Addr, Type::InetProto, Type::InetService];
    let folded = fold(&types);
    assert_eq!(unfold(folded, 12), types);
    // Another length, a type nobody knows, nothing at all: not what it seems.
    assert_eq!(unfold(folded, 8), [Type::Unknown(folded)]);
    assert_eq!(unfold(63, 4), [Type::Unknown(63)]);
    assert_eq!(unfold(0, 0), [Type::Unknown(0)]);
}

#[test]
fn message_belongs_to_its_table_by_family_and_name() {
    let key = TableKey { family: Family::Ip, name: name_of("netd") };
    let frame = |kind: u16, family: u8, table: &str| {
        let message = message(kind, 0, family, |body| {
            body.put_str(table::NAME, table);
        });
        Frame { kind: message.kind, flags: 0, sequence: 1, body: message.body }
    };
    assert!(of_table(&frame(kind::NEWRULE, 2, "netd"), kind::NEWRULE, &key).is_some());
    for (kind_of, family, table) in
        [(kind::NEWSET, 2, "netd"), (kind::NEWRULE, 10, "netd"), (kind::NEWRULE, 2, "netd-ports")]
    {
        assert!(of_table(&frame(kind_of, family, table), kind::NEWRULE, &key).is_none());
    }
}

#[test]
fn elements_are_read_by_the_types_of_their_set() {
    let set = Set::map(vec![Type::InetService], vec![Type::Ipv4Addr]);
    let body = attributes(|body| {
        body.nest(3, |list| {
            for (port, last, flags) in [(80u16, 2u8, 0u8), (443, 3, 0), (8080, 4, 1)] {
                list.nest(1, |item| {
                    put_value(item, 1, &port.to_be_bytes());
                    put_value(item, 2, &[172, 7, 21, last]);
                    item.put(3, &[0, 0, 0, flags]);
                });
            }
        });
    });
    let read: Vec<_> = element::read(&set, &body).collect();
    assert_eq!(read[0].0, [Datum::Port(80)]);
    assert_eq!(read[1].1, Element::value(vec![Datum::Ipv4("172.7.21.3".parse().unwrap())]));
    assert_eq!(read[2].0, [Datum::Raw(vec![0x1f, 0x90])], "the end of an interval is no plain key");
}
