//! What the store says, and the second listing that a doubtful one needs.
//!
//! Invariants: most of the leases are never forgotten on one listing or one burst of deletions; a listing that does not
//! end keeps no plan waiting for longer than [`PATIENCE`].

use std::time::Duration;

use cluster::ClusterError;
use daemon::liveness::{Heartbeat, Liveness};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::source::view::{Change, View};
use crate::source::{LeaseEvent, LeaseSource};

/// How long a listing without most of the nodes is kept in doubt: nodes that live claim their subnets again meanwhile.
const CONFIRMATION: Duration = Duration::from_secs(30);

/// Longest time that a listing takes, with every member but one out of reach.
const LIMIT: Duration = Duration::from_secs(600);

/// How long plans wait for the end of a listing: one plan of all of it costs less than many of its parts.
const PATIENCE: Duration = Duration::from_secs(1);

/// A second listing, or why there is none.
pub(super) type Listing = Result<Vec<LeaseEvent>, ClusterError>;

/// The view of the leases and its verification.
pub(super) struct Witness {
    pub(super) view: View,
    started: Instant,
    /// Since when a listing runs that has not ended, the attempts before it included.
    listing: Option<Instant>,
    /// When the listing in doubt is verified.
    verify_at: Option<Instant>,
    verifying: Option<JoinHandle<Listing>>,
    heartbeat: Heartbeat,
}

impl Witness {
    pub(super) fn new(view: View, liveness: &Liveness) -> Self {
        let heartbeat = liveness.heartbeat("second listing", LIMIT);
        Self { view, started: Instant::now(), listing: None, verify_at: None, verifying: None, heartbeat }
    }

    /// Takes in one event.
    pub(super) fn apply(&mut self, event: LeaseEvent) -> Change {
        let change = self.view.apply(event, self.started.elapsed());
        self.listing = self.view.is_listing().then(|| self.listing.unwrap_or_else(Instant::now));
        if self.view.is_doubted() && self.verify_at.is_none() && self.verifying.is_none() {
            tracing::warn!(
                seconds = CONFIRMATION.as_secs(),
                "leases are missing from the store that should be there; nothing is removed before a second look"
            );
            self.verify_at = Some(Instant::now() + CONFIRMATION);
        }
        change
    }

    /// The earliest time of a plan, while a listing runs.
    pub(super) fn plan_from(&self) -> Option<Instant> {
        self.listing.map(|since| since + PATIENCE)
    }

    /// When the verification is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.verify_at
    }

    /// Lists the leases once more.
    pub(super) fn verify<S: LeaseSource>(&mut self, source: &S) {
        self.verify_at = None;
        let source = source.clone();
        self.verifying = self.view.is_doubted().then(|| tokio::spawn(async move { source.list().await }));
        if self.verifying.is_some() {
            self.heartbeat.busy();
        }
    }

    /// The second listing when it is there. Cancel-safe; waits for ever when none is under way.
    pub(super) async fn listed(&mut self) -> Option<Listing> {
        match &mut self.verifying {
            Some(task) => task.await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes the second listing as the truth.
    pub(super) fn confirm(&mut self, listing: Option<Listing>) -> Change {
        self.verifying = None;
        self.heartbeat.idle();
        match listing {
            Some(Ok(events)) => {
                tracing::info!(keys = events.len().saturating_sub(2), "second look at the store");
                self.view.confirm(events)
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the second look failed; nothing is removed");
                self.verify_at = Some(Instant::now() + CONFIRMATION);
                Change::default()
            }
            None => {
                self.verify_at = Some(Instant::now());
                Change::default()
            }
        }
    }
}
