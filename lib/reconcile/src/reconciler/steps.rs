//! From dirty rows to steps, and what became of them.
//!
//! Invariant: a step that fails leaves its row dirty, with the time of the next try, and in the mirror what there is of it; one that was
//! carried out is in the mirror.

use std::fmt;
use std::time::Duration;

use super::contest::PEACE;
use super::{Reconciler, RowFailure, take_out};
use crate::diff::{needs_step, step};
use crate::pass::{Done, Failure, Pass, Written};
use crate::retry;
use crate::target::{Observed, Owner, Step, Target};
use crate::walk::Walk;

/// Which of the rows that differ get their steps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that are desired.
    Desired,
    /// Those that nobody desires, and that a desired row has taken the place of.
    Replaced,
    /// Those that nobody desires.
    Undesired,
}

impl<T: Target> Reconciler<T> {
    /// Carries out the steps that are due.
    pub(super) fn carry_out(&mut self, now: Duration, which: Which, pass: &mut Pass) {
        let due = self.due_rows(now, which);
        if due.is_empty() {
            return;
        }
        self.contests.retain(|_, contest| now.saturating_sub(contest.next()) < PEACE);
        // Lists that grow are copied, and leave holes as large as they were.
        let mut made = Vec::with_capacity(due.len());
        for keys in due.chunks(self.target.batch().max(1)) {
            let steps = self.steps(keys, Walk::<T::Key, T::Value>::pays(due.len(), self.desired.len()));
            self.run(steps, now, pass, &mut made);
        }
        self.put_made(made);
    }

    /// What the rows under `keys` need, which are in order; `many` of those that are desired are due.
    fn steps(&self, keys: &[T::Key], many: bool) -> Vec<Step<T::Key, T::Value>> {
        let (Some(mirror), Some(first)) = (&self.mirror, keys.first()) else { return Vec::new() };
        let (mut want, mut have) = (Walk::from(&self.desired, first, many), Walk::from(mirror, first, many));
        let satisfies = |have: &T::Value, want: &T::Value| self.target.satisfies(have, want);
        keys.iter().filter_map(|key| step(key, want.get(key), have.get(key), satisfies)).collect()
    }

    /// Takes rows that were created, in the order of their keys, into the mirror: they are dirty no more.
    fn put_made(&mut self, made: Vec<(T::Key, Observed<T::Value>)>) {
        let Some(mirror) = &mut self.mirror else { return };
        self.ours += made.len();
        take_out(&mut self.dirty, made.iter().map(|(key, _)| key));
        if Walk::<T::Key, ()>::pays(made.len(), mirror.len()) {
            // Built from a sorted list, the mirror has full nodes.
            mirror.append(&mut made.into_iter().collect());
        } else {
            mirror.extend(made);
        }
    }

    /// Rows that need a step now. Those that need none are not dirty any more.
    fn due_rows(&mut self, now: Duration, which: Which) -> Vec<T::Key> {
        let Some(mirror) = &self.mirror else { return Vec::new() };
        let keys = if which == Which::Desired { &self.dirty } else { &self.surplus };
        let (mut rows, mut settled) = (Vec::with_capacity(keys.len()), Vec::new());
        let (mut desired, mut actual) = (Walk::along(&self.desired, keys.len()), Walk::along(mirror, keys.len()));
        for key in keys {
            if which == Which::Replaced && !self.is_replaced(key) {
                continue;
            }
            let want = if which == Which::Desired { desired.get(key) } else { None };
            if !needs_step(want, actual.get(key), |have, want| self.target.satisfies(have, want)) {
                settled.push(key.clone());
            } else if self.due(key, now) {
                rows.push(key.clone());
            }
        }
        for key in settled {
            if which == Which::Desired {
                self.dirty.remove(&key);
            } else {
                self.surplus.remove(&key);
            }
            self.taken.remove(&key);
            self.failures.remove(&key);
        }
        rows
    }

    /// True when a desired row is in place that takes the place of `key`.
    fn is_replaced(&self, key: &T::Key) -> bool {
        self.target.successor(key, &self.desired).is_some_and(|successor| self.holds(successor))
    }

    /// Carries out `steps`; rows that they create go to `made`, on their way into the mirror.
    fn run(
        &mut self,
        steps: Vec<Step<T::Key, T::Value>>,
        now: Duration,
        pass: &mut Pass,
        made: &mut Vec<(T::Key, Observed<T::Value>)>,
    ) {
        steps.iter().for_each(|step| self.touch(step.key()));
        let results = self.target.apply(&steps);
        debug_assert_eq!(results.len(), steps.len(), "{}: a target returns a result for every step", self.name);
        for (step, result) in steps.into_iter().zip(results) {
            match result {
                Ok(()) => self.record_success(step, now, pass, made),
                Err(error) => self.record_failure(step.key(), &error, now, pass),
            }
        }
    }

    /// Notes what a step did; a row that it created goes to `made`, on its way out of the dirty ones and into the mirror.
    fn record_success(
        &mut self,
        step: Step<T::Key, T::Value>,
        now: Duration,
        pass: &mut Pass,
        made: &mut Vec<(T::Key, Observed<T::Value>)>,
    ) {
        let key = step.key();
        self.failures.remove(key);
        let is_taken = !matches!(step, Step::Remove(..)) && self.taken.remove(key);
        if !matches!(step, Step::Remove(..)) {
            pass.upserted += 1;
            self.totals.upserted += 1;
            if is_taken {
                self.repaired(key, now, pass);
            }
        }
        if self.keeps_written {
            pass.written.push(written(self.name, &step, is_taken));
        }
        match step {
            Step::Create(key, value) => made.push((key, Observed { value, owner: Owner::Ours })),
            Step::Change(key, _, value) => {
                self.dirty.remove(&key);
                self.mirror_row(&key, Some(Observed { value, owner: Owner::Ours }));
            }
            Step::Remove(key, _) => {
                self.surplus.remove(&key);
                self.mirror_row(&key, None);
                pass.removed += 1;
                self.totals.removed += 1;
            }
        }
    }

    fn record_failure(&mut self, key: &T::Key, error: &T::Error, now: Duration, pass: &mut Pass) {
        let (times, since) = self.failures.get(key).map_or((1, now), |failure| (failure.times + 1, failure.since));
        let failure = Failure { times, ..Failure::new(self.name, error) };
        let (class, reason) = (failure.class, failure.reason.clone());
        self.totals.failures += 1;
        pass.fail(failure);
        if let Some(mirror) = &self.mirror {
            let left = self.target.left(key, mirror.get(key).cloned());
            self.mirror_row(key, left);
        }
        let next = now + retry::delay(times, class);
        self.failures.insert(key.clone(), RowFailure { class, reason, times, since, next });
    }
}

/// What `step` did in the table `table`, for an operator.
fn written<K: fmt::Display, V: fmt::Display>(table: &'static str, step: &Step<K, V>, is_taken: bool) -> Written {
    let (value, done) = match step {
        Step::Create(_, value) => (value, Done::Created),
        Step::Change(_, _, value) => (value, Done::Changed),
        Step::Remove(_, value) => (value, Done::Removed),
    };
    let done = if is_taken { Done::Repaired } else { done };
    Written { table, row: step.key().to_string(), value: value.to_string(), done }
}
