//! Properties of the whole loop over an in-memory table that fails on demand.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use reconcile::{Classify, Gate, Observed, Owner, Reconciler, RetryClass, Stage, State, Step, Target, pass};

#[derive(Debug)]
struct Errno(i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

impl Classify for Errno {
    fn class(&self) -> RetryClass {
        match self.0 % 3 {
            0 => RetryClass::Retry,
            1 => RetryClass::Wait,
            _ => RetryClass::Refuse,
        }
    }
}

/// A table that answers each operation with the next planned error, if there is one.
#[derive(Clone, Default)]
struct Memory {
    rows: Rc<RefCell<BTreeMap<u8, Observed<u8>>>>,
    errors: Rc<RefCell<VecDeque<Option<i32>>>>,
    log: Rc<RefCell<Vec<String>>>,
    name: &'static str,
    steps: Rc<RefCell<usize>>,
}

impl Memory {
    fn fail(&self) -> Result<(), Errno> {
        match self.errors.borrow_mut().pop_front().flatten() {
            Some(errno) => Err(Errno(errno)),
            None => Ok(()),
        }
    }
}

impl Target for Memory {
    type Key = u8;
    type Value = u8;
    type Error = Errno;

    fn observe(&mut self) -> Result<BTreeMap<u8, Observed<u8>>, Errno> {
        self.fail()?;
        Ok(self.rows.borrow().clone())
    }

    fn apply(&mut self, steps: &[Step<u8, u8>]) -> Vec<Result<(), Errno>> {
        steps
            .iter()
            .map(|step| {
                *self.steps.borrow_mut() += 1;
                self.fail()?;
                self.log.borrow_mut().push(format!("{} {}", self.name, describe(step)));
                match step {
                    Step::Create(k, v) | Step::Change(k, _, v) => {
                        self.rows.borrow_mut().insert(*k, Observed { value: *v, owner: Owner::Ours });
                    }
                    Step::Remove(k, _) => {
                        self.rows.borrow_mut().remove(k);
                    }
                }
                Ok(())
            })
            .collect()
    }
}

fn describe(step: &Step<u8, u8>) -> &'static str {
    match step {
        Step::Create(..) => "create",
        Step::Change(..) => "change",
        Step::Remove(..) => "remove",
    }
}

fn open_gate() -> Gate {
    Gate::new(Vec::<String>::new())
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
        memory.rows.replace(before.clone());
        memory.errors.replace(errors.into());
        let mut table = Reconciler::new("table", memory.clone());
        table.want_all(desired.clone());
        let mut now = Duration::ZERO;
        let mut turns = 0;
        loop {
            pass(&mut [&mut table], &open_gate(), now);
            match table.next_try() {
                Some(next) => now = next,
                None => break,
            }
            turns += 1;
            prop_assert!(turns < 100, "does not converge");
        }
        prop_assert!(table.status().is_done());
        let after = memory.rows.borrow().clone();
        for (key, want) in &desired {
            prop_assert_eq!(&after[key].value, want);
        }
        for (key, row) in &after {
            if !desired.contains_key(key) {
                prop_assert_eq!(Some(row), before.get(key));
                prop_assert_eq!(row.owner, Owner::Foreign);
            }
        }
        memory.errors.borrow_mut().clear();
        table.invalidate();
        let again = pass(&mut [&mut table], &open_gate(), now);
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
        pass(&mut [&mut table], &open_gate(), Duration::ZERO);
        let other = Memory { name: "other", ..Memory::default() };
        let mut table = Reconciler::new("other", other.clone());
        for (key, value) in &desired {
            table.want(*key, Some(*value));
        }
        pass(&mut [&mut table], &open_gate(), Duration::ZERO);
        prop_assert_eq!(one.rows.borrow().clone(), other.rows.borrow().clone());
    }
}

#[test]
fn closed_gate_lets_creates_through_and_holds_removals_back() {
    let memory = Memory::default();
    memory.rows.borrow_mut().insert(1, Observed { value: 1, owner: Owner::Ours });
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(2, Some(2));
    let mut gate = Gate::new(["leases"]);
    let first = pass(&mut [&mut table], &gate, Duration::ZERO);
    assert_eq!((first.upserted, first.removed), (1, 0));
    gate.complete("leases");
    let second = pass(&mut [&mut table], &gate, Duration::ZERO);
    assert_eq!((second.upserted, second.removed), (0, 1));
    assert_eq!(memory.rows.borrow().keys().copied().collect::<Vec<_>>(), [2]);
}

#[test]
fn creates_run_forward_and_removals_backward() {
    let log = Rc::new(RefCell::new(Vec::new()));
    let table = |name| {
        let memory = Memory { name, log: Rc::clone(&log), ..Memory::default() };
        memory.rows.borrow_mut().insert(1, Observed { value: 1, owner: Owner::Ours });
        let mut table = Reconciler::new(name, memory);
        table.want(2, Some(2));
        table
    };
    let (mut neighbours, mut routes) = (table("neighbour"), table("route"));
    pass(&mut [&mut neighbours, &mut routes], &open_gate(), Duration::ZERO);
    assert_eq!(*log.borrow(), ["neighbour create", "route create", "route remove", "neighbour remove"]);
}

#[test]
fn one_changed_row_costs_one_step_and_no_listing() {
    let memory = Memory::default();
    let mut table = Reconciler::new("real servers", memory.clone());
    table.want_all((0..200).map(|key| (key, 1)).collect());
    pass(&mut [&mut table], &open_gate(), Duration::ZERO);
    *memory.steps.borrow_mut() = 0;
    table.want(100, Some(2));
    let change = pass(&mut [&mut table], &open_gate(), Duration::ZERO);
    assert_eq!((change.observed, change.upserted, *memory.steps.borrow()), (0, 1, 1));
}

#[test]
fn a_failed_row_blocks_no_other_and_waits_for_its_own_back_off() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want_all(BTreeMap::from([(1, 1), (2, 2)]));
    memory.errors.replace(VecDeque::from([None, Some(3)]));
    let first = pass(&mut [&mut table], &open_gate(), Duration::ZERO);
    assert_eq!((first.upserted, first.failed), (1, 1));
    let status = table.status();
    assert_eq!((status.desired, status.done, status.open.len()), (2, 1, 1));
    assert!(matches!(&status.open[0].state, State::Failed { times: 1, reason, .. } if reason == "errno 3"));
    let early = pass(&mut [&mut table], &open_gate(), Duration::from_millis(99));
    assert!(early.is_idle());
    let due = pass(&mut [&mut table], &open_gate(), Duration::from_millis(100));
    assert_eq!(due.upserted, 1);
    assert!(table.status().is_done());
}

#[test]
fn a_row_that_somebody_deleted_is_back_after_the_notification() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(1, Some(1));
    pass(&mut [&mut table], &open_gate(), Duration::ZERO);
    memory.rows.borrow_mut().clear();
    table.invalidate();
    let repair = pass(&mut [&mut table], &open_gate(), Duration::ZERO);
    assert_eq!((repair.observed, repair.upserted), (1, 1));
}

#[test]
fn a_waiting_row_is_tried_at_once_when_the_kernel_reports_a_change() {
    let memory = Memory::default();
    let mut table = Reconciler::new("routes", memory.clone());
    table.want(1, Some(1));
    memory.errors.replace(VecDeque::from([None, Some(4)]));
    pass(&mut [&mut table], &open_gate(), Duration::ZERO);
    assert_eq!(table.next_try(), Some(Duration::from_millis(100)));
    table.invalidate();
    assert_eq!(pass(&mut [&mut table], &open_gate(), Duration::from_millis(1)).upserted, 1);
}
