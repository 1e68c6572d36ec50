//! `Liveness`: whether every loop of the daemon makes progress, for health checks, the status and the watchdog.
//!
//! Invariant: a daemon is alive when each of its loops waits for something, or works within the limit that fits it; one
//! that is stuck or has ended is named.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use cluster::heartbeat::{Condition, Heartbeat, Progress};

/// A loop that makes no progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Its name.
    pub name: String,
    /// How it is.
    pub condition: Condition,
    /// The longest time that it may work without a pause.
    pub limit: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, condition, limit } = self;
        match condition {
            Condition::Alive => write!(f, "{name}: alive"),
            Condition::Late(late) => {
                write!(f, "{name}: no progress, {} s beyond its limit of {} s", late.as_secs(), limit.as_secs())
            }
            Condition::Ended => write!(f, "{name}: has ended"),
        }
    }
}

/// The loops that are judged; clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Liveness {
    loops: Arc<Mutex<BTreeMap<String, Progress>>>,
}

impl Liveness {
    /// A loop that is judged as `name` from now on, in the place of an earlier one of that name. It works for `limit` at
    /// most without a pause.
    #[must_use]
    pub fn heartbeat(&self, name: impl Into<String>, limit: Duration) -> Heartbeat {
        let heartbeat = Heartbeat::new(limit);
        self.judge(name, heartbeat.progress());
        heartbeat
    }

    /// Judges a loop that was begun elsewhere.
    pub fn judge(&self, name: impl Into<String>, progress: Progress) {
        self.lock().insert(name.into(), progress);
    }

    /// A loop that shall end is not judged any more; one that has taken its name is.
    pub fn forget(&self, name: &str, progress: &Progress) {
        let mut loops = self.lock();
        if loops.get(name).is_some_and(|judged| judged.is_of(progress)) {
            loops.remove(name);
        }
    }

    /// The program ends, and every loop with it: none is judged any more.
    pub fn end(&self) {
        self.lock().clear();
    }

    /// The names of the loops.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The loops that make no progress.
    #[must_use]
    pub fn stuck(&self) -> Vec<Stuck> {
        self.stuck_at(Instant::now())
    }

    /// The loops that will have made no progress at `now` if nothing happens until then.
    #[must_use]
    pub fn stuck_at(&self, now: Instant) -> Vec<Stuck> {
        let loops = self.lock();
        let stuck = loops.iter().filter_map(|(name, progress)| {
            let condition = progress.at(now);
            let stuck = || Stuck { name: name.clone(), condition, limit: progress.limit() };
            (condition != Condition::Alive).then(stuck)
        });
        stuck.collect()
    }

    /// True when a loop makes no progress.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        !self.stuck().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Progress>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_loop_that_makes_no_progress_is_named() {
        let liveness = Liveness::default();
        let (worker, keeper) = (liveness.heartbeat("worker", 60 * SECOND), liveness.heartbeat("keeper", 600 * SECOND));
        worker.busy();
        keeper.busy();
        assert!(!liveness.is_stuck());
        let words = |after: u32| {
            let stuck = liveness.stuck_at(Instant::now() + after * SECOND);
            stuck.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(words(59), Vec::<String>::new());
        assert_eq!(words(70).len(), 1);
        assert!(
            words(70)[0].starts_with("worker: no progress, ") && words(70)[0].ends_with(" s beyond its limit of 60 s")
        );
        assert_eq!(words(700).len(), 2);
        drop(keeper);
        assert_eq!(words(0), ["keeper: has ended"]);
        assert!(liveness.is_stuck());
    }

    #[test]
    fn loop_that_shall_end_is_not_missed_and_its_successor_is_judged() {
        let liveness = Liveness::default();
        let first = liveness.heartbeat("worker", SECOND);
        let second = liveness.heartbeat("worker", SECOND);
        liveness.forget("worker", &first.progress());
        drop(first);
        assert!(!liveness.is_stuck());
        assert_eq!(liveness.names(), ["worker"]);
        let progress = second.progress();
        drop(second);
        assert!(liveness.is_stuck());
        liveness.forget("worker", &progress);
        assert!(!liveness.is_stuck());
    }
}
