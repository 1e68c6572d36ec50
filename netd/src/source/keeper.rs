//! `Keeper`: has a lease acquired, keeps it, and has it acquired again when it is lost.
//!
//! Invariants: a loss that is older than the claim is known to the claim and ignored; every other loss is acted on. A
//! store that fails is tried for ever, with a jittered pause; each kind of failure is reported once.

use std::collections::BTreeSet;

use cluster::Backoff;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{AcquireError, Held, Keeping, LeaseRequest, LeaseSource, Readdress};

/// How the own lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeeperEvent {
    /// This node holds this lease.
    Held(Box<Held>),
    /// It was renewed.
    Kept,
    /// It cannot be had or renewed at the moment.
    Failing(String),
}

/// What the keeper is asked.
enum Order {
    /// The own key is gone or not ours any more, since this revision of the store if that is known.
    Lost { reason: String, revision: Option<i64> },
    /// This node has another address.
    Move(Box<Readdress>),
}

/// The running keeper; it ends when this is dropped, and the lease stays.
pub(crate) struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::UnboundedReceiver<KeeperEvent>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts acquiring. `seed` spreads the retries of many nodes.
    #[must_use]
    pub(crate) fn start(source: impl LeaseSource, request: LeaseRequest, seed: u64) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        let (reports, events) = mpsc::unbounded_channel();
        let task = Task {
            source,
            request,
            reports,
            orders: received,
            backoff: Backoff::new(seed),
            complaints: BTreeSet::new(),
            pending: Vec::new(),
        };
        Self { orders, events, task: tokio::spawn(task.run()) }
    }

    /// The next event. Cancel-safe. `None` only when the runtime shuts down.
    pub(crate) async fn next(&mut self) -> Option<KeeperEvent> {
        self.events.recv().await
    }

    /// Reports that the own key is gone or not ours any more: acquire again, unless the claim is newer than `revision`.
    pub(crate) fn report_loss(&self, reason: String, revision: Option<i64>) {
        let _ = self.orders.send(Order::Lost { reason, revision });
    }

    /// Writes another address of this node into its lease.
    pub(crate) fn readdress(&self, to: Readdress) {
        let _ = self.orders.send(Order::Move(Box::new(to)));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a lease is acquired once more.
enum End {
    /// It is gone, or not ours any more.
    Lost(String),
    /// It shall say something else.
    Moved(String),
}

struct Task<S> {
    source: S,
    request: LeaseRequest,
    reports: mpsc::UnboundedSender<KeeperEvent>,
    orders: mpsc::UnboundedReceiver<Order>,
    backoff: Backoff,
    /// Failures that have been reported since the last success; each is reported once.
    complaints: BTreeSet<String>,
    /// Losses that were reported while a lease was being acquired.
    pending: Vec<(String, Option<i64>)>,
}

impl<S: LeaseSource> Task<S> {
    async fn run(mut self) {
        loop {
            let Some(held) = self.acquire().await else { return };
            self.request.holds(&held);
            if self.reports.send(KeeperEvent::Held(Box::new(held.clone()))).is_err() {
                return;
            }
            let subnet = held.lease.key.list();
            match self.hold(&held).await {
                Some(End::Lost(reason)) => {
                    tracing::warn!(subnet, reason, "the lease is lost: claiming the subnet again")
                }
                Some(End::Moved(how)) => tracing::info!(subnet, how, "the lease is written anew"),
                None => return,
            }
        }
    }

    /// `None` when nobody listens any more.
    async fn acquire(&mut self) -> Option<Held> {
        loop {
            match self.source.acquire(&self.request).await {
                Ok(held) => {
                    self.backoff.reset();
                    self.complaints.clear();
                    return Some(held);
                }
                Err(error) => {
                    if let AcquireError::Rival(lease) = &error {
                        self.request.rival = Some((**lease).clone());
                    }
                    self.complain(error).await?;
                }
            }
        }
    }

    /// Reports a failure and waits; `None` when nobody listens any more.
    async fn complain(&mut self, error: AcquireError) -> Option<()> {
        let text = error.to_string();
        if self.complaints.insert(text.clone()) {
            tracing::warn!(error = text, "no lease yet; trying again");
            self.reports.send(KeeperEvent::Failing(text)).ok()?;
        }
        let pause = tokio::time::sleep(self.backoff.next_delay());
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return Some(()),
                order = self.orders.recv() => match order? {
                    Order::Lost { reason, revision } => self.pending.push((reason, revision)),
                    Order::Move(to) => self.request.moves(&to),
                },
            }
        }
    }

    /// Holds the lease until it is lost and returns why; `None` when nobody listens any more.
    async fn hold(&mut self, held: &Held) -> Option<End> {
        let concerns = |revision: Option<i64>| revision.is_none_or(|revision| revision > held.revision);
        let pending = std::mem::take(&mut self.pending);
        if let Some((reason, _)) = pending.into_iter().find(|(_, revision)| concerns(*revision)) {
            return Some(End::Lost(reason));
        }
        loop {
            let reports = self.reports.clone();
            let report = move |state| {
                let event = match state {
                    Keeping::Kept => KeeperEvent::Kept,
                    Keeping::Failing(error) => {
                        tracing::warn!(error, "the lease cannot be renewed");
                        KeeperEvent::Failing(error)
                    }
                };
                // A daemon that has ended drops this task as well.
                let _ = reports.send(event);
            };
            let source = self.source.clone();
            let kept = source.keep(held, report);
            tokio::pin!(kept);
            let failed = loop {
                tokio::select! {
                    order = self.orders.recv() => match order? {
                        Order::Lost { reason, revision } if concerns(revision) => return Some(End::Lost(reason)),
                        Order::Lost { .. } => {}
                        Order::Move(to) => {
                            self.request.moves(&to);
                            let (address, backend) = (to.attrs.public_ips.list(), to.attrs.backend.name());
                            return Some(End::Moved(format!("this node is reached at {address} by {backend} now")));
                        }
                    },
                    ended = &mut kept => match ended {
                        Ok(reason) => return Some(End::Lost(reason)),
                        Err(error) => break error,
                    },
                }
            };
            self.complain(failed.into()).await?;
        }
    }
}
