//! One lease that changes among many: the time until the kernel has it, and the processor that `netd` needs for it.
//!
//! Invariant: the time ends with the kernel's own announcement of the last entry that changes, and counts only when the entry is there, or
//! gone, right after. `netd`'s part of it begins when the node's kernel receives etcd's word about the lease. The processor time is the
//! scheduler's, in nanoseconds; what netd does by the clock meanwhile is in it, so the median counts.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use lab::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::watch::{Last, Watch};
use super::{DEVICE, Lease};
use crate::arrival::Arrivals;
use crate::report::{Report, ms};
use crate::samples::Samples;
use crate::store::Store;
use crate::usage;

/// How often each kind of change is made.
const TURNS: usize = 30;
const LIMIT: Duration = Duration::from_secs(30);

/// What happens to the lease of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The node of the middle lease has another address.
    Moved,
    /// There is one node more.
    Came,
    /// It is gone.
    Went,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Moved, Self::Came, Self::Went];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Moved => "its node has another address (1 entry)",
            Self::Came => "a node more (3 entries)",
            Self::Went => "a node less (3 entries)",
        }
    }

    /// What is announced at the end: entries come with the neighbour first and the route last, and go in the other order.
    const fn last(self) -> Last {
        match self {
            Self::Moved => Last::ForwardingSet,
            Self::Came => Last::RouteSet,
            Self::Went => Last::NeighbourGone,
        }
    }
}

/// What the changes of one kind gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    /// From the start of the write to etcd.
    pub(super) took: Samples,
    /// The write alone.
    pub(super) write: Samples,
    /// From the arrival of etcd's word on the node.
    pub(super) own: Samples,
}

/// What the changes of one number of leases gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    /// In the order of [`Kind::ALL`].
    pub(super) times: [Times; 3],
    /// Processor time of netd for one change, until it has been confirmed.
    pub(super) processor: Samples,
    /// The kernel's announcements for all changes.
    pub(super) announced: usize,
}

/// What netd does when the change comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// What it does by the clock.
    Nothing,
    /// It compares every table with the kernel: it was asked to (SIGHUP) right before, as it does by itself each minute.
    Audit,
}

/// The machines and the process that are watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) node: &'a Host,
    pub(super) pid: i32,
    pub(super) store: &'a Store,
    /// The etcd lease that keys are bound to.
    pub(super) etcd_lease: &'a str,
    /// Open on the node for some time already.
    pub(super) arrivals: &'a Arrivals,
    pub(super) beside: Beside,
}

/// Moves the node of the middle one of so many leases to and fro, and lets another one come and go.
pub(super) fn measure(place: Place, leases: usize, changes: &mut Changes) -> Result<()> {
    let (middle, further) = (Lease { index: leases / 2 }, Lease { index: leases });
    for turn in 0..TURNS {
        for (kind, times) in Kind::ALL.into_iter().zip(&mut changes.times) {
            let lease = if kind == Kind::Moved { &middle } else { &further };
            let (address, before) = (lease.address(turn % 2 == 0), usage::scheduled(place.pid)?);
            changes.announced += one(place, kind, lease, &address, times)?;
            confirm(place.node, kind, lease, &address)?;
            changes.processor.push(usage::scheduled(place.pid)?.saturating_sub(before));
        }
    }
    Ok(())
}

/// Makes one change and waits for its end; the number of announcements.
fn one(place: Place, kind: Kind, lease: &Lease, address: &str, times: &mut Times) -> Result<usize> {
    let Place { node, pid, store, etcd_lease, arrivals, beside } = place;
    let watch = Watch::start(node, DEVICE)?;
    arrivals.discard()?;
    let (key, value) = lease.entry(address);
    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
    if beside == Beside::Audit {
        kill(Pid::from_raw(pid), Signal::SIGHUP).context("SIGHUP")?;
    }
    let started = SystemTime::now();
    let (written, ended) = thread::scope(|scope| {
        let waiting = scope.spawn(|| watch.wait(kind.last(), LIMIT));
        match kind {
            Kind::Moved | Kind::Came => store.put_all(&[(key, value)], Some(etcd_lease))?,
            Kind::Went => store.delete(&key)?,
        }
        let written = SystemTime::now();
        anyhow::Ok((written, waiting.join().map_err(|_| anyhow!("the thread that waits has ended"))??))
    })?;
    let (at, announced) = ended.with_context(|| format!("{}: nothing was announced in time", kind.name()))?;
    let arrived = arrivals.first_with(&name)?.with_context(|| format!("no packet has {name}"))?;
    times.took.push(at.duration_since(started)?);
    times.write.push(written.duration_since(started)?);
    times.own.push(at.duration_since(arrived)?);
    Ok(announced + watch.changes()?)
}

/// Fails when the kernel does not have what the change asked for.
fn confirm(node: &Host, kind: Kind, lease: &Lease, address: &str) -> Result<()> {
    let (table, wanted) = match kind {
        Kind::Moved => (node.run(&["bridge", "fdb", "show", "dev", DEVICE])?.stdout, format!(" dst {address} ")),
        Kind::Came | Kind::Went => {
            let [a, b, c, _] = lease.subnet();
            let subnet = format!("{a}.{b}.{c}.0/24");
            (node.run(&["ip", "route", "show", &subnet])?.stdout, format!("{subnet} via"))
        }
    };
    let mut lines = table.lines().filter(|line| kind != Kind::Moved || line.starts_with(&lease.mac()));
    let is_there = lines.any(|line| line.contains(&wanted));
    ensure!(is_there == (kind != Kind::Went), "{}: {wanted:?} is there: {is_there}", kind.name());
    Ok(())
}

/// The times, by the number of leases.
pub(super) fn times(all: &[(usize, &Changes)], beside: Beside, report: &Report) {
    report.section(match beside {
        Beside::Nothing => "netd: one lease changes among them, until the kernel has it (milliseconds)",
        Beside::Audit => "netd: the same while it compares every table with the kernel (milliseconds)",
    });
    let head =
        ["leases", "what changes", "median", "p99", "of it etcd's write", "netd's part, median", "its p99", "changes"];
    let rows = all.iter().flat_map(|(leases, changes)| {
        Kind::ALL.into_iter().zip(&changes.times).map(|(kind, times)| {
            vec![
                leases.to_string(),
                kind.name().to_owned(),
                ms(times.took.median()),
                ms(times.took.p99()),
                ms(times.write.median()),
                ms(times.own.median()),
                ms(times.own.p99()),
                times.took.len().to_string(),
            ]
        })
    });
    report.table(&head, &rows.collect::<Vec<_>>());
}

/// What they took of the processor, by the number of leases.
pub(super) fn processor(all: &[(usize, &Changes)], report: &Report) {
    report.section("netd: its processor for one of these changes (milliseconds)");
    let row = |(leases, changes): &(usize, &Changes)| {
        let Changes { processor, announced, .. } = changes;
        vec![leases.to_string(), ms(processor.median()), ms(processor.most()), announced.to_string()]
    };
    report.table(&["leases", "median", "most", "kernel changes"], &all.iter().map(row).collect::<Vec<_>>());
}
