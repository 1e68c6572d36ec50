//! Keeping a lease alive, and saying so when it is lost.
//!
//! Invariants: a lease is called lost only when etcd itself says that it does not know it, never because nobody
//! answers: during an outage the data path built on the lease stays. Renewals are single requests through the
//! failing-over client, so a dead member costs none.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::entry::LeaseId;
use super::pause::pause as pause_for;
use super::store::Store;
use crate::error::Reason;
use crate::{Backoff, ClusterError};

/// How a kept lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState {
    /// Not yet renewed by this task.
    Unknown,
    /// Renewed at the last attempt.
    Kept,
    /// The last attempt failed; further ones follow.
    Failing(ClusterError),
    /// etcd does not know the lease any more: its keys are gone and must be claimed anew. The task has ended.
    Lost,
}

/// A lease being kept; dropping it stops the renewals and leaves the lease to run out.
#[derive(Debug)]
pub struct KeepAlive {
    lease: LeaseId,
    state: watch::Receiver<LeaseState>,
    task: JoinHandle<()>,
}

impl KeepAlive {
    pub(super) fn start(store: Store, lease: LeaseId, seconds: u32, seed: u64) -> Self {
        let (sender, state) = watch::channel(LeaseState::Unknown);
        let pause = Duration::from_secs(u64::from(seconds.max(1))) / 3;
        Self { lease, state, task: tokio::spawn(keep(store, lease, pause, seed, sender)) }
    }

    /// The lease.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// How it stands now.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }

    /// Waits until the state differs from the one last seen here, and returns it. Cancel-safe. After
    /// [`LeaseState::Lost`] it never returns again.
    pub async fn changed(&mut self) -> LeaseState {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.state.borrow_and_update().clone()
    }

    /// Waits until the lease is lost. Cancel-safe.
    pub async fn lost(&mut self) {
        if self.state.wait_for(|state| *state == LeaseState::Lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(store: Store, lease: LeaseId, pause: Duration, seed: u64, state: watch::Sender<LeaseState>) {
    let mut backoff = Backoff::new(seed);
    loop {
        let (now, delay) = match renew(&store, lease).await {
            Ok(true) => {
                backoff.reset();
                (LeaseState::Kept, pause)
            }
            Ok(false) => {
                state.send_replace(LeaseState::Lost);
                return;
            }
            Err(error) => (LeaseState::Failing(error), backoff.next_delay().min(pause)),
        };
        state.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        pause_for(delay).await;
    }
}

/// One renewal; `false` when etcd does not know the lease.
async fn renew(store: &Store, lease: LeaseId) -> Result<bool, ClusterError> {
    let answer = store
        .client()
        .call("keep alive", &format!("lease {lease}"), |client| async move {
            client.lease_client().keep_alive(lease.get()).await
        })
        .await;
    match answer {
        Ok(_) => Ok(true),
        // The client crate has one error for "unknown lease" and for a stream that closed: ask again, plainly.
        Err(error) if error.reason == Reason::LeaseGone => Ok(store.time_to_live(lease).await?.is_some()),
        Err(error) => Err(error),
    }
}
