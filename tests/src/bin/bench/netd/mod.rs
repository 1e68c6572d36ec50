//! Leases that are in etcd already, until the kernel has every entry for them: `netd` next to `ip -batch` and `bridge -batch`.
//!
//! Invariant: the floor writes the very entries that `netd` left in the kernel, read back from it, into a machine like the node. A time
//! counts only when all entries were found in the kernel right after it was taken.

mod changes;
pub(crate) mod entries;
mod floor;
mod host_gw;
mod idle;
pub(crate) mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Host, Process, Topology, bin};

use crate::arrival::Arrivals;
use crate::machine;
use crate::options::Options;
use crate::report::{Report, ms, times};
use crate::samples::Samples;
use crate::store::Store;
use crate::usage::{self, Usage};
use changes::{Beside, Changes, Place};
use entries::Entries;
use idle::Idle;
use watch::Watch;

const DRAWING: &str = "network 10.4.7.0/24\nstore 10.4.7.12 etcd\nnode 10.4.7.21\nfloor 10.4.7.31";
const PREFIX: &str = "/coreos.com/network";
/// Room for 65,536 subnets of /24.
const NET_CONF: &str = r#"{"Network": "100.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan", "VNI": 1}}"#;
const DEVICE: &str = "flannel.1";
const DAY: u32 = 86_400;
/// The line with which netd says that it has the store's leases in memory and has done nothing with them yet.
const LISTED: &str = "the leases are listed";
/// The line with which netd says that it is done.
const READY: &str = "ready: every lease is in the kernel";
const LIMIT: Duration = Duration::from_secs(120);

/// What one number of leases gave.
#[derive(Debug, Default)]
struct Figures {
    /// A node that has no lease yet and an empty kernel.
    join: Samples,
    /// A node that was booted anew: it has its lease and an empty kernel.
    start: Samples,
    /// Of that, the time from the snapshot in memory on.
    fill: Samples,
    batch: Samples,
    /// One process that sends the messages and does nothing else.
    floor: Samples,
    /// `ip -batch` with the routes as flannel writes them: all of one metric.
    flannel_routes: Samples,
    restart: Samples,
    /// The kernel's announcements during a restart.
    restart_changes: usize,
    changes: Changes,
    /// Changes that come while every table is being compared.
    audited: Changes,
    idle: Idle,
    processor: Vec<Duration>,
    most_resident: u64,
    busy: usize,
}

/// Measures and reports.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    report.section("netd: leases already in etcd, until all kernel entries are in place (vxlan; milliseconds)");
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let mut all = Vec::new();
    for &leases in &options.leases {
        all.push((leases, series(leases, options, report).with_context(|| format!("{leases} leases"))?));
    }
    tables(&all, report);
    host_gw::measure(options, report)
}

fn tables(all: &[(usize, Figures)], report: &Report) {
    let spread = |samples: &Samples| format!("{}–{}", ms(samples.least()), ms(samples.most()));
    let head = [
        "leases",
        "netd",
        "least–most",
        "netd, joining",
        "of netd from the snapshot",
        "floor",
        "snapshot/floor",
        "netd/floor",
        "ip, bridge -batch",
        "least–most",
        "netd/batch",
        "batch, one metric",
    ];
    let row = |(leases, figures): &(usize, Figures)| {
        vec![
            leases.to_string(),
            ms(figures.start.median()),
            spread(&figures.start),
            ms(figures.join.median()),
            ms(figures.fill.median()),
            ms(figures.floor.median()),
            times(figures.fill.median(), figures.floor.median()),
            times(figures.start.median(), figures.floor.median()),
            ms(figures.batch.median()),
            spread(&figures.batch),
            times(figures.start.median(), figures.batch.median()),
            ms(figures.flannel_routes.median()),
        ]
    };
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
    let head = ["leases", "processor", "memory, most, MiB", "restart", "least–most", "kernel changes"];
    let row = |(leases, figures): &(usize, Figures)| {
        let mut processor = Samples::default();
        figures.processor.iter().for_each(|time| processor.push(*time));
        vec![
            leases.to_string(),
            ms(processor.median()),
            format!("{:.1}", machine::mebibytes(figures.most_resident)),
            ms(figures.restart.median()),
            spread(&figures.restart),
            figures.restart_changes.to_string(),
        ]
    };
    report.section("netd: what it used until then, and a restart with nothing to change");
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
    let changes: Vec<_> = all.iter().map(|(leases, figures)| (*leases, &figures.changes)).collect();
    let audited: Vec<_> = all.iter().map(|(leases, figures)| (*leases, &figures.audited)).collect();
    changes::times(&changes, Beside::Nothing, report);
    changes::times(&audited, Beside::Audit, report);
    changes::processor(&changes, report);
    idle::table(&all.iter().map(|(leases, figures)| (*leases, &figures.idle)).collect::<Vec<_>>(), report);
    let busy: usize = all.iter().map(|(_, figures)| figures.busy).sum();
    if busy > 0 {
        report.text(&format!("{busy} measurements began on a busy machine."));
    }
}

/// All rounds with one number of leases.
fn series(leases: usize, options: &Options, report: &Report) -> Result<Figures> {
    let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
    let (store_host, node) = (cluster.host("store")?, cluster.host("node")?);
    let etcd = Etcd::start([store_host])?;
    let store = Store::new(store_host, store_host.address()?);
    let lease = store.grant(DAY)?;
    etcd.put(&format!("{PREFIX}/config"), NET_CONF)?;
    let written: Vec<(String, String)> = (0..leases).map(foreign_lease).collect();
    let stored = Stored { etcd: &etcd, store: &store, lease: &lease, leases };
    store.put_all(&written, Some(&lease))?;
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        report.progress(&format!("netd: {leases} leases, round {} of {}", round + 1, options.rounds));
        let own = one_round(&cluster, &stored, &mut figures)?;
        wipe(node)?;
        etcd.delete(&format!("{PREFIX}/subnets/{own}"))?;
    }
    Ok(figures)
}

/// What the store holds.
struct Stored<'a> {
    etcd: &'a Etcd,
    store: &'a Store,
    /// The etcd lease that the keys are bound to.
    lease: &'a str,
    leases: usize,
}

/// A node joins, is booted anew, restarts its daemon, follows changes; between them the floor. Returns the key of the node's own lease.
fn one_round(cluster: &Cluster, stored: &Stored, figures: &mut Figures) -> Result<String> {
    let Stored { etcd, store, lease, leases } = *stored;
    let node = cluster.host("node")?;
    figures.busy += usize::from(!machine::await_calm());
    let (daemon, took, _) = start(node, etcd, leases)?;
    figures.join.push(took.whole);
    end(&daemon)?;
    wipe(node)?;
    figures.busy += usize::from(!machine::await_calm());
    let (daemon, took, entries) = start(node, etcd, leases)?;
    let usage: Usage = usage::of(daemon.pid())?;
    figures.start.push(took.whole);
    figures.fill.push(took.fill);
    figures.processor.push(usage.processor);
    figures.most_resident = figures.most_resident.max(usage.most_resident);
    end(&daemon)?;
    floor(cluster.host("floor")?, &entries, figures)?;
    figures.busy += usize::from(!machine::await_calm());
    let (watch, arrivals) = (Watch::start(node, DEVICE)?, Arrivals::start(node)?);
    let (again, took, _) = start(node, etcd, leases)?;
    figures.restart.push(took.whole);
    figures.restart_changes += watch.changes()?;
    figures.busy += usize::from(!machine::await_calm());
    let place =
        Place { node, pid: again.pid(), store, etcd_lease: lease, arrivals: &arrivals, beside: Beside::Nothing };
    changes::measure(place, leases, &mut figures.changes)?;
    changes::measure(Place { beside: Beside::Audit, ..place }, leases, &mut figures.audited)?;
    figures.idle.measure(node, again.pid())?;
    end(&again)?;
    let file = node.read("/run/flannel/subnet.env")?;
    let subnet = file.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).context("no FLANNEL_SUBNET")?;
    // The file names the bridge's address, the key the subnet.
    Ok(subnet.replace(".1/24", ".0-24"))
}

fn end(daemon: &Process) -> Result<()> {
    ensure!(daemon.terminate(LIMIT)?.success(), "netd failed at its end:\n{}", daemon.log());
    Ok(())
}

/// How long a start took.
struct Took {
    /// From the process's start.
    whole: Duration,
    /// From the snapshot in memory.
    fill: Duration,
}

impl Took {
    /// Waits until `daemon`, which was started then, is done.
    fn until_ready(daemon: &Process, started: Instant) -> Result<Self> {
        let ready = daemon.wait_for_line(READY, LIMIT)?;
        let whole = started.elapsed();
        let listed = daemon.wait_for_line(LISTED, LIMIT)?;
        let fill = clock(&ready).zip(clock(&listed)).and_then(|(ready, listed)| ready.checked_sub(listed));
        Ok(Self { whole, fill: fill.with_context(|| format!("no time in {listed:?} or {ready:?}"))? })
    }
}

/// The time of day with which a line of the log begins: `2026-11-26T14:03:59.123456Z`.
fn clock(line: &str) -> Option<Duration> {
    let (_, time) = line.split_once('T')?;
    let (time, _) = time.split_once('Z')?;
    let mut parts = time.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(Duration::from_secs(hours * 3600 + minutes * 60) + Duration::try_from_secs_f64(seconds).ok()?)
}

/// Starts netd and waits until it is done; how long it took, and what the kernel has then.
fn start(node: &Host, etcd: &Etcd, leases: usize) -> Result<(Process, Took, Entries)> {
    let netd = node.command(bin("netd")?);
    let netd = netd.args(["--etcd-endpoints", &etcd.endpoints(), "--iface", "eth0", "--ip-masq"]);
    let started = Instant::now();
    let daemon = netd.start("netd")?;
    let took = Took::until_ready(&daemon, started)?;
    let entries = Entries::read(node, DEVICE)?;
    ensure!(entries.counts() == [leases; 3], "netd was ready with {:?} of {leases} entries", entries.counts());
    Ok((daemon, took, entries))
}

/// The same entries by one process that does nothing else, and by iproute2's batch modes: the fastest way without a program of one's
/// own.
fn floor(host: &Host, entries: &Entries, figures: &mut Figures) -> Result<()> {
    figures.busy += usize::from(!machine::await_calm());
    make_device(host)?;
    figures.floor.push(floor::measure(host, DEVICE, floor::VXLAN, entries.counts().into_iter().max().unwrap_or(0))?);
    unmake_device(host, entries)?;
    figures.busy += usize::from(!machine::await_calm());
    figures.batch.push(batch(host, entries, &entries.routes())?);
    figures.flannel_routes.push(batch(host, entries, &entries.routes_of_one_metric())?);
    Ok(())
}

fn batch(host: &Host, entries: &Entries, routes: &str) -> Result<Duration> {
    make_device(host)?;
    let mut took = Duration::ZERO;
    for (program, batch) in [("ip", entries.neighbours()), ("bridge", entries.forwarding()), ("ip", routes.to_owned())]
    {
        let command = host.command(program).args(["-batch", "-"]).input(batch).limit(LIMIT);
        let started = Instant::now();
        command.run()?;
        took += started.elapsed();
    }
    unmake_device(host, entries)?;
    Ok(took)
}

/// The tunnel device of a machine without netd.
fn make_device(host: &Host) -> Result<()> {
    let address = host.address()?.to_string();
    host.run(&[
        "ip",
        "link",
        "add",
        DEVICE,
        "type",
        "vxlan",
        "id",
        "1",
        "dev",
        "eth0",
        "local",
        &address,
        "dstport",
        "8472",
        "nolearning",
    ])?;
    host.run(&["ip", "link", "set", DEVICE, "up"]).map(drop)
}

/// Removes it, and fails when it did not have the entries.
fn unmake_device(host: &Host, entries: &Entries) -> Result<()> {
    let found = Entries::read(host, DEVICE)?.counts();
    ensure!(found == entries.counts(), "{found:?} of {:?} entries are there", entries.counts());
    host.run(&["ip", "link", "del", DEVICE]).map(drop)
}

/// Makes the node as new.
fn wipe(node: &Host) -> Result<()> {
    node.run(&["ip", "link", "del", DEVICE])?;
    node.run(&["nft", "flush", "ruleset"])?;
    node.run(&["rm", "-rf", "/run/netd", "/run/flannel"]).map(drop)
}

/// The lease of another node.
struct Lease {
    index: usize,
}

impl Lease {
    fn parts(&self) -> (usize, usize) {
        (self.index / 256, self.index % 256)
    }

    fn mac(&self) -> String {
        let (high, low) = self.parts();
        format!("02:00:00:00:{high:02x}:{low:02x}")
    }

    /// The first address of its subnet.
    fn subnet(&self) -> [u8; 4] {
        let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let (high, low) = self.parts();
        [100, octet(64 + high), octet(low), 0]
    }

    /// The address of its node.
    fn node(&self) -> [u8; 4] {
        let [_, high, low, _] = self.subnet();
        [10, 128, high.saturating_sub(64), low]
    }

    fn mac_bytes(&self) -> [u8; 6] {
        let [_, high, low, _] = self.subnet();
        [2, 0, 0, 0, high.saturating_sub(64), low]
    }

    /// Where its node is, or is after a move.
    fn address(&self, moved: bool) -> String {
        let (high, low) = self.parts();
        format!("10.{}.{high}.{low}", if moved { 129 } else { 128 })
    }

    /// Key and value, as flannel writes them.
    fn entry(&self, address: &str) -> (String, String) {
        let ((high, low), mac) = (self.parts(), self.mac());
        let key = format!("{PREFIX}/subnets/100.{}.{low}.0-24", 64 + high);
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        (key, value)
    }
}

fn foreign_lease(index: usize) -> (String, String) {
    let lease = Lease { index };
    lease.entry(&lease.address(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_line_is_its_time_of_day() {
        let line = "2026-11-26T14:03:59.250000Z  INFO netd::source::etcd: the leases are listed keys=3";
        assert_eq!(clock(line), Some(Duration::from_millis(((14 * 60 + 3) * 60 + 59) * 1000 + 250)));
        assert_eq!(clock("ready"), None);
    }

    #[test]
    fn leases_differ_in_key_address_and_mac_and_stay_in_the_network() {
        let (key, value) = foreign_lease(15_999);
        assert_eq!(key, "/coreos.com/network/subnets/100.126.127.0-24");
        assert!(value.contains(r#""PublicIP":"10.128.62.127""#) && value.contains("02:00:00:00:3e:7f"), "{value}");
        let all: std::collections::BTreeSet<(String, String)> = (0..20_000).map(foreign_lease).collect();
        assert_eq!(all.len(), 20_000);
    }
}
