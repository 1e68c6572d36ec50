//! What others do to neighbours, routes, links and Pods, and what netd does itself: none of it makes netd list a table, and its log grows with what changes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, settled_log};

const NODE: &str = "hdss7-21";

/// Without a listing for so long, none is due: netd puts one off for 0.3 s, and the kernel says within a second that a link has come up.
const QUIET: Duration = Duration::from_secs(2);

/// How often netd has listed each of its tables.
fn listings(host: &Host) -> Result<BTreeMap<String, u64>> {
    let curl = ["-s", "--unix-socket", "/run/netd/http.sock", "http://netd/metrics"];
    let page = host.command("curl").args(curl).run()?.stdout;
    let lines =
        page.lines().filter_map(|line| line.strip_prefix("netd_table_listings_total{table=\"")?.split_once("\"} "));
    let listings: BTreeMap<_, _> =
        lines.map(|(table, count)| Ok((table.to_owned(), count.parse()?))).collect::<Result<_>>()?;
    ensure!(!listings.is_empty(), "{page}");
    Ok(listings)
}

/// Waits until the kernel has done what it does by itself with new links, and netd has seen it.
fn settle(host: &Host, links: &[&str]) -> Result<()> {
    for link in links {
        eventually(SOON, || {
            let addresses =
                host.run(&["ip", "-6", "address", "show", "dev", link, "scope", "link", "-tentative"])?.stdout;
            ensure!(!addresses.trim().is_empty(), "{link} has no address yet");
            Ok(())
        })?;
    }
    eventually(SOON, || {
        let before = listings(host)?;
        throughout(QUIET, || {
            let now = listings(host)?;
            ensure!(before == now, "tables are still being listed: {before:?}, then {now:?}");
            Ok::<_, anyhow::Error>(())
        })
    })
}

/// Deletes netd's route to the other node, which it puts back: by then it has read everything that came before. Returns the tables that were listed
/// since `before`, without the one listing of the routes that this costs.
fn listed_since(host: &Host, before: &BTreeMap<String, u64>) -> Result<Vec<String>> {
    let route = || host.run(&["ip", "route", "show", "proto", "121", "172.7.22.0/24"]);
    let own = route()?.stdout;
    host.run(&[&["ip", "route", "del"][..], &own.split_whitespace().collect::<Vec<_>>()].concat())?;
    eventually(SOON, || {
        ensure!(!route()?.stdout.trim().is_empty(), "the route is not back");
        Ok(())
    })?;
    let mut after = BTreeMap::new();
    eventually(SOON, || {
        after = listings(host)?;
        ensure!(after["routes"] > before["routes"], "the listing is not reported yet");
        Ok(())
    })?;
    *after.get_mut("routes").context("no routes")? -= 1;
    // Two or three parameters, whatever the number of leases: each new link announces its own.
    after.remove("sysctls");
    Ok(after.into_iter().filter(|(table, count)| before.get(table) != Some(count)).map(|(table, _)| table).collect())
}

/// Churn of each kind, as a script for the node.
const CHURN: [(&str, &str); 4] = [
    (
        "ARP on the interface towards the others",
        "for n in 1 2 3 4 5; do ip neigh replace 10.4.7.20$n lladdr 02:00:00:00:00:0$n dev eth0; ip neigh del 10.4.7.20$n dev eth0; done",
    ),
    (
        "routes of others",
        "for n in 1 2 3 4 5; do ip route add 10.9.$n.0/24 via 10.4.7.254; ip route add 172.7.99.0/24 via 10.4.7.254 table 100; \
         ip route del 10.9.$n.0/24; ip route flush table 100; done",
    ),
    (
        "Pods",
        "for n in 1 2 3 4 5; do ip link add veth$n type veth peer name peer$n; ip address add 10.8.$n.1/24 dev veth$n; ip link set veth$n up; \
         ip link set peer$n up; ip route add 172.7.21.$n/32 dev veth$n; ip neigh replace 10.8.$n.9 lladdr 02:00:00:00:00:09 dev veth$n; \
         ip link del veth$n; done",
    ),
    (
        "addresses of other links",
        "for n in 1 2 3 4 5; do ip address add 10.8.$n.1/32 dev lo; ip address del 10.8.$n.1/32 dev lo; done",
    ),
];

fn churn(config: &str, links: &[&str]) -> Result<()> {
    let net = Net::start(config)?;
    let _netd = net.both()?;
    let host = net.host(NODE)?;
    settle(host, links)?;
    for (kind, script) in CHURN {
        let before = listings(host)?;
        host.run(&["sh", "-ec", script])?;
        let listed = listed_since(host, &before)?;
        ensure!(listed.is_empty(), "{kind}: {listed:?} listed");
    }
    Ok(())
}

fn churn_of_others_lists_no_table_beside_a_tunnel() -> Result<()> {
    churn(VXLAN, &["eth0", "flannel.1"])
}

fn churn_of_others_lists_no_table_without_a_tunnel() -> Result<()> {
    churn(HOST_GW, &["eth0"])
}

fn changed_lease_lists_no_table_although_the_kernel_announces_its_entries() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host(NODE)?;
    settle(host, &["eth0", "flannel.1"])?;
    let before = listings(host)?;
    for n in 1..=5 {
        net.put_lease("172.7.30.0-24", &format!("10.4.8.{n}"), "02:00:00:00:00:30")?;
        eventually(SOON, || {
            let entries = host.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?.stdout;
            ensure!(entries.contains(&format!("dst 10.4.8.{n} ")), "{entries}");
            Ok(())
        })?;
    }
    net.etcd.delete("/coreos.com/network/subnets/172.7.30.0-24")?;
    eventually(SOON, || {
        let neighbours = host.run(&["ip", "neigh", "show", "dev", "flannel.1"])?.stdout;
        ensure!(!neighbours.contains("172.7.30.0"), "{neighbours}");
        Ok(())
    })?;
    let listed = listed_since(host, &before)?;
    ensure!(listed.is_empty(), "{listed:?} listed");
    Ok(())
}

/// Lines of log of a start up to readiness.
fn lines_of_a_start(net: &Net) -> Result<usize> {
    let netd = net.netd(NODE)?;
    let lines = settled_log(&netd)?.lines().count();
    ensure!(netd.terminate(SOON)?.success(), "{}", netd.log());
    Ok(lines)
}

fn log_of_a_start_does_not_grow_with_the_leases() -> Result<()> {
    let net = Net::start(VXLAN)?;
    // The first one claims a subnet.
    lines_of_a_start(&net)?;
    let few = lines_of_a_start(&net)?;
    for n in 100..200 {
        net.put_lease(&format!("172.7.{n}.0-24"), &format!("10.4.8.{n}"), &format!("02:00:00:00:01:{n:02x}"))?;
    }
    let many = lines_of_a_start(&net)?;
    // It says once that it has changed rows, where nothing was to be changed before.
    ensure!(many <= few + 2, "{many} lines with 100 more leases, {few} without");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            churn_of_others_lists_no_table_beside_a_tunnel,
            churn_of_others_lists_no_table_without_a_tunnel,
            changed_lease_lists_no_table_although_the_kernel_announces_its_entries,
            log_of_a_start_does_not_grow_with_the_leases,
        ],
    )
}
