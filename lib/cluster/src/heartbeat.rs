//! `Heartbeat`: until when a loop has said that it will be back.
//!
//! Invariants: a loop that waits for something from outside is alive, however long that takes; one that works has a limit
//! for it; one that has ended, in whatever way, shows. Reading costs the loop nothing, beating one store to memory.
//!
//! It is here and not in `lib/daemon`, which judges heartbeats, because the watches of this crate are such loops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Waits for something from outside.
const IDLE: u64 = u64::MAX;

/// Has ended.
const ENDED: u64 = 0;

#[derive(Debug)]
struct Shared {
    start: Instant,
    limit: Duration,
    /// When the loop counts as stuck: milliseconds after `start`, or one of the constants.
    due: AtomicU64,
}

/// The end of the loop itself; dropping it says that the loop has ended.
#[derive(Debug)]
pub struct Heartbeat {
    shared: Arc<Shared>,
}

/// The end of whoever judges; clones are of the same loop.
#[derive(Debug, Clone)]
pub struct Progress {
    shared: Arc<Shared>,
}

/// How a loop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It waits, or is in time.
    Alive,
    /// It has not come back, for so long after the time that it had given itself.
    Late(Duration),
    /// It has ended.
    Ended,
}

impl Heartbeat {
    /// Of a loop that waits now. `limit` is the longest time that it works without a pause.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { shared: Arc::new(Shared { start: Instant::now(), limit, due: AtomicU64::new(IDLE) }) }
    }

    /// The loop works from now on, for as long as its limit at most.
    pub fn busy(&self) {
        self.back_within(Duration::ZERO);
    }

    /// The loop waits for something from outside.
    pub fn idle(&self) {
        self.shared.due.store(IDLE, Ordering::Relaxed);
    }

    /// The loop waits and comes back by itself, after `pause` at the latest.
    pub fn back_within(&self, pause: Duration) {
        let due = self.shared.start.elapsed().saturating_add(pause).saturating_add(self.shared.limit);
        self.shared.due.store(milliseconds(due).clamp(ENDED + 1, IDLE - 1), Ordering::Relaxed);
    }

    /// The loop has ended.
    pub fn end(&self) {
        self.shared.due.store(ENDED, Ordering::Relaxed);
    }

    /// What judges this loop.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.end();
    }
}

impl Progress {
    /// How the loop is at `now`.
    #[must_use]
    pub fn at(&self, now: Instant) -> Condition {
        match self.shared.due.load(Ordering::Relaxed) {
            ENDED => Condition::Ended,
            IDLE => Condition::Alive,
            due => {
                let now = now.saturating_duration_since(self.shared.start);
                match now.checked_sub(Duration::from_millis(due)) {
                    Some(late) if !late.is_zero() => Condition::Late(late),
                    _ => Condition::Alive,
                }
            }
        }
    }

    /// The longest time that the loop may work without a pause.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.shared.limit
    }

    /// True while the loop works, or is to come back by itself.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        !matches!(self.shared.due.load(Ordering::Relaxed), ENDED | IDLE)
    }

    /// True for the progress of the same loop.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(IDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn loop_that_waits_is_alive_and_one_that_works_has_its_limit() {
        let heartbeat = Heartbeat::new(10 * SECOND);
        let (progress, now) = (heartbeat.progress(), Instant::now());
        assert_eq!(progress.at(now + 86_400 * SECOND), Condition::Alive);
        heartbeat.busy();
        assert_eq!(progress.at(now + 9 * SECOND), Condition::Alive);
        assert!(matches!(progress.at(now + 12 * SECOND), Condition::Late(late) if late <= 3 * SECOND));
        heartbeat.idle();
        assert_eq!((progress.at(now + 12 * SECOND), progress.is_timed()), (Condition::Alive, false));
    }

    #[test]
    fn loop_that_is_to_come_back_by_itself_is_missed_when_it_does_not() {
        let heartbeat = Heartbeat::new(10 * SECOND);
        heartbeat.back_within(60 * SECOND);
        let now = Instant::now();
        assert_eq!(heartbeat.progress().at(now + 69 * SECOND), Condition::Alive);
        assert!(matches!(heartbeat.progress().at(now + 72 * SECOND), Condition::Late(_)));
    }

    #[test]
    fn loop_that_has_ended_in_whatever_way_shows() {
        let heartbeat = Heartbeat::new(SECOND);
        let progress = heartbeat.progress();
        drop(heartbeat);
        assert_eq!(progress.at(Instant::now()), Condition::Ended);
        let heartbeat = Heartbeat::new(SECOND);
        let progress = heartbeat.progress();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _moved = heartbeat;
            panic!("a fault");
        }));
        assert_eq!(progress.at(Instant::now()), Condition::Ended);
    }
}
