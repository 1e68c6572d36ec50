//! netd's tables as the work of the thread that owns them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::metrics::Metrics;
use daemon::status::TableRows;
use daemon::worker::{Cause, PassLog, Took, Work};
use reconcile::{Audited, Counts, Gate, Pass, TableStatus};

use super::LEASES;
use super::notification::Notification;
use super::planning::Planned;
use super::tables::Stages;

/// The shortest time between two listings of one table that notifications ask for.
const LISTING_PAUSE: Duration = Duration::from_millis(300);

/// Time between audits, which list every table whether somebody has reported something or not.
const AUDIT: Duration = Duration::from_secs(60);

/// What the thread reports after a pass.
#[derive(Debug)]
pub(super) struct Report {
    /// The last plan that it has worked on.
    pub revision: u64,
    /// Where each table stands.
    pub tables: BTreeMap<&'static str, TableStatus>,
    /// The same in numbers.
    pub counts: BTreeMap<&'static str, Counts>,
    /// What an operator should look into.
    pub warnings: Vec<String>,
}

/// See the module's text.
pub(super) struct TableWork {
    stages: Stages,
    gate: Gate<&'static str>,
    /// The last plan; 0 before the first.
    revision: u64,
    metrics: Arc<Metrics>,
    log: PassLog,
    /// A table could not be listed when the last report was made.
    unread: bool,
}

impl TableWork {
    pub(super) fn new(stages: Stages, metrics: Arc<Metrics>) -> Self {
        Self { stages, gate: Gate::new([LEASES]), revision: 0, metrics, log: PassLog::default(), unread: false }
    }
}

impl Work for TableWork {
    type Order = Planned;
    type Change = Notification;
    type Report = Report;

    fn merge(waiting: &mut Planned, next: Planned) -> Option<Planned> {
        waiting.extend(next);
        None
    }

    fn since(planned: &Planned) -> Option<Instant> {
        planned.since.map(tokio::time::Instant::into_std)
    }

    fn min_interval(_: Notification) -> Duration {
        LISTING_PAUSE
    }

    fn audit_period(&self, _: Duration) -> Duration {
        AUDIT
    }

    fn take(&mut self, planned: Planned, _: Duration) {
        self.stages.want(planned.changes);
        self.revision = planned.revision;
        if planned.complete {
            self.gate.complete(&LEASES);
        }
    }

    /// Before the first plan nothing is desired, and everything of ours would look superfluous.
    fn is_begun(&self) -> bool {
        self.revision > 0
    }

    fn invalidate(&mut self, change: Notification) {
        self.stages.invalidate(change);
    }

    fn invalidate_all(&mut self) {
        self.stages.invalidate_all();
    }

    fn begin_audit(&mut self) {
        self.stages.begin_audit();
    }

    fn audit(&mut self) -> Option<Audited> {
        self.stages.audit()
    }

    fn pass(&mut self, _: Cause, now: Duration) -> Pass {
        self.stages.pass(&self.gate, now)
    }

    fn next(&self) -> Option<Duration> {
        self.stages.next_try()
    }

    fn report(&mut self, cause: Cause, pass: &Pass, took: Took) -> Option<Report> {
        self.log.write(cause, pass, took, self.stages.stack());
        self.metrics.pass(cause, pass, took);
        // One table that was listed by the clock is one whose changes nobody announces.
        let routine = usize::from(cause == Cause::Timer);
        let is_routine = pass.is_idle() && pass.observed <= routine && cause != Cause::Order;
        if is_routine && !self.unread && !self.stages.warns_anew() {
            return None;
        }
        let counts = self.stages.counts();
        for (name, counts) in &counts {
            self.metrics.table(name, counts);
        }
        let (tables, warnings) = (self.stages.status(), self.stages.warnings());
        self.unread = tables.values().any(|table| table.observe_error.is_some());
        Some(Report { revision: self.revision, tables, counts, warnings })
    }

    fn tables(&self) -> Vec<TableRows> {
        self.stages.rows()
    }
}
