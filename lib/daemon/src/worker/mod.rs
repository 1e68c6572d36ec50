//! The thread that owns the kernel tables.
//!
//! Everything that blocks on the kernel happens on it, one thing after the other. Orders and changes come in through a
//! [`Mailbox`], reports go out through [`Worker::next`].
//!
//! Invariants: what somebody else changes is coalesced, and a table is listed for it no more often than
//! [`Work::min_interval`] allows, so that a busy host does not make this thread busy; every table is compared at the
//! audit whether somebody has said something or not; what comes in during an audit does not wait for its end; nothing that
//! waits here grows without bound.

mod mailbox;
mod pass_log;
mod question;
mod rounds;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reconcile::{Audited, Pass};

pub use mailbox::{Busy, Mailbox};
pub use pass_log::PassLog;

use crate::slot::Slot;
use crate::status::TableRows;
use rounds::Rounds;

/// What made the thread work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The program desires something else.
    Order,
    /// Somebody else changed something.
    Change,
    /// An audit, or a row whose next try is due.
    Timer,
}

impl Cause {
    /// The cause's name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Change => "change",
            Self::Timer => "timer",
        }
    }
}

/// What the thread works on. All times are on the thread's clock, which begins with it.
pub trait Work: Send + 'static {
    /// What the program desires; taken in the order in which it was sent.
    type Order: Send + 'static;
    /// What somebody else may have changed.
    type Change: Copy + Ord + Send + 'static;
    /// What is reported after a pass; the newest replaces one that was not read.
    type Report: Send + 'static;

    /// Merges `next` into the order that waits before it. Returns `next` when both are needed.
    fn merge(waiting: &mut Self::Order, next: Self::Order) -> Option<Self::Order> {
        let _ = waiting;
        Some(next)
    }

    /// When the first event came that `order` is about; `None` for when it was sent.
    fn since(order: &Self::Order) -> Option<Instant> {
        let _ = order;
        None
    }

    /// Shortest time between two listings that `change` asks for.
    fn min_interval(change: Self::Change) -> Duration;

    /// Time to the next audit behind one for which the thread worked `took`, zero before the first.
    fn audit_period(&self, took: Duration) -> Duration;

    /// Takes in an order.
    fn take(&mut self, order: Self::Order, now: Duration);

    /// True when enough is known to work on the kernel.
    fn is_begun(&self) -> bool {
        true
    }

    /// Forgets what the kernel held where `change` says.
    fn invalidate(&mut self, change: Self::Change);

    /// Forgets everything that the kernel held.
    fn invalidate_all(&mut self);

    /// Begins an audit: everything is compared with the kernel. By default the next pass does that.
    fn begin_audit(&mut self) {
        self.invalidate_all();
    }

    /// Compares a part, in a millisecond or so; `None` when everything has been compared. Orders and changes are worked on
    /// between two parts.
    fn audit(&mut self) -> Option<Audited> {
        None
    }

    /// One pass over the tables.
    fn pass(&mut self, cause: Cause, now: Duration) -> Pass;

    /// When there is something to do of its own accord: a failed row, a drain.
    fn next(&self) -> Option<Duration>;

    /// What to report of `pass`; also where it is logged and counted.
    fn report(&mut self, cause: Cause, pass: &Pass, took: Took) -> Option<Self::Report>;

    /// Desired and actual rows of every table.
    fn tables(&self) -> Vec<TableRows>;
}

/// How long a pass took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// From its beginning to its end.
    pub pass: Duration,
    /// From the first event that it is about to its end; `None` when a timer made it.
    pub event_to_kernel: Option<Duration>,
    /// The end, on the thread's clock.
    pub now: Duration,
}

/// The running thread.
pub struct Worker<W: Work> {
    mailbox: Mailbox<W>,
    reports: Arc<Slot<W::Report>>,
}

impl<W: Work> Worker<W> {
    /// Starts the thread `name`; with `mailbox`, which may have been filled before.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(name: &str, work: W, mailbox: Mailbox<W>) -> io::Result<Self> {
        let reports = Arc::new(Slot::default());
        let rounds = Rounds::new(work, mailbox.clone(), Arc::clone(&reports));
        let ended = mailbox.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            rounds.run();
            ended.end();
        })?;
        Ok(Self { mailbox, reports })
    }

    /// The way in.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox<W> {
        self.mailbox.clone()
    }

    /// The next report. Cancel-safe.
    pub async fn next(&self) -> W::Report {
        self.reports.take().await
    }

    /// Ends the thread after the pass that it is in. Returns false when that takes longer than `limit`; the thread is
    /// then left to itself.
    pub async fn stop(self, limit: Duration) -> bool {
        self.mailbox.stop();
        self.mailbox.ended(limit).await
    }
}

impl<W: Work> Drop for Worker<W> {
    fn drop(&mut self) {
        self.mailbox.stop();
    }
}

#[cfg(test)]
mod tests;
