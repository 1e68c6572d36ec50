//! What listings and notifications of nftables say, for fuzzing.
//!
//! Invariant: what is recognised in a rule and can be written is recognised again in what was written, and unchanged.

use std::collections::BTreeSet;

use netstate::nft::{Family, Name, Statement, TableKey};

use super::wire::{kind, name, payload};
use super::{arrival, compile, element, flowtable, foreign, forward, listing, monitor, recognise, table, trace};
use crate::socket::Frame;

/// Reads `frames` as each listing of tables, chains, rules, sets and elements does.
pub(crate) fn listings(frames: &[Frame]) {
    for (family, attributes) in of(frames, kind::NEWRULE) {
        rule(family, attributes);
    }
    for (_, attributes) in of(frames, kind::NEWCHAIN) {
        let _ = listing::read_chain(Family::Netdev, attributes);
    }
    for (_, attributes) in of(frames, kind::NEWFLOWTABLE) {
        let _ = flowtable::read(attributes);
    }
    let sets: Vec<_> = of(frames, kind::NEWSET).map(|(_, attributes)| listing::read_set(attributes)).collect();
    for (_, attributes) in of(frames, kind::NEWSETELEM) {
        for set in &sets {
            let read = element::read(set, attributes).count();
            assert!(read <= attributes.len(), "{read} elements in {} bytes", attributes.len());
            let counted = element::counted(set, attributes).count();
            assert!(counted <= attributes.len(), "{counted} counters in {} bytes", attributes.len());
            let (lists, others) = element::read_lists(set, std::iter::once(attributes));
            let listed: usize = lists.iter().map(|(_, list)| list.indexes().count()).sum();
            assert!(listed + others.len() <= attributes.len(), "{listed} values in {} bytes", attributes.len());
        }
    }
    arrival::fuzz_rules(frames);
    forward::fuzz::chains(frames);
    trace::fuzz_events(frames);
}

/// Reads a datagram as the monitor does.
pub(crate) fn notifications(datagram: &[u8]) {
    let mut changes = BTreeSet::new();
    monitor::Reader::default().read(datagram, &mut changes);
    assert!(changes.len() <= datagram.len() / 16, "{} changes in {} bytes", changes.len(), datagram.len());
}

/// Family and attributes of the messages of type `kind`.
fn of(frames: &[Frame], kind: u16) -> impl Iterator<Item = (Family, &[u8])> {
    let payloads = frames.iter().filter_map(move |frame| payload(frame, kind));
    payloads.map(|(family, attributes)| (Family::from_number(family).unwrap_or(Family::Inet), attributes))
}

fn rule(family: Family, attributes: &[u8]) {
    let read = listing::read_rule(family, attributes);
    let table = name(attributes, table::NAME).unwrap_or(Name::literal("t"));
    let _ = (foreign::denial(&TableKey { family, name: table }, attributes), foreign::foreign_rule(attributes));
    if read.statements.iter().any(|statement| matches!(statement, Statement::Unknown(_))) {
        return;
    }
    if let Ok(expressions) = compile::rule(family, &read) {
        assert_eq!(recognise::rule(family, &expressions), read.statements, "family {family}");
    }
}
