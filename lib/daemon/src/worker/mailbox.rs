//! `Mailbox`: the way in to the thread.
//!
//! Invariant: at most [`CAPACITY`] orders wait, whoever has more waits with them; changes are a set; at most
//! [`QUESTIONS`] questions wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use super::Work;
use super::question::{Asked, Question};
use crate::liveness::{Heartbeat, Liveness, Progress};
use crate::status::TableRows;

/// Orders that may wait: enough to make a listing of thousands one pass, few enough to keep memory small.
const CAPACITY: usize = 4096;

/// Questions that may wait.
const QUESTIONS: usize = 4;

/// Name of the thread among the loops that are judged.
const WORKER: &str = "worker";

/// A round that takes longer has got stuck: the longest known takes seconds, with 20,000 leases.
const STUCK: Duration = Duration::from_secs(60);

/// Why a question was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Too many wait already.
    #[error("too many ask at once")]
    Crowded,
    /// The thread is in a long pass.
    #[error("the kernel thread is busy")]
    Late,
    /// The thread has ended.
    #[error("the kernel thread has ended")]
    Ended,
}

/// The way in; clones lead to the same thread.
pub struct Mailbox<W: Work> {
    shared: Arc<Shared<W>>,
}

struct Shared<W: Work> {
    inside: Mutex<Inside<W>>,
    wake: Condvar,
    room: Notify,
    liveness: Liveness,
    heartbeat: Heartbeat,
    clock: Instant,
    /// True once the thread has ended.
    ended: watch::Sender<bool>,
}

/// What has come in. Times are on the thread's clock.
pub(super) struct Inside<W: Work> {
    pub(super) orders: VecDeque<W::Order>,
    /// When the first event came that `orders` are about.
    pub(super) first_order: Option<Duration>,
    /// Changes, each with the time when it came first.
    pub(super) changes: BTreeMap<W::Change, Duration>,
    pub(super) audit: bool,
    /// Who waits for the end of the audit.
    pub(super) auditors: Vec<oneshot::Sender<()>>,
    pub(super) questions: Vec<Box<dyn Question<W>>>,
    pub(super) stop: bool,
}

impl<W: Work> Inside<W> {
    const fn new() -> Self {
        Self {
            orders: VecDeque::new(),
            first_order: None,
            changes: BTreeMap::new(),
            audit: false,
            auditors: Vec::new(),
            questions: Vec::new(),
            stop: false,
        }
    }

    /// True when there is something to take out.
    fn is_full(&self) -> bool {
        self.stop || self.audit || !self.orders.is_empty() || !self.changes.is_empty() || !self.questions.is_empty()
    }
}

impl<W: Work> Shared<W> {
    /// The time on the thread's clock; an earlier one than its beginning is its beginning.
    fn at(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.clock)
    }
}

impl<W: Work> Clone for Mailbox<W> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<W: Work> Mailbox<W> {
    /// An empty mailbox; its thread is judged by `liveness`.
    #[must_use]
    pub fn new(liveness: Liveness) -> Self {
        let heartbeat = liveness.heartbeat(WORKER, STUCK);
        Self {
            shared: Arc::new(Shared {
                inside: Mutex::new(Inside::new()),
                wake: Condvar::new(),
                room: Notify::new(),
                liveness,
                heartbeat,
                clock: Instant::now(),
                ended: watch::Sender::new(false),
            }),
        }
    }

    /// Sends an order; waits while too many wait already. Returns false when the thread was asked to end.
    pub async fn send(&self, order: W::Order) -> bool {
        let mut order = order;
        loop {
            let room = self.shared.room.notified();
            match self.try_send(order) {
                Ok(sent) => return sent,
                Err(back) => order = back,
            }
            room.await;
        }
    }

    /// Sends an order if there is room for it; else gives it back.
    ///
    /// # Errors
    /// The order, when too many wait already.
    pub fn try_send(&self, order: W::Order) -> Result<bool, W::Order> {
        let mut inside = self.lock();
        if inside.stop {
            return Ok(false);
        }
        let wakes = !inside.is_full();
        let since = W::since(&order);
        let order = match inside.orders.back_mut() {
            Some(waiting) => match W::merge(waiting, order) {
                Some(order) => order,
                None => return Ok(true),
            },
            None => order,
        };
        if inside.orders.len() >= CAPACITY {
            return Err(order);
        }
        // Where the system has to be asked for the time, this costs more than all the rest.
        inside.first_order.get_or_insert_with(|| since.map_or_else(|| self.now(), |since| self.shared.at(since)));
        inside.orders.push_back(order);
        // The thread waits for something, not for more of it: thousands of orders wake it once.
        if wakes {
            self.shared.wake.notify_one();
        }
        Ok(true)
    }

    /// Somebody else may have changed `change`. Returns false when the thread was asked to end.
    pub fn changed(&self, change: W::Change) -> bool {
        let now = self.now();
        let mut inside = self.lock();
        inside.changes.entry(change).or_insert(now);
        self.shared.wake.notify_one();
        !inside.stop
    }

    /// Has everything compared now. Returns whether that was done within `limit`.
    pub async fn audit(&self, limit: Duration) -> bool {
        let (sender, done) = oneshot::channel();
        {
            let mut inside = self.lock();
            inside.audit = true;
            inside.auditors.retain(|waiting| !waiting.is_closed());
            inside.auditors.push(sender);
        }
        self.shared.wake.notify_one();
        matches!(tokio::time::timeout(limit, done).await, Ok(Ok(())))
    }

    /// Waits for the end of the thread, which was asked to end. Returns false when that takes longer than `limit`.
    pub async fn ended(&self, limit: Duration) -> bool {
        let mut ended = self.shared.ended.subscribe();
        let end = ended.wait_for(|ended| *ended);
        tokio::time::timeout(limit, end).await.is_ok()
    }

    /// Desired and actual rows of every table, as of the end of the pass that is running.
    ///
    /// # Errors
    /// When they cannot be had within `limit`.
    pub async fn tables(&self, limit: Duration) -> Result<Vec<TableRows>, Busy> {
        self.ask(limit, W::tables).await
    }

    /// What `question` finds on the thread, at the end of the pass that is running. The thread does nothing else meanwhile.
    ///
    /// # Errors
    /// When that cannot be had within `limit`.
    pub async fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        question: impl FnOnce(&W) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (answer, answered) = oneshot::channel();
        {
            let mut inside = self.lock();
            if inside.stop {
                return Err(Busy::Ended);
            }
            inside.questions.retain(|asked| !asked.is_given_up());
            if inside.questions.len() >= QUESTIONS {
                return Err(Busy::Crowded);
            }
            inside.questions.push(Box::new(Asked { question, answer }));
        }
        self.shared.wake.notify_one();
        match tokio::time::timeout(limit, answered).await {
            Ok(answer) => answer.map_err(|_| Busy::Ended),
            Err(_) => Err(Busy::Late),
        }
    }

    /// Judges the loops of this program.
    #[must_use]
    pub fn liveness(&self) -> &Liveness {
        &self.shared.liveness
    }

    /// Whether the thread makes progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.shared.heartbeat.progress()
    }

    /// What the thread shows its progress with.
    pub(super) fn heartbeat(&self) -> &Heartbeat {
        &self.shared.heartbeat
    }

    /// The thread has ended.
    pub(super) fn end(&self) {
        self.shared.heartbeat.end();
        self.shared.ended.send_replace(true);
        self.close();
        // Whoever waits for an answer learns that none comes.
        let taken = std::mem::replace(&mut *self.lock(), Inside::new());
        self.lock().stop = taken.stop;
    }

    /// Asks the thread to end after the pass that it is in.
    pub(super) fn stop(&self) {
        self.shared.liveness.forget(WORKER, &self.progress());
        self.close();
    }

    fn close(&self) {
        self.lock().stop = true;
        self.shared.wake.notify_one();
        self.shared.room.notify_waiters();
    }

    /// Takes everything out, at `until` at the latest; without it when something has come.
    pub(super) fn take(&self, until: Option<Duration>) -> Inside<W> {
        let mut inside = self.lock();
        while !inside.is_full() {
            let left = until.map(|until| until.saturating_sub(self.now()));
            inside = match left {
                Some(Duration::ZERO) => break,
                Some(left) => self.shared.wake.wait_timeout(inside, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.shared.wake.wait(inside).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let stop = inside.stop;
        let taken = std::mem::replace(&mut *inside, Inside::new());
        inside.stop = stop;
        drop(inside);
        self.shared.room.notify_waiters();
        taken
    }

    /// The thread's clock.
    pub(super) fn now(&self) -> Duration {
        self.shared.at(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Inside<W>> {
        self.shared.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
