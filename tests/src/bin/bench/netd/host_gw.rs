//! The same leases of nodes that are on one link: `netd` with the host-gw backend next to the floor that writes its routes.
//!
//! Invariant: as for vxlan, a time counts only when a route to each lease was found in the kernel right after it was taken.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Host, Process, Topology, bin};

use super::{DAY, DRAWING, Lease, PREFIX, Took, end, floor};
use crate::machine;
use crate::options::Options;
use crate::report::{Report, ms, times};
use crate::samples::Samples;
use crate::store::Store;
use crate::usage;

const NET_CONF: &str = r#"{"Network": "100.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "host-gw"}}"#;
const DEVICE: &str = "eth0";
/// Puts the nodes of the leases on the link.
const ON_LINK: &str = "10.255.255.254/9";

/// What one number of leases gave.
#[derive(Debug, Default)]
struct Figures {
    start: Samples,
    /// Of that, the time from the snapshot in memory on.
    fill: Samples,
    floor: Samples,
    restart: Samples,
    most_resident: u64,
}

/// Measures and reports.
pub(super) fn measure(options: &Options, report: &Report) -> Result<()> {
    report.section("netd: the same with host-gw (milliseconds)");
    let mut rows = Vec::new();
    for &leases in &options.leases {
        let figures = series(leases, options.rounds, report).with_context(|| format!("{leases} leases, host-gw"))?;
        rows.push(vec![
            leases.to_string(),
            ms(figures.start.median()),
            format!("{}–{}", ms(figures.start.least()), ms(figures.start.most())),
            ms(figures.fill.median()),
            ms(figures.floor.median()),
            times(figures.fill.median(), figures.floor.median()),
            times(figures.start.median(), figures.floor.median()),
            ms(figures.restart.median()),
            format!("{:.1}", machine::mebibytes(figures.most_resident)),
        ]);
    }
    let head = [
        "leases",
        "netd",
        "least–most",
        "of netd from the snapshot",
        "floor",
        "snapshot/floor",
        "netd/floor",
        "restart",
        "memory, most, MiB",
    ];
    report.table(&head, &rows);
    Ok(())
}

fn series(leases: usize, rounds: usize, report: &Report) -> Result<Figures> {
    let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
    let (store_host, node, bare) = (cluster.host("store")?, cluster.host("node")?, cluster.host("floor")?);
    let etcd = Etcd::start([store_host])?;
    let store = Store::new(store_host, store_host.address()?);
    let lease = store.grant(DAY)?;
    etcd.put(&format!("{PREFIX}/config"), NET_CONF)?;
    store.put_all(&(0..leases).map(foreign_lease).collect::<Vec<_>>(), Some(&lease))?;
    for host in [node, bare] {
        host.run(&["ip", "addr", "add", ON_LINK, "dev", DEVICE])?;
    }
    // A node that has its lease.
    end(&start(node, &etcd, leases)?.0)?;
    let mut figures = Figures::default();
    for round in 0..rounds {
        report.progress(&format!("netd: {leases} leases with host-gw, round {} of {rounds}", round + 1));
        clear(node)?;
        machine::await_calm();
        let (daemon, took) = start(node, &etcd, leases)?;
        figures.start.push(took.whole);
        figures.fill.push(took.fill);
        figures.most_resident = figures.most_resident.max(usage::of(daemon.pid())?.most_resident);
        end(&daemon)?;
        machine::await_calm();
        figures.floor.push(floor::measure(bare, DEVICE, floor::HOST_GW, leases)?);
        ensure!(routes(bare)? == leases, "the floor left {} of {leases} routes", routes(bare)?);
        clear(bare)?;
        machine::await_calm();
        let (again, took) = start(node, &etcd, leases)?;
        figures.restart.push(took.whole);
        end(&again)?;
    }
    Ok(figures)
}

/// Starts netd and waits until it is done.
fn start(node: &Host, etcd: &Etcd, leases: usize) -> Result<(Process, Took)> {
    let netd = node.command(bin("netd")?);
    let netd = netd.args(["--etcd-endpoints", &etcd.endpoints(), "--iface", DEVICE, "--ip-masq"]);
    let started = Instant::now();
    let daemon = netd.start("netd")?;
    let took = Took::until_ready(&daemon, started)?;
    let found = routes(node)?;
    ensure!(found == leases, "netd was ready with {found} of {leases} routes");
    Ok((daemon, took))
}

/// How many routes lead to other nodes.
fn routes(host: &Host) -> Result<usize> {
    let listed = host.run(&["ip", "-4", "route", "show", "dev", DEVICE])?.stdout;
    Ok(listed.lines().filter(|line| line.contains(" via ")).count())
}

/// Removes them.
fn clear(host: &Host) -> Result<()> {
    let protocol = netstate::route::ROUTE_PROTOCOL.to_string();
    host.run(&["ip", "-4", "route", "flush", "proto", &protocol]).map(drop)
}

fn foreign_lease(index: usize) -> (String, String) {
    let lease = Lease { index };
    let (key, _) = lease.entry("");
    let [a, b, c, d] = lease.node();
    (key, format!(r#"{{"PublicIP":"{a}.{b}.{c}.{d}","PublicIPv6":null,"BackendType":"host-gw"}}"#))
}
