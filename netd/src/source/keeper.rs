//! `Keeper`: the task that holds this node's lease.
//!
//! Invariants: while the store cannot be asked nothing is given up. When the lease is lost, the same subnet is claimed
//! again if it is still free; another one is taken only when it is not.

use std::collections::BTreeSet;

use cluster::Backoff;
use cluster::etcd::LeaseState;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{AcquireError, Held, LeaseStore, Wish};

/// What the keeper has to tell.
#[derive(Debug)]
pub enum KeeperEvent {
    /// This node holds a lease: the first one, or one after a loss.
    Held(Box<Held>),
    /// The lease was renewed after trouble.
    Kept,
    /// Acquiring or renewing failed and is tried again; the text says why.
    Failing(String),
}

/// A running keeper; dropping it stops the renewals and leaves the lease to run out.
#[derive(Debug)]
pub struct Keeper {
    losses: mpsc::UnboundedSender<String>,
    events: mpsc::UnboundedReceiver<KeeperEvent>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts acquiring.
    #[must_use]
    pub fn start(store: LeaseStore, wish: Wish, seed: u64) -> Self {
        let (losses, reported) = mpsc::unbounded_channel();
        let (told, events) = mpsc::unbounded_channel();
        let task = Task { store, wish, told, reported, backoff: Backoff::new(seed), complaints: BTreeSet::new() };
        Self { losses, events, task: tokio::spawn(task.run()) }
    }

    /// The next event. Cancel-safe. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<KeeperEvent> {
        self.events.recv().await
    }

    /// Reports that the own key is gone or not ours any more: acquire again.
    pub fn report_loss(&self, reason: String) {
        let _ = self.losses.send(reason);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    store: LeaseStore,
    wish: Wish,
    told: mpsc::UnboundedSender<KeeperEvent>,
    reported: mpsc::UnboundedReceiver<String>,
    backoff: Backoff,
    /// Failures that have been told since the last success; each is told once.
    complaints: BTreeSet<String>,
}

impl Task {
    async fn run(mut self) {
        loop {
            let held = self.acquire().await;
            // A loss that was reported before is known to `acquire`.
            while self.reported.try_recv().is_ok() {}
            // After a loss the other nodes shall find everything as it was.
            self.wish.node.previous = Some(held.lease.key.v4);
            self.wish.attrs = held.lease.attrs.clone();
            self.wish.adopts_mac = false;
            if self.told.send(KeeperEvent::Held(Box::new(held.clone()))).is_err() {
                return;
            }
            let Some(reason) = self.hold(&held).await else { return };
            tracing::warn!(subnet = %held.lease.key.v4, reason, "the lease is lost: claiming the subnet again");
        }
    }

    async fn acquire(&mut self) -> Held {
        loop {
            match self.store.acquire(&self.wish).await {
                Ok(held) => {
                    self.backoff.reset();
                    self.complaints.clear();
                    return held;
                }
                Err(error) => self.complain(error).await,
            }
        }
    }

    async fn complain(&mut self, error: AcquireError) {
        let text = error.to_string();
        if self.complaints.insert(text.clone()) {
            tracing::warn!(error = text, "no lease yet; trying again");
            let _ = self.told.send(KeeperEvent::Failing(text));
        }
        tokio::time::sleep(self.backoff.next_delay()).await;
    }

    /// Holds the lease until it is lost and answers why; `None` when nobody listens any more.
    async fn hold(&mut self, held: &Held) -> Option<String> {
        let mut keep_alive = loop {
            match self.store.keep_alive(held).await {
                Ok(keep_alive) => break keep_alive,
                Err(error) => self.complain(error.into()).await,
            }
        };
        loop {
            let changed = async {
                match keep_alive.as_mut() {
                    Some(keep_alive) => keep_alive.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reason = self.reported.recv() => return reason,
                state = changed => match state {
                    LeaseState::Lost => return Some("etcd does not know it any more".to_owned()),
                    LeaseState::Kept => { self.told.send(KeeperEvent::Kept).ok()?; }
                    LeaseState::Failing(error) => {
                        tracing::warn!(%error, "the lease cannot be renewed");
                        self.told.send(KeeperEvent::Failing(error.to_string())).ok()?;
                    }
                    LeaseState::Unknown => {}
                },
            }
        }
    }
}
