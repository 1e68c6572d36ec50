//! An audit in parts, between which rows are written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reconcile::{Audited, Classify, Observed, Owner, Parts, Reconciler, RetryClass, Rows, Stack, Stage, Step, Target};

const NOW: Duration = Duration::ZERO;
/// Rows of one part.
const PART: usize = 10;

#[derive(Debug)]
struct Torn;

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("torn")
    }
}

impl std::error::Error for Torn {}

impl Classify for Torn {
    fn class(&self) -> RetryClass {
        RetryClass::Retry
    }
}

#[derive(Default)]
struct Contents {
    rows: BTreeMap<u32, u32>,
    /// Listings of the whole table.
    listings: usize,
    /// The part that fails.
    torn_at: Option<usize>,
    /// The table has no listing in parts.
    is_whole_only: bool,
    /// Listings in parts that showed what is known.
    confirmed: usize,
}

/// A table in memory; clones share it. Its listings are as careless as the kernel's: they go on by position, so a row that is
/// added or removed meanwhile has another one listed twice or not at all.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Contents>>);

fn ours((key, value): (&u32, &u32)) -> (u32, Observed<u32>) {
    (*key, Observed { value: *value, owner: Owner::Ours })
}

impl Target for Memory {
    type Key = u32;
    type Value = u32;
    type Error = Torn;

    fn observe(&mut self) -> Result<Rows<u32, u32>, Torn> {
        let mut contents = self.0.lock().unwrap();
        contents.listings += 1;
        Ok(contents.rows.iter().map(ours).collect())
    }

    fn parts(&mut self) -> Result<Option<Parts<u32, u32, Torn>>, Torn> {
        let (shared, mut part) = (Arc::clone(&self.0), 0);
        if shared.lock().unwrap().is_whole_only {
            return Ok(None);
        }
        Ok(Some(Box::new(std::iter::from_fn(move || {
            let contents = shared.lock().unwrap();
            let rows: Vec<_> = contents.rows.iter().skip(part * PART).take(PART).map(ours).collect();
            part += 1;
            if contents.torn_at == Some(part) {
                return Some(Err(Torn));
            }
            (!rows.is_empty()).then_some(Ok(rows))
        }))))
    }

    fn confirm(&mut self) {
        self.0.lock().unwrap().confirmed += 1;
    }

    fn apply(&mut self, steps: &[Step<u32, u32>]) -> Vec<Result<(), Torn>> {
        let rows = &mut self.0.lock().unwrap().rows;
        for step in steps {
            match step {
                Step::Create(key, value) | Step::Change(key, _, value) => rows.insert(*key, *value),
                Step::Remove(key, _) => rows.remove(key),
            };
        }
        steps.iter().map(|_| Ok(())).collect()
    }
}

impl Memory {
    fn change(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.0.lock().unwrap());
    }

    fn listings(&self) -> usize {
        self.0.lock().unwrap().listings
    }
}

/// A table of a hundred rows that are in place.
fn table() -> (Memory, Reconciler<Memory>) {
    let memory = Memory::default();
    let mut table = Reconciler::new("memory", memory.clone());
    (0..100).for_each(|key| table.want(key * 2, Some(key)));
    table.pass(true, NOW);
    (memory, table)
}

/// The steps until the audit is over, and its outcome.
fn audit(table: &mut Reconciler<Memory>) -> (usize, Audited) {
    let mut steps = 1;
    loop {
        match table.audit() {
            Audited::More => steps += 1,
            outcome => return (steps, outcome),
        }
    }
}

#[test]
fn table_that_is_as_it_is_known_to_be_is_read_in_parts_and_not_listed_again() {
    let (memory, mut table) = table();
    assert_eq!(audit(&mut table), (12, Audited::Same));
    assert!(table.pass(true, NOW).is_idle());
    assert_eq!((memory.listings(), table.listings()), (1, 2));
    assert_eq!(memory.0.lock().unwrap().confirmed, 1);
}

#[test]
fn row_that_somebody_took_changed_or_added_has_the_table_listed_and_mended() {
    let changes: [fn(&mut Contents); 4] = [
        |contents| {
            contents.rows.remove(&0);
        },
        |contents| {
            contents.rows.remove(&198);
        },
        |contents| {
            contents.rows.insert(100, 7);
        },
        |contents| {
            contents.rows.insert(101, 7);
        },
    ];
    for change in changes {
        let (memory, mut table) = table();
        let wanted = memory.0.lock().unwrap().rows.clone();
        memory.change(change);
        assert_eq!(audit(&mut table).1, Audited::Due);
        assert_eq!(memory.0.lock().unwrap().confirmed, 0);
        assert!(!table.pass(true, NOW).is_idle());
        assert_eq!((memory.listings(), &memory.0.lock().unwrap().rows), (2, &wanted));
        assert_eq!(audit(&mut table).1, Audited::Same);
    }
}

#[test]
fn row_that_is_written_between_two_parts_is_made_at_once_and_no_difference() {
    // New, changed and removed rows, before and behind what was read.
    for (key, value) in [(1, Some(1)), (151, Some(1)), (0, Some(7)), (150, Some(7))] {
        let (memory, mut table) = table();
        (0..6).for_each(|_| assert_eq!(table.audit(), Audited::More));
        table.want(key, value);
        let pass = table.pass(true, NOW);
        assert_eq!((pass.upserted, pass.repaired, pass.observed), (1, 0, 0));
        assert_eq!(memory.0.lock().unwrap().rows.get(&key), value.as_ref());
        assert_eq!(audit(&mut table).1, Audited::Same, "{key}");
        assert_eq!(memory.listings(), 1);
    }
}

#[test]
fn listing_that_passes_over_a_row_because_another_was_written_is_made_again_in_parts() {
    let (memory, mut table) = table();
    (0..6).for_each(|_| assert_eq!(table.audit(), Audited::More));
    // All rows behind it move up: one is in no part.
    table.want(0, None);
    assert_eq!(table.pass(true, NOW).removed, 1);
    assert_eq!(audit(&mut table).1, Audited::Same);
    assert!(table.pass(true, NOW).is_idle());
    assert_eq!((memory.listings(), table.listings()), (1, 3));
    // What somebody else took meanwhile is found all the same.
    assert_eq!(table.audit(), Audited::More);
    table.want(2, Some(77));
    table.pass(true, NOW);
    memory.change(|contents| {
        contents.rows.remove(&100);
    });
    assert_eq!(audit(&mut table).1, Audited::Due);
    assert_eq!(table.pass(true, NOW).repaired, 1);
}

#[test]
fn table_that_is_written_during_every_listing_in_parts_is_listed_whole_in_the_end() {
    let (memory, mut table) = table();
    let (mut gone, mut steps) = (0, 0);
    let outcome = loop {
        match table.audit() {
            Audited::More => {}
            outcome => break outcome,
        }
        steps += 1;
        if steps % 8 == 0 {
            table.want(gone, None);
            gone += 2;
            table.pass(true, NOW);
        }
    };
    assert_eq!((outcome, memory.listings()), (Audited::Due, 1));
    assert!(table.pass(true, NOW).is_idle());
    assert_eq!((memory.listings(), steps > 30), (2, true));
}

#[test]
fn audit_ends_where_the_table_is_forgotten_torn_or_listed_whole_only() {
    let (memory, mut table) = table();
    table.audit();
    table.invalidate();
    assert_eq!(table.audit(), Audited::Due);
    assert_eq!((table.pass(true, NOW).observed, audit(&mut table).1), (1, Audited::Same));
    memory.change(|contents| contents.torn_at = Some(3));
    assert_eq!(audit(&mut table).1, Audited::Due);
    assert_eq!(table.pass(true, NOW).observed, 1);
    memory.change(|contents| contents.is_whole_only = true);
    assert_eq!(audit(&mut table), (1, Audited::Due));
    assert_eq!(table.pass(true, NOW).observed, 1);
}

#[test]
fn stack_audits_one_table_after_the_other_and_leaves_none_out() {
    let mut stack = Stack::new();
    let memories: Vec<Memory> = (0..3).map(|_| Memory::default()).collect();
    for (memory, is_whole_only) in memories.iter().zip([true, false, true]) {
        memory.change(|contents| contents.is_whole_only = is_whole_only);
        stack.push(Reconciler::new("memory", memory.clone()));
    }
    stack.pass(true, NOW);
    assert_eq!(stack.audit(), None, "none was asked for");
    stack.begin_audit();
    let mut found = Vec::new();
    while let Some(audited) = stack.audit() {
        found.push((audited, stack.pass(true, NOW).observed));
    }
    assert_eq!(found, [(Audited::Due, 1), (Audited::More, 0), (Audited::Same, 0), (Audited::Due, 1)]);
}
