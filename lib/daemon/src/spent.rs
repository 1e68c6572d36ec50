//! `Spent`: what a piece of work on this thread takes of a processor.
//!
//! Invariant: time in which the thread waited, for a processor as well, does not count: on a busy machine work costs what it costs on an idle
//! one. Some kernels count a thread's time in ticks of 10 ms (user-mode Linux); it is never more than what passed.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// A piece of work that has begun on this thread.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    begun: Instant,
    before: Option<Duration>,
}

impl Spent {
    /// The work begins.
    #[must_use]
    pub fn begin() -> Self {
        Self { begun: Instant::now(), before: of_thread() }
    }

    /// What it has taken so far: of a processor, or of the clock where the kernel does not say.
    #[must_use]
    pub fn so_far(&self) -> Duration {
        let passed = self.begun.elapsed();
        let of_processor = self.before.zip(of_thread()).map(|(before, now)| now.saturating_sub(before));
        of_processor.map_or(passed, |spent| spent.min(passed))
    }
}

/// What this thread has taken of a processor (clock_gettime(2), `CLOCK_THREAD_CPUTIME_ID`).
fn of_thread() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_counts_and_waiting_does_not() {
        let spent = Spent::begin();
        let (_sender, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(Duration::from_millis(200));
        assert!(spent.so_far() < Duration::from_millis(150), "{:?}", spent.so_far());
        let begun = Instant::now();
        while spent.so_far() < Duration::from_millis(150) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", spent.so_far());
        }
    }
}
