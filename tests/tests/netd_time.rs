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

/// The proxy on its node, with the Services of an etcd on the host outside.
struct FromEtcd {
    proxy: lab::Process,
    etcd: Etcd,
    nodes: Nodes,
}

impl FromEtcd {
    /// Starts both, with the example's Service in etcd.
    fn start(mode: &str) -> Result<Self> {
        let nodes = Nodes::start()?;
        let etcd = Etcd::start([nodes.outside()?])?;
        write(&nodes, &etcd, WEB_YAML)?;
        let command =
            nodes.node()?.command(lab::bin("ipvs-proxy")?).arg(format!("--etcd-endpoints={}", etcd.endpoints()));
        let command = command.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]);
        let proxy = command.arg(format!("--proxy-mode={mode}")).start("ipvs-proxy")?;
        proxy.wait_for_line("ready", LONG)?;
        Ok(Self { proxy, etcd, nodes })
    }

    fn apply(&self, text: &str) -> Result<()> {
        write(&self.nodes, &self.etcd, text)
    }

    /// Five minutes go by in which the status says that etcd is lost, and nothing in the kernel changes.
    fn is_lost_for_minutes(&self, before: &str) -> Result<()> {
        for part in 1..=3 {
            std::thread::sleep(HOUR / 36);
            let status = self.nodes.status()?;
            let lost = status["lost"].is_string() && status["ok"] == false;
            ensure!(lost && status["services"] == 1, "after {part} times 100 s: {status}");
            let now = of_services(&self.nodes)?;
            ensure!(now == before, "after {part} times 100 s: {now}\n--- instead of\n{before}");
        }
        ensure!(self.proxy.is_running());
        Ok(())
    }

    /// These endpoints are served, and the status is in order.
    fn serves(&self, endpoints: &[&str]) -> Result<()> {
        eventually(LONG, || {
            let (status, seen) = (self.nodes.status()?, spread(self.nodes.outside()?, 8)?);
            ensure!(status["lost"].is_null() && status["ok"] == true, "{status}");
            ensure!(seen.keys().eq(endpoints), "{seen:?} {status}");
            Ok(())
        })
    }
}

fn write(nodes: &Nodes, etcd: &Etcd, text: &str) -> Result<()> {
    let command =
        nodes.outside()?.command(lab::bin("ipvs-proxy")?).arg(format!("--etcd-endpoints={}", etcd.endpoints()));
    command.args(["apply", "-f", "-"]).input(text.to_owned()).run().map(drop)
}

fn services_stay_while_etcd_is_away_for_minutes_and_the_status_says_so() -> Result<()> {
    let mut services = FromEtcd::start("ipvs")?;
    let member = services.nodes.outside()?.clone();
    ensure!(spread(&member, 4)?.len() == 4);
    let before = of_services(&services.nodes)?;
    ensure!(before.contains("-t 192.168.0.10:80"), "{before}");
    services.etcd.kill(member.name())?;
    services.is_lost_for_minutes(&before)?;
    ensure!(spread(&member, 4)?.len() == 4);
    services.etcd.restart(member.name())?;
    eventually(LONG, || services.apply(&slice(&["172.7.22.3"])))?;
    services.serves(&["172.7.22.3"])
}

/// What is sent to etcd or comes from it goes nowhere, and nobody is told.
const CUT: &str = "add table ip cut; add chain ip cut in { type filter hook input priority raw; }; add rule ip cut in tcp sport 2379 drop; \
    add chain ip cut out { type filter hook output priority raw; }; add rule ip cut out tcp dport 2379 drop";

fn services_on_nftables_stay_while_the_way_to_etcd_is_cut_and_what_changed_meanwhile_comes_with_it() -> Result<()> {
    let services = FromEtcd::start("nftables")?;
    let node = services.nodes.node()?;
    services.apply(&slice(&["172.7.21.2", "172.7.22.3"]))?;
    services.serves(&["172.7.21.2", "172.7.22.3"])?;
    node.run(&["nft", CUT])?;
    let before = of_services(&services.nodes)?;
    ensure!(before.contains("192.168.0.10 . tcp . 80"), "{before}");
    services.apply(&slice(&["172.7.21.3", "172.7.22.3"]))?;
    services.is_lost_for_minutes(&before)?;
    let seen = spread(services.nodes.outside()?, 16)?;
    ensure!(seen.keys().all(|name| ["172.7.21.2", "172.7.22.3"].contains(&name.as_str())), "{seen:?}");
    node.run(&["nft", "delete", "table", "ip", "cut"])?;
    services.serves(&["172.7.21.3", "172.7.22.3"])?;
    services.apply(&slice(&["172.7.22.2"]))?;
    services.serves(&["172.7.22.2"])
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::VirtualTime, Need::Vxlan, Need::Nftables, Need::IpVs, Need::Dummy])
        .limit(12 * HOUR)
        .run(lab::tests![
            outage_longer_than_the_lease_costs_no_row_and_ends_by_itself,
            clock_that_jumps_both_ways_costs_neither_a_row_nor_the_lease,
            services_stay_while_etcd_is_away_for_minutes_and_the_status_says_so,
            services_on_nftables_stay_while_the_way_to_etcd_is_cut_and_what_changed_meanwhile_comes_with_it,
        ])
}
