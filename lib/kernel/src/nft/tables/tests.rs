//! What is sent for the steps of lists.

use netstate::Protocol;
use netstate::nft::{Datum, Family, Type};

use super::*;

fn table() -> TableKey {
    TableKey { family: Family::Ip, name: Name::literal("t") }
}

fn place(port: u16) -> ElementKey {
    let key = [Datum::Protocol(Protocol::Tcp), Datum::Port(port)].into();
    ElementKey { table: table(), set: Name::literal("endpoints"), key }
}

fn list(last: &[u8]) -> List {
    last.iter().map(|last| ([172, 7, 21, *last].into(), 8080)).collect()
}

/// With a list of the first and the second, and what somebody put behind a gap.
fn strange() -> List {
    let element = |last: u8| Element::value(vec![Datum::Ipv4([172, 7, 21, last].into()), Datum::Port(8080)]);
    List::of_elements([(0, element(2)), (1, element(3)), (7, element(9))])
}

/// How many elements go and come for a step, and whether it fails without a word to the kernel.
fn sent(step: TableStep) -> (usize, usize, bool) {
    let mut tables = Tables::new(Nft::open().unwrap(), [table()]);
    let key = vec![Type::InetProto, Type::InetService, Type::Index];
    let set = Set::map(key, vec![Type::Ipv4Addr, Type::InetService]);
    tables.declared.insert(table(), BTreeMap::from([(Name::literal("endpoints"), set)]));
    let mut work = Work::default();
    tables.prepare(&[step], &[0], &mut work);
    let [deletes, adds] = work.counts();
    (deletes, adds, work.has_failed(0))
}

#[test]
fn of_a_list_that_changes_only_what_differs_is_sent() {
    let change = |have: List, want: List| sent(Step::Change(RowKey::List(place(80)), have.into(), want.into()));
    assert_eq!(sent(Step::Create(RowKey::List(place(80)), list(&[2, 3, 4]).into())), (0, 3, false));
    assert_eq!(change(list(&[2, 3, 4]), list(&[2, 9, 4])), (1, 1, false), "one is exchanged");
    assert_eq!(change(list(&[2, 3]), list(&[2, 3, 4])), (0, 1, false), "one comes behind them");
    assert_eq!(change(list(&[2, 3, 4]), list(&[2, 3])), (1, 0, false), "the last one goes");
    assert_eq!(change(strange(), list(&[2, 3])), (1, 0, false), "what somebody put in goes");
    assert_eq!(sent(Step::Remove(RowKey::List(place(80)), strange().into())), (3, 0, false));
}

#[test]
fn a_list_that_cannot_be_written_is_refused_and_nothing_of_it_is_sent() {
    let six: List = [("fd00::2".parse().unwrap(), 8080)].into_iter().collect();
    for value in [Row::from(six), strange().into(), Element::member().into()] {
        assert_eq!(sent(Step::Create(RowKey::List(place(80)), value.clone())), (0, 0, true), "{value}");
    }
}

#[test]
fn a_step_about_a_list_is_about_each_of_its_elements() {
    let at =
        |port, index| ElementKey { key: [&*place(port).key, &[Datum::Index(index)]].concat().into(), ..place(port) };
    let step = Step::Create(RowKey::List(place(80)), list(&[2]).into());
    assert!(concerns(&step, &at(80, 0)) && concerns(&step, &at(80, 7)));
    assert!(!concerns(&step, &at(81, 0)) && !concerns(&step, &place(80)));
}

#[test]
fn lists_go_with_their_table_without_a_message() {
    let steps = [
        Step::Remove(RowKey::Table(table()), Table::default().into()),
        Step::Remove(RowKey::List(place(80)), list(&[2]).into()),
        Step::Create(RowKey::List(place(81)), list(&[2]).into()),
    ];
    assert_eq!(gone_with_table(&steps), BTreeMap::from([(1, 0)]));
}
