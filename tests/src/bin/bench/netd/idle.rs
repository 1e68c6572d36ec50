//! What `netd` needs while no lease changes: beside a quiet host, and beside one where others change what is none of its own.
//!
//! Invariant: the processor time is the scheduler's, in nanoseconds, for a stretch of some seconds, and shown as a part of one processor.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Host;

use crate::report::Report;
use crate::usage;

/// How long nothing happens.
const QUIET: Duration = Duration::from_secs(10);

/// A moment of rest.
const REST: Duration = Duration::from_millis(500);

/// Each 50 ms one ARP entry and one route, each 350 ms one Pod's pair of links.
const CHURN: &str = "for n in $(seq 100); do \
    ip neigh replace 10.4.7.200 lladdr 02:00:00:00:01:$(printf %02x $n) dev eth0; \
    ip route replace 10.9.$n.0/24 via 10.4.7.254; \
    if [ $((n % 7)) = 0 ]; then ip link add veth$n type veth peer name peer$n; ip link set veth$n up; ip link del veth$n; fi; \
    sleep 0.05; done; ip neigh del 10.4.7.200 dev eth0; for n in $(seq 100); do ip route del 10.9.$n.0/24; done";

/// Parts of one processor.
#[derive(Debug, Clone, Default)]
pub(super) struct Idle {
    quiet: Vec<f64>,
    churn: Vec<f64>,
}

impl Idle {
    /// Measures the daemon `pid` on `node`.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn measure(&mut self, node: &Host, pid: i32) -> Result<()> {
        settle(pid)?;
        self.quiet.push(share(pid, || {
            thread::sleep(QUIET);
            Ok(())
        })?);
        self.churn.push(share(pid, || node.run(&["sh", "-ec", CHURN]).map(drop))?);
        Ok(())
    }

    /// The largest of each, as text in percent.
    pub(super) fn columns(&self) -> [String; 2] {
        [&self.quiet, &self.churn].map(|parts| format!("{:.2} %", parts.iter().copied().fold(0.0, f64::max) * 100.0))
    }
}

/// The table, by the number of leases.
pub(super) fn table(all: &[(usize, &Idle)], report: &Report) {
    report.section("netd: its part of one processor while no lease changes");
    let head = ["leases", "quiet host", "20 ARP entries, 20 routes, 3 Pods a second, of others"];
    let row = |(leases, idle): &(usize, &Idle)| {
        let [quiet, churn] = idle.columns();
        vec![leases.to_string(), quiet, churn]
    };
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
}

/// Waits until what was changed before is done with: half a second in which the process needs next to nothing.
fn settle(pid: i32) -> Result<()> {
    lab::eventually(QUIET, || {
        let before = usage::scheduled(pid)?;
        thread::sleep(REST);
        let used = usage::scheduled(pid)?.saturating_sub(before);
        ensure!(used < REST / 1000, "{used:?} of {REST:?} are still used");
        Ok(())
    })
}

/// The part of a processor that the process needs while `during` runs.
fn share(pid: i32, during: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (before, started) = (usage::scheduled(pid)?, Instant::now());
    during()?;
    Ok(usage::scheduled(pid)?.saturating_sub(before).as_secs_f64() / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_part_is_shown() {
        let idle = Idle { quiet: vec![0.0005, 0.001], churn: vec![0.01234] };
        assert_eq!(idle.columns(), ["0.10 %", "1.23 %"]);
    }
}
