//! Properties of the whole loop over an in-memory table that fails on demand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proptest::prelude::*;
use reconcile::{Classify, Gate, Observed, Owner, Reconciler, RetryClass, SHOWN, Stack, Stage, State, Step, Target};

#[derive(Debug)]
struct Errno(i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

impl std::error::Error for Errno {}

impl Classify for Errno {
    fn class(&self) -> RetryClass {
        match self.0 % 3 {
            0 => RetryClass::Retry,
            1 => RetryClass::Wait,
            _ => RetryClass::Refuse,
        }
    }
}

/// A table that fails each operation with the next planned error, if there is one.
#[derive(Clone, Default)]
struct Memory {
    contents: Arc<Mutex<Contents>>,
    log: Arc<Mutex<Vec<String>>>,
    name: &'static str,
}

#[derive(Default)]
struct Contents {
    rows: BTreeMap<u8, Observed<u8>>,
    errors: VecDeque<Option<i32>>,
    steps: usize,
}

impl Memory {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    fn keys(&self) -> Vec<u8> {
        self.contents().rows.keys().copied().collect()
    }

    fn fail(&self) -> Result<(), Errno> {
        match self.contents().errors.pop_front().flatten() {
            Some(errno) => Err(Errno(errno)),
            None => Ok(()),
        }
    }
}

fn ours(value: u8) -> Observed<u8> {
    Observed { value, owner: Owner::Ours }
}

impl Target for Memory {
    type Key = u8;
    type Value = u8;
    type Error = Errno;

    fn observe(&mut self) -> Result<BTreeMap<u8, Observed<u8>>, Errno> {
        self.fail()?;
        Ok(self.contents().rows.clone())
    }

    fn apply(&mut self, steps: &[Step<u8, u8>]) -> Vec<Result<(), Errno>> {
        let carry_out = |step: &Step<u8, u8>| {
            self.contents().steps += 1;
            self.fail()?;
            self.log.lock().unwrap().push(format!("{} {}", self.name, describe(step)));
            match step {
                Step::Create(k, v) | Step::Change(k, _, v) => self.contents().rows.insert(*k, ours(*v)),
                Step::Remove(k, _) => self.contents().rows.remove(k),
            };
            Ok(())
        };
        steps.iter().map(carry_out).collect()
    }
}

fn describe(step: &Step<u8, u8>) -> &'static str {
    match step {
        Step::Create(..) => "create",
        Step::Change(..) => "change",
        Step::Remove(..) => "remove",
    }
}

fn rows() -> impl Strategy<Value = BTreeMap<u8, Observed<u8>>> {
    let row = (0u8..4, any::<bool>())
        .prop_map(|(value, ours)| Observed { value, owner: if ours { Owner::Ours } else { Owner::Foreign } });
    prop::collection::btree_map(0u8..40, row, 0..30)
}

proptest! {
    #[test]
    fn any_errno_at_any_step_converges_later_and_a_second_pass_is_empty(
        before in rows(),
        desired in prop::collection::btree_map(0u8..40, 0u8..4, 0..30),
        errors in prop::collection::vec(prop::option::of(1i32..130), 0..40),
    ) {
        let memory = Memory { name: "table", ..Memory::default() };
        memory.contents().rows = before.clone();
        memory.contents().errors = errors.into();
        let mut table = Reconciler::new("table", memory.clone());
        table.want_all(desired.clone());
        let mut now = Duration::ZERO;
        let mut turns = 0;
        loop {
            table.pass(true, now);
            match table.next_try() {
                Some(next) => now = next,
                None => break,
            }
            turns += 1;
            prop_assert!(turns < 100, "does not converge");
        }
        prop_assert!(table.status().is_done());
        let after = memory.contents().rows.clone();
        let own = after.values().filter(|row| row.owner == Owner::Ours).count();
        prop_assert_eq!(table.counts().actual, Some(own));
        for (key, want) in &desired {
            prop_assert_eq!(&after[key].value, want);
        }
        for (key, row) in &after {
            if !desired.contains_key(key) {
                prop_assert_eq!(Some(row), before.get(key));
                prop_assert_eq!(row.owner, Owner::Foreign);
            }
        }
        memory.contents().errors.clear();
        table.invalidate();
        let again = table.pass(true, now);
        prop_assert!(again.is_idle());
    }

    #[test]
    fn input_order_does_not_matter(
        desired in prop::collection::vec((0u8..40, 0u8..4), 0..30),
    ) {
        let last: BTreeMap<u8, u8> = desired.iter().copied().collect();
        let one = Memory { name: "one", ..Memory::default() };
        let mut table = Reconciler::new("one", one.clone());
        for (key, value) in last.iter().rev() {
            table.want(*key, Some(*value));
        }
        table.pass(true, Duration::ZERO);
        let other = Memory { name: "other", ..Memory::default() };
        let mut table = Reconciler::new("other", other.clone());
        for (key, value) in &desired {
            table.want(*key, Some(*value));
        }
        table.pass(true, Duration::ZERO);
        prop_assert_eq!(&one.contents().rows, &other.contents().rows);
    }

    #[test]
    fn rows_desired_at_once_are_as_those_desired_one_by_one(
        before in prop::collection::btree_map(any::<u8>(), 0u8..4, 0..20),
        changes in prop::collection::btree_map(any::<u8>(), prop::option::of(0u8..4), 0..40),
    ) {
        let tables = ["one by one", "at once"].map(|name| {
            let memory = Memory { name, ..Memory::default() };
            let mut table = Reconciler::new(name, memory.clone());
            table.want_all(before.clone());
            table.pass(true, Duration::ZERO);
            (table, memory)
        });
        let [(mut one, of_one), (mut all, of_all)] = tables;
        changes.iter().for_each(|(key, value)| one.want(*key, *value));
        all.want_each(changes);
        prop_assert_eq!(one.desired(), all.desired());
        prop_assert_eq!(one.status(), all.status());
        prop_assert_eq!(one.pass(true, Duration::ZERO), all.pass(true, Duration::ZERO));
        prop_assert_eq!(one.lines(), all.lines());
        prop_assert_eq!(one.counts(), all.counts());
        prop_assert_eq!(&of_one.contents().rows, &of_all.contents().rows);
    }
}

#[test]
fn closed_gate_lets_creates_through_and_holds_removals_back() {
    let memory = Memory::default();
    memory.contents().rows.insert(1, ours(1));
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(2, Some(2));
    let mut gate = Gate::new(["leases"]);
    let first = table.pass(gate.is_open(), Duration::ZERO);
    assert_eq!((first.upserted, first.removed), (1, 0));
    gate.complete(&"leases");
    let second = table.pass(gate.is_open(), Duration::ZERO);
    assert_eq!((second.upserted, second.removed), (0, 1));
    assert_eq!(memory.keys(), [2]);
}

/// A table in which a desired row takes the place of one with the next lower even key.
#[derive(Clone, Default)]
struct Pairs(Memory);

impl Target for Pairs {
    type Key = u8;
    type Value = u8;
    type Error = Errno;

    fn observe(&mut self) -> Result<BTreeMap<u8, Observed<u8>>, Errno> {
        self.0.observe()
    }

    fn successor<'a>(&self, key: &u8, desired: &'a BTreeMap<u8, u8>) -> Option<&'a u8> {
        desired.range(key + 1..=key | 1).map(|(key, _)| key).next()
    }

    fn apply(&mut self, steps: &[Step<u8, u8>]) -> Vec<Result<(), Errno>> {
        self.0.apply(steps)
    }
}

#[test]
fn row_that_a_desired_one_takes_the_place_of_goes_before_the_gate_is_open_but_not_before_that_one_is_there() {
    let pairs = Pairs(Memory { name: "pairs", ..Memory::default() });
    pairs.0.contents().rows =
        BTreeMap::from([(2, ours(1)), (4, ours(1)), (6, Observed { value: 1, owner: Owner::Foreign })]);
    let mut stack = Stack::new();
    let table = stack.push(Reconciler::new("routes", pairs.clone()));
    stack.pass(false, Duration::ZERO);
    assert_eq!(pairs.0.keys(), [2, 4, 6], "nobody has said anything");
    pairs.0.contents().errors = VecDeque::from([Some(3)]);
    stack.want(table, 3, Some(1));
    stack.want(table, 7, Some(1));
    let refused = stack.pass(false, Duration::ZERO);
    assert_eq!((refused.failed, refused.upserted, refused.removed), (1, 1, 0), "the successor of 2 was refused");
    let next = stack.next_try().unwrap();
    let replaced = stack.pass(false, next);
    assert_eq!((replaced.upserted, replaced.removed), (1, 1));
    assert_eq!(pairs.0.keys(), [3, 4, 6, 7], "what nobody took the place of stays, and what is somebody else's");
    assert_eq!(pairs.0.log.lock().unwrap()[1..], ["pairs create", "pairs remove"], "the successor first");
    assert_eq!(stack.pass(true, next).removed, 1);
    assert_eq!(pairs.0.keys(), [3, 6, 7]);
}

#[test]
fn one_changed_row_costs_one_step_and_no_listing() {
    let memory = Memory::default();
    let mut table = Reconciler::new("real servers", memory.clone());
    table.want_all((0..200).map(|key| (key, 1)).collect());
    table.pass(true, Duration::ZERO);
    memory.contents().steps = 0;
    table.want(100, Some(2));
    let change = table.pass(true, Duration::ZERO);
    assert_eq!((change.observed, change.upserted, memory.contents().steps), (0, 1, 1));
}

/// A key that counts how often keys are compared and printed.
#[derive(Debug, Clone, Copy)]
struct Counted(u32);

thread_local! {
    static COMPARED: Cell<usize> = const { Cell::new(0) };
    static PRINTED: Cell<usize> = const { Cell::new(0) };
}

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> Ordering {
        COMPARED.set(COMPARED.get() + 1);
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Counted {}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PRINTED.set(PRINTED.get() + 1);
        self.0.fmt(f)
    }
}

/// A table that does everything and refuses the row 0.
struct Many;

impl Target for Many {
    type Key = Counted;
    type Value = u8;
    type Error = Errno;

    fn observe(&mut self) -> Result<BTreeMap<Counted, Observed<u8>>, Errno> {
        Ok(BTreeMap::new())
    }

    fn apply(&mut self, steps: &[Step<Counted, u8>]) -> Vec<Result<(), Errno>> {
        steps.iter().map(|step| if step.key().0 == 0 { Err(Errno(22)) } else { Ok(()) }).collect()
    }
}

#[test]
fn one_changed_row_and_its_report_cost_the_same_among_many_as_among_few() {
    let compared = |rows: u32| {
        let mut table = Reconciler::new("routes", Many);
        table.want_all((0..rows).map(|key| (Counted(key), 1)).collect());
        table.pass(true, Duration::ZERO);
        COMPARED.set(0);
        table.want(Counted(rows / 2), Some(2));
        let pass = table.pass(true, Duration::ZERO);
        let (status, counts) = (table.status(), table.counts());
        let expected = rows as usize;
        assert_eq!((pass.upserted, status.open.len(), status.done), (1, 1, expected - 1));
        assert_eq!(
            (counts.desired, counts.done, counts.actual, counts.failed),
            (expected, expected - 1, Some(expected - 1), 1)
        );
        COMPARED.get()
    };
    let (few, many) = (compared(100), compared(20_000));
    assert!(many < 4 * few, "{few} comparisons of keys among 100 rows, {many} among 20,000");
}

#[test]
fn a_status_prints_what_it_shows_and_the_rows_that_failed_first() {
    let mut table = Reconciler::new("rows", Many);
    table.want_all((1..=20_000).map(|key| (Counted(key), 1)).collect());
    PRINTED.set(0);
    let status = table.status();
    assert_eq!((status.open.len(), status.open_count, status.is_done()), (SHOWN, 20_000, false));
    assert!(PRINTED.get() <= SHOWN, "{} keys printed", PRINTED.get());
    table.want(Counted(0), Some(1));
    table.pass(true, Duration::ZERO);
    (1..=200).for_each(|key| table.want(Counted(key), None));
    PRINTED.set(0);
    let (status, failed) = (table.status(), table.failed());
    assert_eq!((status.open.len(), status.open_count), (SHOWN, 201));
    assert_eq!(failed, status.open[..1], "the one that failed, then those that should be gone");
    assert_eq!(failed[0].key, "0");
    assert!(PRINTED.get() <= SHOWN + 1, "{} keys printed", PRINTED.get());
    let shown = table.status().open.into_iter().map(|row| row.key);
    assert!(shown.skip(1).eq((1..100).map(|key| key.to_string())));
}

#[test]
fn a_failed_row_blocks_no_other_and_waits_for_its_own_back_off() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want_all(BTreeMap::from([(1, 1), (2, 2)]));
    memory.contents().errors = VecDeque::from([None, Some(3)]);
    let first = table.pass(true, Duration::ZERO);
    assert_eq!((first.upserted, first.failed), (1, 1));
    let status = table.status();
    assert_eq!((status.desired, status.done, status.open.len()), (2, 1, 1));
    assert!(matches!(&status.open[0].state, State::Failed { times: 1, reason, .. } if reason == "errno 3"));
    let early = table.pass(true, Duration::from_millis(99));
    assert!(early.is_idle());
    let due = table.pass(true, Duration::from_millis(100));
    assert_eq!(due.upserted, 1);
    assert!(table.status().is_done());
}

#[test]
fn a_row_that_somebody_deleted_is_back_after_the_notification() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(1, Some(1));
    table.pass(true, Duration::ZERO);
    memory.contents().rows.clear();
    table.invalidate();
    let repair = table.pass(true, Duration::ZERO);
    assert_eq!((repair.observed, repair.upserted, repair.repaired), (1, 1, 1));
}

#[test]
fn only_what_somebody_else_changed_counts_as_a_repair() {
    let memory = Memory::default();
    memory.contents().rows.insert(9, ours(9));
    let mut table = Reconciler::new("routes", memory.clone());
    table.want_all((0..4).map(|key| (key, 1)).collect());
    memory.contents().errors = VecDeque::from([None, Some(3)]);
    table.pass(true, Duration::ZERO);
    table.invalidate();
    let retried = table.pass(true, Duration::from_secs(1));
    assert_eq!((retried.upserted, retried.repaired), (1, 0), "a row that failed before was never in place");
    table.want(1, Some(2));
    table.invalidate();
    memory.contents().rows.insert(2, ours(7));
    let pass = table.pass(true, Duration::from_secs(2));
    assert_eq!((pass.upserted, pass.repaired), (2, 1), "a row desired otherwise is no repair");
    let counts = table.counts();
    assert_eq!((counts.desired, counts.done, counts.actual, counts.failed), (4, 4, Some(4), 0));
    assert_eq!((counts.listings, counts.upserted, counts.repaired), (3, 6, 1));
    assert_eq!((counts.removed, counts.failures), (1, 1));
}

#[test]
fn a_row_that_is_corrected_is_made_again_without_a_listing() {
    let memory = Memory::default();
    let mut table = Reconciler::new("servers", memory.clone());
    table.want_all(BTreeMap::from([(1, 1), (2, 2)]));
    table.pass(true, Duration::ZERO);
    memory.contents().rows.remove(&1);
    memory.contents().rows.insert(3, ours(3));
    table.correct(1, None);
    table.correct(2, Some(ours(2)));
    table.correct(3, Some(ours(3)));
    let pass = table.pass(true, Duration::ZERO);
    assert_eq!((pass.observed, pass.upserted, pass.repaired, pass.removed), (0, 1, 1, 1));
    assert_eq!(memory.keys(), [1, 2]);
}

#[test]
fn lines_show_what_is_desired_beside_what_is() {
    let memory = Memory::default();
    memory.contents().rows.insert(3, Observed { value: 3, owner: Owner::Foreign });
    let mut table = Reconciler::new("routes", memory.clone());
    table.want_all(BTreeMap::from([(1, 1), (2, 2)]));
    memory.contents().errors = VecDeque::from([None, None, Some(3)]);
    table.pass(true, Duration::ZERO);
    let text = |line: &reconcile::Line| {
        let actual = line.actual.as_ref().map_or("-", |(value, _)| value.as_str());
        format!("{} {} {actual} {}", line.key, line.desired.as_deref().unwrap_or("-"), line.state == State::Done)
    };
    assert_eq!(table.lines().iter().map(text).collect::<Vec<_>>(), ["1 1 1 true", "2 2 - false", "3 - 3 true"]);
}

#[test]
fn a_waiting_row_is_tried_at_once_when_the_kernel_reports_a_change() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(1, Some(1));
    memory.contents().errors = VecDeque::from([None, Some(4)]);
    table.pass(true, Duration::ZERO);
    assert_eq!(table.next_try(), Some(Duration::from_millis(100)));
    table.invalidate();
    assert_eq!(table.pass(true, Duration::from_millis(1)).upserted, 1);
}

#[test]
fn a_waiting_row_is_tried_again_without_a_listing() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(1, Some(1));
    memory.contents().errors = VecDeque::from([None, Some(4)]);
    table.pass(true, Duration::ZERO);
    let mut stack = Stack::new();
    let routes = stack.push(table);
    stack.retry();
    let pass = stack.pass(true, Duration::from_millis(1));
    assert_eq!((pass.upserted, pass.observed), (1, 0));
    assert_eq!(stack.get(routes).unwrap().listings(), 1);
}
