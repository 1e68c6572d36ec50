//! How a refused transaction is narrowed down to the rows at fault.

use netstate::nft::{Datum, Family};

use super::*;
use crate::nft::wire::message;

fn table() -> TableKey {
    TableKey { family: Family::Ip, name: Name::new("netd").unwrap() }
}

fn key(set: &str, port: u16) -> ElementKey {
    ElementKey { table: table(), set: Name::new(set).unwrap(), key: [Datum::Port(port)].into() }
}

fn work(adds: &[(&str, u16)]) -> Work {
    let mut work = Work::default();
    for (row, (set, port)) in adds.iter().enumerate() {
        work.add(row, &key(set, *port), element::item(&key(set, *port), None));
    }
    work
}

/// Units with their rows: `-ports 1 2`, `layout 3`, `+ports 4`.
fn units(work: &Work) -> Vec<String> {
    let describe = |unit: &Unit| match unit {
        Unit::Layout { row, messages } => format!("layout {row} of {}", messages.len()),
        Unit::Elements { kind, set, items, .. } => {
            let rows: Vec<String> = items.rows().map(|row| row.to_string()).collect();
            let sign = if *kind == kind::NEWSETELEM { '+' } else { '-' };
            format!("{sign}{set} {}", rows.join(" "))
        }
    };
    work.units().map(describe).collect()
}

fn nack(errno: i32) -> Nack {
    Nack { errno, text: None }
}

/// Narrows by refusals of whole messages.
fn narrowed(work: &mut Work, refused: &[(usize, i32)]) {
    let places: Vec<_> = work.messages().map(|(place, _)| place).collect();
    work.narrow(&refused.iter().map(|(message, errno)| (*message, nack(*errno))).collect(), &places);
}

#[test]
fn elements_of_one_set_share_a_message_and_of_another_do_not() {
    let mut work = work(&[("ports", 1), ("ports", 2), ("links", 3), ("ports", 4)]);
    work.delete(9, &key("ports", 9));
    work.layout(5, vec![message(kind::NEWTABLE, 0, 2, |_| {})]);
    work.layout(6, Vec::new());
    assert_eq!(units(&work), ["-ports 9", "layout 5 of 1", "+ports 0 1", "+links 2", "+ports 3"]);
    assert!(work.messages().map(|(place, _)| place).eq([(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]));
}

#[test]
fn message_holds_as_many_elements_as_its_length_can_say() {
    let mut work = Work::default();
    let item = vec![0; MESSAGE_BYTES / 3];
    for row in 0..7 {
        work.add(row, &key("ports", 1), item.clone());
    }
    assert_eq!(units(&work), ["+ports 0 1 2", "+ports 3 4 5", "+ports 6"]);
}

#[test]
fn refused_elements_are_halved_until_one_is_left() {
    let mut work = work(&[("ports", 1), ("ports", 2), ("ports", 3)]);
    narrowed(&mut work, &[(0, libc::EINVAL)]);
    assert_eq!(units(&work), ["+ports 0", "+ports 1 2"]);
    narrowed(&mut work, &[(1, libc::EINVAL)]);
    assert_eq!(units(&work), ["+ports 0", "+ports 1", "+ports 2"]);
    narrowed(&mut work, &[(1, libc::EINVAL)]);
    assert_eq!(units(&work), ["+ports 0", "+ports 2"]);
    assert_eq!(work.failed.keys().collect::<Vec<_>>(), [&1]);
}

#[test]
fn absence_is_what_a_removal_wants_and_what_an_addition_lacks() {
    let mut work = work(&[("ports", 1)]);
    work.delete(9, &key("ports", 9));
    narrowed(&mut work, &[(0, libc::ENOENT), (1, libc::ENOENT)]);
    assert_eq!(units(&work), Vec::<String>::new());
    assert!(matches!(work.failed[&0], Cause::Missing(_)));
    assert!(!work.failed.contains_key(&9), "it is gone, as it shall be");
    work.layout(3, vec![message(kind::DELTABLE, 0, 2, |_| {})]);
    narrowed(&mut work, &[(0, libc::ENOENT)]);
    assert!(!work.failed.contains_key(&3));
}

#[test]
fn chain_that_is_still_named_waits_and_the_rest_goes_on() {
    let mut work = Work::default();
    let messages = vec![message(kind::NEWRULE, 0, 2, |_| {}), message(kind::DELCHAIN, 0, 2, |_| {})];
    work.layout(4, messages.clone());
    narrowed(&mut work, &[(1, libc::EBUSY)]);
    assert_eq!(units(&work), ["layout 4 of 1"]);
    assert!(work.unfinished[&4].to_string().contains("still named by verdicts in a map"));
    // Anything else about the layout fails the row.
    let mut other = Work::default();
    other.layout(4, messages);
    narrowed(&mut other, &[(0, libc::EINVAL), (1, libc::EBUSY)]);
    assert_eq!((units(&other), other.failed.len()), (Vec::new(), 1));
}

#[test]
fn row_that_fails_takes_all_its_messages_out() {
    let mut work = work(&[("ports", 1), ("ports", 2)]);
    // A changed element: removed and added in one row.
    work.delete(0, &key("ports", 1));
    work.fail(0, nack(libc::EINVAL).into());
    assert_eq!(units(&work), ["+ports 1"]);
}

#[test]
fn work_that_is_too_large_is_split_and_one_unit_alone_fails() {
    let mut work = work(&[("a", 1), ("b", 2), ("c", 3)]);
    work.delete(9, &key("d", 9));
    let behind = work.split_behind().unwrap();
    assert_eq!(units(&work), ["-d 9", "+a 0"]);
    assert_eq!(units(&behind), ["+b 1", "+c 2"]);
    let mut one = self::work(&[("a", 1)]);
    assert!(one.split_behind().is_none());
    assert!(one.failed[&0].to_string().contains("wmem_max"), "{:?}", one.failed);
}
