//! Instructions there and back, and what is not one of ours.

use super::*;
use crate::golden;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn written(expression: &Expression) -> Vec<u8> {
    let mut list = Writer::default();
    expression.write(&mut list);
    list.finish()
}

/// One of every kind.
fn every() -> Vec<Expression> {
    vec![
        Expression::Meta { key: meta::MARK, to: 0 },
        Expression::MetaSet { key: meta::MARK, from: 1 },
        Expression::Ct { key: ct::STATE, direction: None, to: 0 },
        Expression::Ct { key: ct::DST_IP6, direction: Some(ct::ORIGINAL), to: 4 },
        Expression::Payload { base: base::NETWORK, offset: 12, length: 4, to: 0 },
        Expression::Payload { base: base::LINK, offset: 6, length: 6, to: 15 },
        Expression::Fib { flags: fib::DADDR, result: fib::ADDRTYPE, to: 0 },
        Expression::Bitwise { from: 0, to: 2, mask: vec![0xff; 4], xor: vec![0; 4] },
        Expression::Bitwise { from: 0, to: 0, mask: vec![0xff; 16], xor: vec![1; 16] },
        Expression::Compare { from: 0, op: Op::Is, data: vec![0xac, 0x07] },
        Expression::Compare { from: 8, op: Op::IsNot, data: vec![0; 16] },
        Expression::Immediate { to: 4, data: vec![0, 80] },
        Expression::Verdict(Verdict::Accept),
        Expression::Verdict(Verdict::Drop),
        Expression::Verdict(Verdict::Return),
        Expression::Verdict(Verdict::Jump(name("aside"))),
        Expression::Verdict(Verdict::Goto(name("aside"))),
        Expression::Lookup { set: name("s"), from: 0, to: Found::Nothing, inverted: true },
        Expression::Lookup { set: name("s"), from: 0, to: Found::Verdict, inverted: false },
        Expression::Lookup { set: name("s"), from: 0, to: Found::Slot(5), inverted: false },
        Expression::Masquerade { flags: 0 },
        Expression::Masquerade { flags: 0x10 },
        Expression::Dnat { family: 2, addr: 0, port: None },
        Expression::Dnat { family: 10, addr: 0, port: Some(4) },
        Expression::Reject { kind: 0, code: 3 },
        Expression::Notrack,
        Expression::Offload(name("pods")),
        Expression::Counter,
    ]
}

#[test]
fn what_is_written_is_read_back() {
    for expression in every() {
        assert_eq!(Expression::list(&written(&expression)), [expression]);
    }
    let all: Vec<u8> = every().iter().flat_map(written).collect();
    assert_eq!(Expression::list(&all), every());
}

#[test]
fn torn_instruction_is_never_taken_for_a_whole_one() {
    for expression in every() {
        let whole = written(&expression);
        for length in 0..whole.len() {
            assert_eq!(Expression::list(&whole[..length]), [], "{expression:?}: {length} bytes");
        }
        // The list is whole, the instruction in it is not.
        let (name, data) = (expression.name().to_owned(), &golden_data(&whole)[..]);
        for length in 0..data.len() {
            let mut list = Writer::default();
            list.nest(LIST_ELEM, |element| {
                element.put_str(EXPR_NAME, &name).put(EXPR_DATA, &data[..length]);
            });
            let read = Expression::list(&list.finish());
            assert_eq!(read.len(), 1, "{expression:?}: {length} bytes");
            if let Expression::Unknown(found) = &read[0] {
                assert_eq!(*found, name);
            }
        }
    }
}

fn golden_data(list: &[u8]) -> Vec<u8> {
    let element = attribute::find(list, LIST_ELEM).unwrap();
    attribute::find(element, EXPR_DATA).unwrap_or_default().to_vec()
}

#[test]
fn registers_have_two_numberings() {
    for (slot, register) in [(0, 1), (4, 2), (8, 3), (12, 4), (1, 9), (5, 13), (15, 23)] {
        assert_eq!(super::register(slot), register, "slot {slot}");
        assert_eq!(super::slot(register), Some(slot), "register {register}");
    }
    // The narrow number of a slot that starts a wide one.
    assert_eq!(super::slot(8), Some(0));
    assert_eq!(super::slot(12), Some(4));
    for register in [0, 5, 7, 24, u32::MAX] {
        assert_eq!(super::slot(register), None, "register {register}");
    }
}

#[test]
fn bytes_of_an_address_test_are_those_that_the_kernel_documents() {
    let load = Expression::Payload { base: base::NETWORK, offset: 12, length: 4, to: 0 };
    assert_eq!(
        golden::tree(&written(&load)),
        "1:\n  1: 7061796c6f616400\n  2:\n    1: 00000001\n    2: 00000001\n    3: 0000000c\n    4: 00000004\n"
    );
    let mask = Expression::Bitwise { from: 0, to: 0, mask: vec![0xff, 0xff, 0x80, 0], xor: vec![0; 4] };
    assert_eq!(
        golden::tree(&written(&mask)),
        "1:\n  1: 6269747769736500\n  2:\n    1: 00000001\n    2: 00000001\n    3: 00000004\n    4:\n      \
         1: ffff8000\n    5:\n      1: 00000000\n"
    );
    let jump = Expression::Verdict(Verdict::Jump(name("aside")));
    assert_eq!(
        golden::tree(&written(&jump)),
        "1:\n  1: 696d6d65646961746500\n  2:\n    1: 00000000\n    2:\n      2:\n        1: fffffffd\n        \
         2: 617369646500\n"
    );
}

/// An instruction of `name` with these attributes.
fn foreign(name: &str, fill: impl FnOnce(&mut Writer)) -> Expression {
    let mut list = Writer::default();
    list.nest(LIST_ELEM, |element| {
        element.put_str(EXPR_NAME, name).nest(EXPR_DATA, fill);
    });
    Expression::list(&list.finish()).remove(0)
}

#[test]
fn parts_that_are_not_understood_make_the_instruction_unknown() {
    let unknown = |name: &str| Expression::Unknown(name.to_owned());
    // A bitwise operation by shift, not by mask.
    let shift = foreign("bitwise", |data| {
        put_number(data, 1, 1);
        put_number(data, 2, 1);
        put_value(data, 4, &[0; 4]);
        put_value(data, 5, &[0; 4]);
        put_number(data, 6, 1);
    });
    assert_eq!(shift, unknown("bitwise"));
    // Less than, more than.
    for op in 2..6 {
        let compare = foreign("cmp", |data| {
            put_number(data, 1, 1);
            put_number(data, 2, op);
            put_value(data, 3, &[0; 4]);
        });
        assert_eq!(compare, unknown("cmp"), "operation {op}");
    }
    // A range of ports, source translation, flags that change what it does.
    let nat = |kind, to_addr, to_port, flags| {
        foreign("nat", |data| {
            for (attribute, number) in [(1, kind), (2, 2), (3, 1), (4, to_addr), (5, 2), (6, to_port), (7, flags)] {
                put_number(data, attribute, number);
            }
        })
    };
    assert_eq!(nat(1, 1, 2, 3), Expression::Dnat { family: 2, addr: 0, port: Some(4) });
    assert_eq!(nat(0, 1, 2, 3), unknown("nat"));
    assert_eq!(nat(1, 3, 2, 3), unknown("nat"));
    assert_eq!(nat(1, 1, 3, 3), unknown("nat"));
    assert_eq!(nat(1, 1, 2, 0x10), unknown("nat"));
    // Masquerading into a range of ports.
    assert_eq!(foreign("masq", |data| put_number(data, 2, 1)), unknown("masq"));
    assert_eq!(foreign("meta", |data| put_number(data, 2, 3)), unknown("meta"));
    assert_eq!(foreign("quota", |_| {}), unknown("quota"));
    assert_eq!(foreign("counter", |data| put_number(data, 9, 9)), Expression::Counter, "numbers change by themselves");
}
