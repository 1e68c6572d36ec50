//! Hours that pass in seconds, and clocks that jump: virtual time in the lab kernel, for both daemons.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod proxy;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Etcd, Need, eventually};
use netd_node::{Net, VXLAN, kernel_state, lease};
use proxy::{Nodes, WEB_YAML, servers, slice, spread};
use serde_json::Value;

const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

/// In virtual time nobody waits for it.
const LONG: Duration = Duration::from_secs(120);

const HOUR: Duration = Duration::from_secs(3600);

fn states(net: &Net) -> Result<Vec<String>> {
    NODES.iter().map(|node| kernel_state(net.host(node)?)).collect()
}

fn is_as(net: &Net, before: &[String]) -> Result<()> {
    let now = states(net)?;
    ensure!(now == before, "{now:#?}\n--- instead of\n{before:#?}");
    Ok(())
}

/// Another node's lease is written, and both nodes have a route to it.
fn follows(net: &Net, number: u8) -> Result<()> {
    let (ip, mac) = (format!("10.4.7.{number}"), format!("02:00:00:00:01:{number:02x}"));
    eventually(LONG, || net.put_lease(&format!("172.7.{number}.0-24"), &ip, &mac))?;
    NODES.iter().try_for_each(|node| {
        eventually(LONG, || {
            let routes = net.host(node)?.run(&["ip", "route", "show", "proto", "121"])?.stdout;
            ensure!(routes.contains(&format!("172.7.{number}.0/24")), "{node}: {routes}");
            Ok::<_, anyhow::Error>(())
        })
    })
}

/// Two nodes that hold their subnets by leases of ten minutes, as another program made them.
fn with_short_leases() -> Result<(Net, [lab::Process; 2])> {
    let net = Net::start(VXLAN)?;
    for node in ["21", "22"] {
        let granted = net.etcd.etcdctl(&["lease", "grant", "600"])?.stdout;
        let id = granted.split(' ').nth(1).context("no lease")?;
        let value = lease(&format!("10.4.7.{node}"), &format!("02:00:00:00:00:{node}"));
        let key = format!("/coreos.com/network/subnets/172.7.{node}.0-24");
        net.etcd.etcdctl(&["put", "--lease", id, "--", &key, &value])?;
    }
    let both = net.both()?;
    Ok((net, both))
}

/// Longer than the lease is granted for.
fn outage_longer_than_the_lease_costs_no_row_and_ends_by_itself() -> Result<()> {
    let (mut net, netd) = with_short_leases()?;
    let before = states(&net)?;
    net.etcd.kill("hdss7-12")?;
    std::thread::sleep(2 * HOUR);
    is_as(&net, &before)?;
    ensure!(netd.iter().all(lab::Process::is_running));
    net.etcd.restart("hdss7-12")?;
    eventually(LONG, || {
        for node in NODES {
            let status = net.status(node)?;
            ensure!(status["store"]["lost"].is_null() && status["store"]["lease_trouble"].is_null(), "{status}");
        }
        Ok::<_, anyhow::Error>(())
    })?;
    is_as(&net, &before)?;
    follows(&net, 99)
}

/// Seconds that the lease of a node has left.
fn remaining(net: &Net, key: &str) -> Result<i64> {
    let key = format!("/coreos.com/network/subnets/{key}");
    let text = net.etcd.etcdctl(&["get", "--write-out=json", "--", &key])?.stdout;
    let lease = serde_json::from_str::<Value>(&text)?["kvs"][0]["lease"].as_i64().context("no lease")?;
    let text = net.etcd.etcdctl(&["lease", "timetolive", "--write-out=json", &format!("{lease:x}")])?.stdout;
    serde_json::from_str::<Value>(&text)?["ttl"].as_i64().context("no time to live")
}

fn clock_that_jumps_both_ways_costs_neither_a_row_nor_the_lease() -> Result<()> {
    let (net, netd) = with_short_leases()?;
    let before = states(&net)?;
    let host = net.host("hdss7-21")?;
    for (number, jump) in [(90, "+400 days"), (91, "-800 days"), (92, "+400 days")] {
        let date = host.run(&["date", "+%s"])?.stdout.trim().parse::<i64>()?;
        host.run(&["date", "--set", jump])?;
        let moved = host.run(&["date", "+%s"])?.stdout.trim().parse::<i64>()? - date;
        ensure!(moved.abs() > 300 * 24 * 3600, "the clock did not jump: {moved} s");
        // Past several renewals, and far past the end of a lease that nobody keeps.
        std::thread::sleep(HOUR / 5);
        for node in ["21", "22"] {
            let left = remaining(&net, &format!("172.7.{node}.0-24"))?;
            ensure!(left > 300, "{jump}: {left} s left of node {node}'s lease");
        }
        ensure!(netd.iter().all(|netd| !netd.log().contains("the lease is lost")), "{}", netd[0].log());
        if number == 90 {
            is_as(&net, &before)?;
        }
        follows(&net, number)?;
    }
    Ok(())
}

/// What `ipvs-proxy` has in the kernel.
fn of_services(nodes: &Nodes) -> Result<String> {
    let node = nodes.node()?;
    let rules = node.run(&["nft", "-s", "list", "ruleset"])?.stdout;
    Ok(servers(node)?.join("\n") + &rules + &node.run(&["ip", "-o", "-4", "address"])?.stdout)
}

fn services_stay_while_etcd_is_away_for_minutes_and_the_status_says_so() -> Result<()> {
    let nodes = Nodes::start()?;
    let member = nodes.outside()?;
    let mut etcd = Etcd::start([member])?;
    let endpoints = format!("--etcd-endpoints={}", etcd.endpoints());
    let apply = |text: &str| -> Result<()> {
        let command = member.command(lab::bin("ipvs-proxy")?).arg(&endpoints).args(["apply", "-f", "-"]);
        command.input(text.to_owned()).run().map(drop)
    };
    apply(WEB_YAML)?;
    let command = nodes.node()?.command(lab::bin("ipvs-proxy")?).arg(&endpoints);
    let proxy = command.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", LONG)?;
    ensure!(spread(member, 4)?.len() == 4);
    let before = of_services(&nodes)?;
    ensure!(before.contains("192.168.0.10:80"), "{before}");
    etcd.kill(member.name())?;
    for part in 1..=3 {
        std::thread::sleep(HOUR / 36);
        let status = nodes.status()?;
        let lost = status["lost"].is_string() && status["ok"] == false;
        ensure!(lost && status["services"] == 1, "after {part} times 100 s: {status}");
        let now = of_services(&nodes)?;
        ensure!(now == before, "after {part} times 100 s: {now}\n--- instead of\n{before}");
    }
    ensure!(spread(member, 4)?.len() == 4 && proxy.is_running());
    etcd.restart(member.name())?;
    eventually(LONG, || apply(&slice(&["172.7.22.3"])))?;
    eventually(LONG, || {
        let (status, seen) = (nodes.status()?, spread(member, 2)?);
        ensure!(status["lost"].is_null() && seen.keys().eq(["172.7.22.3"]), "{seen:?} {status}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::VirtualTime, Need::Vxlan, Need::Nftables, Need::IpVs, Need::Dummy])
        .limit(12 * HOUR)
        .run(lab::tests![
            outage_longer_than_the_lease_costs_no_row_and_ends_by_itself,
            clock_that_jumps_both_ways_costs_neither_a_row_nor_the_lease,
            services_stay_while_etcd_is_away_for_minutes_and_the_status_says_so,
        ])
}
