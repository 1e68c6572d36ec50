//! One lease that changes among many: the time until the kernel has it, and the processor that `netd` needs for it.
//!
//! Invariant: the time ends with the kernel's own announcement of the changed entry, and counts only when the entry is the new one. The
//! processor time is the scheduler's, in nanoseconds, over all changes together.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Host;

use super::watch::Watch;
use super::{DEVICE, Lease};
use crate::samples::Samples;
use crate::store::Store;
use crate::usage;

/// How often the lease is changed.
const CHANGES: usize = 30;
/// Pause between two readings of the announcements.
const PAUSE: Duration = Duration::from_micros(200);
const LIMIT: Duration = Duration::from_secs(30);

/// What the changes of one number of leases gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    /// From the start of the write to etcd.
    pub(super) took: Samples,
    /// The write alone.
    pub(super) write: Samples,
    /// Processor time of netd for one change.
    pub(super) processor: Samples,
    /// The kernel's announcements for all changes.
    pub(super) announced: usize,
}

/// Moves the node of the middle lease to and fro, while the daemon `pid` runs on `node`.
pub(super) fn measure(node: &Host, pid: i32, store: &Store, lease: (&str, usize), changes: &mut Changes) -> Result<()> {
    let (etcd_lease, leases) = lease;
    let middle = Lease { index: leases / 2 };
    let before = usage::scheduled(pid)?;
    for turn in 0..CHANGES {
        let address = middle.address(turn % 2 == 0);
        let watch = Watch::start(node, DEVICE)?;
        let started = Instant::now();
        store.put_all(&[middle.entry(&address)], Some(etcd_lease))?;
        changes.write.push(started.elapsed());
        let mut announced = 0;
        while announced == 0 {
            ensure!(started.elapsed() < LIMIT, "the kernel announced nothing for {address}");
            thread::sleep(PAUSE);
            announced = watch.changes()?;
        }
        changes.took.push(started.elapsed());
        confirm(node, &middle, &address)?;
        changes.announced += announced + watch.changes()?;
    }
    let used = usage::scheduled(pid)?.saturating_sub(before);
    changes.processor.push(used / u32::try_from(CHANGES).context("the number of changes")?);
    Ok(())
}

fn confirm(node: &Host, lease: &Lease, address: &str) -> Result<()> {
    let table = node.run(&["bridge", "fdb", "show", "dev", DEVICE])?.stdout;
    let line = table.lines().find(|line| line.starts_with(&lease.mac())).unwrap_or_default();
    ensure!(line.contains(&format!(" dst {address} ")), "the entry of the moved node is {line:?}, not {address}");
    Ok(())
}
