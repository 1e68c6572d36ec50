//! The thread that owns the kernel tables.
//!
//! Everything that blocks on the kernel happens here, one thing after the other. Invariants: a wake-up never lists a
//! table more often than [`LISTING_PAUSE`] allows, so a busy host does not make this thread busy; what somebody
//! deleted is back within a second all the same; nothing is removed before the gate is open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::KernelError;
use netstate::IfName;
use reconcile::{Gate, Pass, Status};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::planning::Planned;
use super::tables::{Notification, Ports, Stages};
use crate::plan::Ownership;

/// How long to wait for more notifications before a table is listed.
const QUIET: Duration = Duration::from_millis(20);

/// The shortest time between two listings of one table that notifications ask for.
const LISTING_PAUSE: Duration = Duration::from_millis(300);

/// The same for the chains of other programs.
const FOREIGN_PAUSE: Duration = Duration::from_millis(800);

/// Time between audits, which list every table whether somebody has reported something or not.
const AUDIT: Duration = Duration::from_secs(60);

/// The one source that the gate waits for.
pub(super) const LEASES: &str = "leases";

/// What the thread is asked.
enum Order {
    Plan(Box<Planned>),
    Changed(Notification),
    Stop,
}

/// What the thread reports after a pass.
#[derive(Debug)]
pub(super) struct Report {
    /// The last plan that it has worked on.
    pub revision: u64,
    /// Where each table stands.
    pub tables: BTreeMap<&'static str, Status>,
    /// What an operator should look into.
    pub warnings: Vec<String>,
}

/// The running thread; it ends when this is dropped, and leaves the kernel as it is.
pub(super) struct Worker {
    orders: Sender<Order>,
    reports: UnboundedReceiver<Report>,
    thread: Option<JoinHandle<()>>,
    ports: Ports,
}

/// Sends notifications of the kernel to the thread.
#[derive(Clone)]
pub(super) struct Notifier(Sender<Order>);

impl Notifier {
    /// Somebody else changed a table. Returns false when the thread is gone.
    pub(super) fn changed(&self, what: Notification) -> bool {
        self.0.send(Order::Changed(what)).is_ok()
    }
}

impl Worker {
    /// Opens the tables and starts the thread.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or the system a thread.
    pub(super) fn start(ownership: &Ownership, devices: &BTreeSet<IfName>) -> Result<Self, KernelError> {
        let stages = Stages::open(ownership, devices)?;
        let ports = stages.ports();
        let (orders, received) = channel();
        let (reporter, reports) = unbounded_channel();
        let work = Work {
            stages,
            gate: Gate::new([LEASES]),
            orders: received,
            reports: reporter,
            revision: 0,
            clock: Instant::now(),
            next_audit: AUDIT,
            listed: BTreeMap::new(),
            asked: BTreeSet::new(),
        };
        let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(move || work.run());
        let thread = thread.map_err(|source| KernelError::io("start", "thread", "clone", source))?;
        Ok(Self { orders, reports, thread: Some(thread), ports })
    }

    /// Port ids of the thread's conversations with the kernel.
    #[must_use]
    pub(super) fn ports(&self) -> Ports {
        self.ports.clone()
    }

    /// A handle for notifications.
    #[must_use]
    pub(super) fn notifier(&self) -> Notifier {
        Notifier(self.orders.clone())
    }

    /// Desires what has changed; once every source has listed everything the gate opens.
    pub(super) fn want(&self, planned: Planned) {
        let _ = self.orders.send(Order::Plan(Box::new(planned)));
    }

    /// The next report. Cancel-safe. `None` when the thread has ended, which it does not do by itself.
    pub(super) async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What made the thread work, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Plan,
    Notification,
    Timer,
}

impl Cause {
    const fn name(self) -> &'static str {
        match self {
            Self::Plan => "leases",
            Self::Notification => "somebody else",
            Self::Timer => "audit or retry",
        }
    }
}

struct Work {
    stages: Stages,
    gate: Gate<&'static str>,
    orders: Receiver<Order>,
    reports: UnboundedSender<Report>,
    revision: u64,
    clock: Instant,
    /// On the clock, as all times below.
    next_audit: Duration,
    /// When notifications last had a table listed.
    listed: BTreeMap<Notification, Duration>,
    /// Notifications whose listing is still to come.
    asked: BTreeSet<Notification>,
}

impl Work {
    fn run(mut self) {
        // Before the first plan nothing is desired, and everything of ours would look superfluous.
        while self.revision == 0 {
            let Ok(order) = self.orders.recv() else { return };
            if !self.take(order) {
                return;
            }
        }
        let mut cause = Cause::Plan;
        loop {
            self.work(cause);
            cause = match self.wait() {
                Some(cause) => cause,
                None => return,
            };
        }
    }

    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    fn work(&mut self, cause: Cause) {
        let now = self.now();
        if now >= self.next_audit {
            self.next_audit = now + AUDIT;
            self.stages.invalidate_all();
        }
        for event in self.due(now) {
            self.asked.remove(&event);
            self.listed.insert(event, now);
            self.stages.invalidate(event);
        }
        let pass = self.stages.pass(&self.gate, now);
        log(&pass, cause, self.now().saturating_sub(now));
        if !pass.is_idle() || pass.observed > 0 || cause == Cause::Plan {
            let tables = self.stages.status();
            let report = Report { revision: self.revision, tables, warnings: self.stages.warnings() };
            let _ = self.reports.send(report);
        }
    }

    /// Notifications whose pause is over.
    fn due(&self, now: Duration) -> Vec<Notification> {
        self.asked.iter().copied().filter(|event| self.due_at(*event) <= now).collect()
    }

    fn due_at(&self, event: Notification) -> Duration {
        // A service proxy changes its own table all the time.
        let pause = if event == Notification::ForeignNft { FOREIGN_PAUSE } else { LISTING_PAUSE };
        self.listed.get(&event).map_or(Duration::ZERO, |last| *last + pause)
    }

    /// Waits for something to do; `None` when it is time to end.
    fn wait(&mut self) -> Option<Cause> {
        let mut until = self.next_audit.min(self.stages.next_try().unwrap_or(Duration::MAX));
        let mut cause = Cause::Timer;
        if let Some(due) = self.asked.iter().map(|event| self.due_at(*event)).min() {
            until = until.min(due);
            cause = Cause::Notification;
        }
        loop {
            let order = match self.orders.recv_timeout(until.saturating_sub(self.now())) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => return Some(cause),
                Err(RecvTimeoutError::Disconnected) => return None,
            };
            let planned = matches!(order, Order::Plan(_));
            if !self.take(order) {
                return None;
            }
            if planned {
                return Some(Cause::Plan);
            }
            cause = Cause::Notification;
            let first_due = self.asked.iter().map(|event| self.due_at(*event)).min().unwrap_or_default();
            until = until.min(first_due.max(self.now() + QUIET));
        }
    }

    /// Returns false when it is time to end.
    fn take(&mut self, order: Order) -> bool {
        match order {
            Order::Plan(planned) => {
                self.stages.want(planned.changes);
                self.revision = planned.revision;
                if planned.complete {
                    self.gate.complete(&LEASES);
                }
            }
            Order::Changed(event) => {
                self.asked.insert(event);
            }
            Order::Stop => return false,
        }
        true
    }
}

/// Errors that one pass writes into the log; the status names all of them.
const LOGGED_ERRORS: usize = 10;

fn log(pass: &Pass, cause: Cause, took: Duration) {
    for error in pass.errors.iter().take(LOGGED_ERRORS) {
        tracing::warn!("{error}");
    }
    if pass.errors.len() > LOGGED_ERRORS {
        tracing::warn!(more = pass.errors.len() - LOGGED_ERRORS, "further kernel errors; see `netd status`");
    }
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let (set, removed, failed) = (pass.upserted, pass.removed, pass.failed);
    if !pass.is_idle() {
        let cause = cause.name();
        tracing::info!(cause, set, removed, failed, milliseconds, "kernel tables changed");
    } else if cause == Cause::Plan && pass.observed > 0 {
        tracing::info!(milliseconds, "kernel tables in sync, 0 changes");
    }
}
