//! What a process has used: memory and processor time (proc(5)).
//!
//! Invariant: a process's time counts in the kernel's unit of 10 ms, so it is shown only for work that takes many of them; what is short is
//! taken from the scheduler's account of its threads.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::is_rehearsal;

/// Ticks per second of /proc (USER_HZ), the same on every Linux of today.
const TICK: Duration = Duration::from_millis(10);

/// Memory and time of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The most resident memory it ever had, in KiB.
    pub(crate) most_resident: u64,
    /// What of it is resident now.
    pub(crate) resident: u64,
    /// Time on a processor, in user and kernel mode, all threads.
    pub(crate) processor: Duration,
    /// Pages that the kernel gave it when it first touched them.
    pub(crate) faults: u32,
}

/// The usage of a process, by its PID as this process numbers it.
///
/// # Errors
/// When the process is gone.
pub(crate) fn of(pid: i32) -> Result<Usage> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("process {pid}"));
    let status = read("status")?;
    let size = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let stat = read("stat")?;
    let (processor, faults) = (ticks(&stat, [14, 15]), numbers(&stat, [10]).sum());
    Ok(Usage { most_resident: size("VmHWM:"), resident: size("VmRSS:"), processor, faults })
}

/// Time on a processor of all threads that a process has now, in the scheduler's unit of a nanosecond.
///
/// # Errors
/// When the process is gone, or the kernel keeps no such account (CONFIG_SCHED_INFO).
pub(crate) fn scheduled(pid: i32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?.parse()?;
        total += Duration::from_nanos(nanoseconds);
    }
    Ok(total)
}

/// Time on a processor of all programs that a process has executed and waited for, and of theirs.
///
/// # Errors
/// When the process is gone.
pub(crate) fn executed(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    Ok(ticks(&stat, [16, 17]))
}

/// How long a process is watched that has nothing to do, and in a rehearsal.
const QUIET: Duration = Duration::from_secs(60);
const REHEARSED: Duration = Duration::from_secs(1);

/// The part of a processor that a process needs in the next minute. A kernel without the scheduler's account counts it in ticks.
///
/// # Errors
/// When the process is gone.
pub(crate) fn share(pid: i32) -> Result<f64> {
    let used = || scheduled(pid).or_else(|_| Ok::<_, anyhow::Error>(of(pid)?.processor));
    let (before, started) = (used()?, Instant::now());
    std::thread::sleep(if is_rehearsal() { REHEARSED } else { QUIET });
    Ok(used()?.saturating_sub(before).as_secs_f64() / started.elapsed().as_secs_f64())
}

/// Time on a processor of all children that this process has waited for, and of theirs.
pub(crate) fn of_children() -> Duration {
    ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default(), [16, 17])
}

/// The sum of fields of a `stat` line, which are numbered from 1 as in proc(5).
fn ticks(stat: &str, fields: [usize; 2]) -> Duration {
    TICK * numbers(stat, fields).sum()
}

fn numbers<const N: usize>(stat: &str, fields: [usize; N]) -> impl Iterator<Item = u32> {
    // The second field is a name in brackets and may hold blanks.
    let all: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.into_iter().map(move |number| all.get(number - 3).and_then(|field| field.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 7 5 30 12 20 0";
        assert_eq!(ticks(stat, [14, 15]), Duration::from_millis(120));
        assert_eq!(ticks(stat, [16, 17]), Duration::from_millis(420));
        assert_eq!(numbers(stat, [10]).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn own_usage_is_known() {
        let own = of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.most_resident >= own.resident && own.resident > 100, "{own:?}");
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(scheduled(own).unwrap() > Duration::ZERO);
    }
}
