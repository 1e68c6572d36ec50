//! The table as a stack of tables, a status page and a metric see it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::steps::Which;
use super::{Reconciler, Totals};
use crate::pass::Pass;
use crate::stage::{Audited, Stage};
use crate::status::{Counts, Line, Row, SHOWN, State, TableStatus};
use crate::target::{RetryClass, Target};

impl<T: Target> Stage for Reconciler<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn upsert(&mut self, now: Duration) -> Pass {
        let mut pass = Pass::default();
        if self.observe(now, &mut pass) {
            self.carry_out(now, Which::Desired, &mut pass);
        }
        pass
    }

    fn remove(&mut self, now: Duration) -> Pass {
        let mut pass = Pass::default();
        if self.mirror.is_some() {
            self.carry_out(now, Which::Undesired, &mut pass);
        }
        pass
    }

    fn remove_replaced(&mut self, now: Duration) -> Pass {
        let mut pass = Pass::default();
        if self.mirror.is_some() {
            self.carry_out(now, Which::Replaced, &mut pass);
        }
        pass
    }

    fn invalidate(&mut self) {
        self.mirror = None;
        self.audit = None;
        self.retry();
    }

    fn audit(&mut self) -> Audited {
        let audited = self.audit_part();
        if audited == Audited::Due {
            self.invalidate();
        }
        audited
    }

    fn retry(&mut self) {
        for failure in self.failures.values_mut().filter(|failure| failure.class == RetryClass::Wait) {
            failure.next = Duration::ZERO;
        }
    }

    fn keep_written(&mut self, keep: bool) {
        self.keeps_written = keep;
    }

    fn next_try(&self) -> Option<Duration> {
        let rows = self.failures.values().map(|failure| failure.next);
        let contested = self.taken.iter().filter_map(|key| self.contests.get(key)).map(|contest| contest.next());
        rows.chain(contested).chain(self.observe_failure.as_ref().map(|failure| failure.next)).min()
    }

    fn status(&self) -> TableStatus {
        let observe_error = self.observe_failure.as_ref().map(|failure| failure.reason.clone());
        let failed = self.not_in_place().filter(|key| self.has_failed(key));
        let pending = self.not_in_place().filter(|key| !self.has_failed(key));
        let open = failed.chain(pending).take(SHOWN).map(|key| self.row(key)).collect();
        let open_count = self.not_in_place().count();
        TableStatus { desired: self.desired.len(), done: self.done(), open, open_count, observe_error }
    }

    fn failed(&self) -> Vec<Row> {
        self.not_in_place().filter(|key| self.has_failed(key)).map(|key| self.row(key)).collect()
    }

    fn counts(&self) -> Counts {
        let Totals { listings, upserted, repaired, removed, failures } = self.totals;
        Counts {
            desired: self.desired.len(),
            done: self.done(),
            actual: self.mirror.as_ref().map(|_| self.ours),
            failed: self.failures.len(),
            listings,
            upserted,
            repaired,
            removed,
            failures,
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mirror = self.mirror.as_ref();
        let keys: BTreeSet<&T::Key> = self.desired.keys().chain(mirror.into_iter().flat_map(BTreeMap::keys)).collect();
        let line = |key: &T::Key| Line {
            key: key.to_string(),
            desired: self.desired.get(key).map(ToString::to_string),
            actual: mirror.and_then(|rows| rows.get(key)).map(|row| (row.value.to_string(), row.owner)),
            state: if self.is_open(key) { self.state(key) } else { State::Done },
        };
        keys.into_iter().map(line).collect()
    }
}
