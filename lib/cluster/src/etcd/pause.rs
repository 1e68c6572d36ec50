//! A pause that ends on time on a machine that was asleep.
//!
//! Invariant: tokio's clock (`CLOCK_MONOTONIC`) stands still while a machine is suspended and an etcd lease does not; so a
//! long pause is slept in slices, and what is left is measured by `CLOCK_BOOTTIME`. The time of day is never asked for.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep};

/// The longest time that a pause may outlast its end after a suspension.
const SLICE: Duration = Duration::from_secs(60);

/// Waits for `length`, time asleep included.
pub(super) async fn pause(length: Duration) {
    let begin = Instant::now();
    // A kernel without that clock (before Linux 2.6.39) leaves tokio's.
    let clock = || awake_or_not().unwrap_or_else(|| begin.elapsed());
    let end = clock().saturating_add(length);
    while let Some(slice) = next_slice(end, clock()) {
        sleep(slice).await;
    }
}

/// How long to sleep at `now` for a pause until `end`; `None` when that has come.
fn next_slice(end: Duration, now: Duration) -> Option<Duration> {
    let left = end.saturating_sub(now);
    (!left.is_zero()).then(|| left.min(SLICE))
}

fn awake_or_not() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_ends_within_a_minute_of_waking_up() {
        let hours = |count: u64| Duration::from_secs(count * 3600);
        assert_eq!(next_slice(hours(8), hours(0)), Some(SLICE));
        assert_eq!(next_slice(hours(8), hours(8) - Duration::from_secs(5)), Some(Duration::from_secs(5)));
        assert_eq!(next_slice(hours(8), hours(20)), None, "it slept through the end");
    }

    #[tokio::test]
    async fn pause_lasts_as_long_as_it_says() {
        let begin = Instant::now();
        pause(Duration::from_millis(50)).await;
        assert!(begin.elapsed() >= Duration::from_millis(50));
    }
}
