//! Waiting on a condition with a deadline: the only way a test waits.
//!
//! Invariant: a wait ends as soon as the condition holds and never later than its deadline, and a failed wait says what was
//! last seen. Polling is gentle (5 ms growing to 100 ms), because a system call inside the lab kernel costs ten times more.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What `tests/kernel/run` says to the guest about the machine beside it.
const SHARING_VARIABLE: &str = "NETD_LAB_SHARING";

/// Calls `condition` until it returns `Ok` and gives back its value.
///
/// The error type only needs to be readable: `String`, `anyhow::Error` and every `std::error::Error` fit.
///
/// # Errors
/// When `limit` has passed, with the last answer of the condition and the number of attempts.
pub fn eventually<T, E: Display>(limit: Duration, mut condition: impl FnMut() -> Result<T, E>) -> Result<T> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut attempts = 0_u32;
    loop {
        attempts += 1;
        let last = match condition() {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        let elapsed = started.elapsed();
        if elapsed >= limit {
            bail!("still not so after {:.1} s and {attempts} attempts; last seen: {last:#}", elapsed.as_secs_f64());
        }
        std::thread::sleep(pause.min(limit.saturating_sub(elapsed)));
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// Watches `condition` for the whole of `period` and gives up at the first time it does not hold.
///
/// For statements of the form "nothing happens": a foreign route is still there, no packet was lost.
///
/// # Errors
/// The condition's own error, with the time at which it stopped holding.
pub fn throughout<E: Display>(period: Duration, mut condition: impl FnMut() -> Result<(), E>) -> Result<()> {
    let started = Instant::now();
    loop {
        let elapsed = started.elapsed();
        if let Err(broken) = condition() {
            bail!("stopped holding after {:.1} s of {:.1} s: {broken:#}", elapsed.as_secs_f64(), period.as_secs_f64());
        }
        if elapsed >= period {
            return Ok(());
        }
        std::thread::sleep(LONGEST_PAUSE.min(period.saturating_sub(elapsed)));
    }
}

/// What a promise of `limit` comes to on this machine: longer by as much as there is more to run than it has processors.
///
/// For tests of how fast something is: they share the processors with whatever else runs, and start processes to find out. In the lab kernel
/// what runs beside it counts as well, as it was when that kernel was started.
#[must_use]
pub fn allowing_for_load(limit: Duration) -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let outside = std::env::var(SHARING_VARIABLE).unwrap_or_default();
    limit.mul_f64(crowding(&load, processors) * sharing(&outside))
}

/// How many share a processor of the machine that the lab kernel runs on, as `tests/kernel/run` says it: at least one.
fn sharing(text: &str) -> f64 {
    text.parse::<f64>().ok().filter(|number| number.is_finite()).unwrap_or_default().max(1.0)
}

/// How many share one of `processors`, at least one: on the average of the last minute or just now, whichever is more.
fn crowding(load: &str, processors: usize) -> f64 {
    let mut words = load.split(' ');
    let average = words.next().and_then(|word| word.parse::<f64>().ok()).unwrap_or_default();
    let now = words.nth(2).and_then(|word| word.split('/').next()?.parse::<f64>().ok()).unwrap_or_default();
    let processors = u32::try_from(processors.max(1)).unwrap_or(u32::MAX);
    (average.max(now) / f64::from(processors)).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_in_a_lab_kernel_grows_with_what_runs_beside_it() {
        let is = |text: &str, wanted: f64| (sharing(text) - wanted).abs() < 1e-9;
        assert!(is("6.5", 6.5) && is("0.2", 1.0) && is("", 1.0) && is("inf", 1.0) && is("NaN", 1.0));
    }

    #[test]
    fn limit_grows_with_what_shares_a_processor() {
        let is = |load: &str, processors, wanted: f64| (crowding(load, processors) - wanted).abs() < 1e-9;
        assert!(is("0.10 0.20 0.30 1/300 4711", 2, 1.0));
        assert!(is("20.00 12.00 3.00 2/300 4711", 2, 10.0));
        assert!(is("0.50 0.20 0.30 12/300 4711", 4, 3.0), "what has begun just now");
        assert!(is("", 2, 1.0));
    }

    #[test]
    fn wait_ends_with_the_value_as_soon_as_the_condition_holds() {
        let mut calls = 0;
        let value = eventually(Duration::from_secs(5), || {
            calls += 1;
            if calls < 3 { Err("not yet") } else { Ok(calls) }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn failed_wait_reports_what_was_last_seen() {
        let error = eventually::<(), _>(Duration::from_millis(20), || Err("2 of 3 routes")).unwrap_err();
        assert!(error.to_string().contains("last seen: 2 of 3 routes"), "{error}");
    }

    #[test]
    fn watch_reports_the_first_moment_a_condition_breaks() {
        let mut calls = 0;
        let error = throughout(Duration::from_secs(5), || {
            calls += 1;
            if calls == 2 { Err("route is gone") } else { Ok(()) }
        });
        assert!(error.unwrap_err().to_string().contains("route is gone"));
    }
}
