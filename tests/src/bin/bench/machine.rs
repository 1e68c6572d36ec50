//! The machine that is measured: what it is, and whether something else keeps it busy.
//!
//! Invariant: a measurement waits for a calm moment, but only for so long; that it went ahead on a busy machine is counted and reported.

use std::fs;
use std::time::{Duration, Instant};

/// How long a measurement waits for calm.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the machine is watched at a time.
const WATCH: Duration = Duration::from_millis(250);
/// Share of idle time, in percent, at which a machine counts as calm.
const CALM: u64 = 85;

/// One line: processor, number of processors, memory, kernel.
pub(crate) fn describe() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes: u64 = meminfo.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let model = field("model name").or_else(|| field("host")).unwrap_or_else(|| "unknown processor".to_owned());
    let kernel = lab::lab_kernel::describe();
    format!("{processors} × {model}, {:.1} GiB of memory, {kernel}", mebibytes(kibibytes) / 1024.0)
}

/// The load averages over 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Kibibytes as mebibytes.
pub(crate) fn mebibytes(kibibytes: u64) -> f64 {
    // Sizes of memory are far below 2^52 KiB.
    #[allow(clippy::cast_precision_loss)]
    let kibibytes = kibibytes as f64;
    kibibytes / 1024.0
}

/// Whether a test only wants to know that the benchmark runs: with `NETD_BENCH_BUSY` set every moment and short measurements will do.
pub(crate) fn is_rehearsal() -> bool {
    std::env::var_os("NETD_BENCH_BUSY").is_some()
}

/// Waits until the machine has been idle for a quarter of a second, 10 s at most; whether it was.
pub(crate) fn await_calm() -> bool {
    if is_rehearsal() {
        return false;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = ticks();
        std::thread::sleep(WATCH);
        let after = ticks();
        let (idle, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
        if idle * 100 >= all * CALM {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
    }
}

/// Idle and all ticks of all processors since boot (proc(5), /proc/stat).
fn ticks() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // Guest time is counted in user time already.
    let all = ticks.iter().take(8).sum();
    (ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0), all)
}
