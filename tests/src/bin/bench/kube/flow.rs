//! What a process has used and received between two moments.
//!
//! Invariant: bytes are those that came in at the node's interface, with everything that TLS and TCP put around them; nothing but what is
//! measured talks to the node meanwhile.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Host;

use super::LIMIT;
use crate::usage;

/// A moment in which nothing happens any more.
const REST: Duration = Duration::from_millis(250);

/// Counts from a moment on.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    host: &'a Host,
    pid: i32,
    before: Used,
}

/// Bytes that came in, and time on a processor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) bytes: u64,
    /// With that of the programs that it has executed, which kube-proxy writes its rules by.
    pub(super) processor: Duration,
}

impl<'a> Flow<'a> {
    /// Begins once the process rests.
    pub(super) fn start(host: &'a Host, pid: i32) -> Result<Self> {
        let mut flow = Self { host, pid, before: Used::default() };
        flow.before = flow.settled()?;
        Ok(flow)
    }

    /// What came and was used since the start, once the process rests.
    pub(super) fn end(&self) -> Result<Used> {
        let now = self.settled()?;
        Ok(Used {
            bytes: now.bytes - self.before.bytes,
            processor: now.processor.saturating_sub(self.before.processor),
        })
    }

    fn settled(&self) -> Result<Used> {
        lab::eventually(LIMIT, || {
            let before = self.now()?;
            thread::sleep(REST);
            let now = self.now()?;
            let used = now.processor.saturating_sub(before.processor);
            // A clock of the daemon, or a bookmark, may pass meanwhile.
            ensure!(used < REST / 50 && now.bytes - before.bytes < 4096, "{used:?} of {REST:?} are still used");
            Ok(now)
        })
    }

    fn now(&self) -> Result<Used> {
        Ok(Used { bytes: received(self.host)?, processor: usage::scheduled(self.pid)? + usage::executed(self.pid)? })
    }
}

/// Bytes that have come in at a machine's interface since it was made.
pub(super) fn received(host: &Host) -> Result<u64> {
    let count = host.read("/sys/class/net/eth0/statistics/rx_bytes")?;
    count.trim().parse().context("rx_bytes")
}

impl Used {
    /// Each of so many changes: bytes and milliseconds.
    pub(super) fn each(self, changes: usize) -> (u64, f64) {
        let count = u32::try_from(changes).unwrap_or(u32::MAX).max(1);
        (self.bytes / u64::from(count), self.processor.as_secs_f64() * 1000.0 / f64::from(count))
    }
}
