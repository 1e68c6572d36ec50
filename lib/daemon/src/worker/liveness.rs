//! `Liveness`: whether the thread makes progress, for health checks, the heartbeat and the watchdog.
//!
//! Invariant: a thread that waits is alive; one that has been in one round for longer than [`Liveness::STUCK`] is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Since when the thread has been busy; clones are about the same thread.
#[derive(Debug, Clone)]
pub struct Liveness {
    start: Instant,
    /// Milliseconds after `start` plus one; 0 while it waits.
    busy: Arc<AtomicU64>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { start: Instant::now(), busy: Arc::new(AtomicU64::new(0)) }
    }
}

impl Liveness {
    /// A round that takes longer has got stuck: the longest known takes seconds, with 20,000 leases.
    pub const STUCK: Duration = Duration::from_secs(60);

    pub(super) fn begin(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        self.busy.store(now, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.busy.store(0, Ordering::Relaxed);
    }

    /// How long the round that is running has taken so far.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        let since = self.busy.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start.elapsed().saturating_sub(Duration::from_millis(since)))
    }

    /// True when the thread is in one round for too long.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.busy_for().is_some_and(|time| time > Self::STUCK)
    }
}
