//! Counting the messages that a process sends to the kernel by netlink, with strace(1).
//!
//! Invariant: every message of a datagram counts, the marks of a transaction's beginning and end included, and every listing.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Host, Process};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);
/// Where strace writes, in the machine.
const TRACE: &str = "/run/trace";

/// A running count.
#[derive(Debug)]
pub(crate) struct Messages {
    host: Host,
    strace: Process,
}

impl Messages {
    /// Begins to count those of the process `pid`, as this process numbers it.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub(crate) fn start(host: &Host, pid: i32) -> Result<Self> {
        let inside = inside(pid)?;
        let strace = host.command("strace").args(["-f", "-s", "100000", "-e", "trace=sendto,sendmsg", "-o", TRACE]);
        let strace = strace.args(["-p", &inside]).start("strace")?;
        strace.wait_for_line("attached", LIMIT)?;
        Ok(Self { host: host.clone(), strace })
    }

    /// How many there were so far.
    ///
    /// # Errors
    /// When the count cannot be read.
    pub(crate) fn count(&self) -> Result<usize> {
        Ok(self.host.read(TRACE)?.matches("nlmsg_len=").count())
    }

    /// Lets go of the process.
    ///
    /// # Errors
    /// When strace does not end.
    pub(crate) fn end(self) -> Result<()> {
        self.strace.signal(Signal::SIGINT)?;
        self.strace.wait(LIMIT).map(drop)
    }
}

/// The number that a process has in its own machine (proc(5), NSpid).
fn inside(pid: i32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.and_then(|line| line.split_whitespace().last()).map(str::to_owned).context("no NSpid")
}
