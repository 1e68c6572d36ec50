//! Another version of our DaemonSets, node by node.
//!
//! Invariant: what passes meanwhile is counted packet by packet, between Pods of two nodes, and request by request through a Service.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Process;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{clients, serve, step};
use crate::kube_cluster::manifests::SETS;
use crate::kube_cluster::pods::Pod;
use crate::kube_cluster::{Cluster, load};

/// Echo requests from a Pod of each node to a Pod of the other, twenty in a second; they end with the value.
struct Pings(Vec<Process>);

impl Pings {
    fn start(cluster: &Cluster, pods: &[Pod]) -> Result<Self> {
        let one = pods.first().context("a Pod")?;
        let other = pods.iter().find(|pod| pod.node != one.node).with_context(|| format!("on both nodes: {pods:?}"))?;
        let mut running = Vec::new();
        for (from, to) in [(one, other), (other, one)] {
            let node = cluster.node(&from.node)?;
            let ping = ["-n", "k8s.io", "tasks", "exec", "--exec-id", "ping", &from.container, "ping", "-i", "0.05"];
            let ping = node.host.command("ctr").args(ping).args([to.address.as_str()]).start("ping")?;
            ping.wait_for_line("seq=", Duration::from_secs(30))?;
            running.push(ping);
        }
        Ok(Self(running))
    }

    /// Ends them; each request was answered, and there were as many as this at least.
    fn none_lost(self, at_least: u64) -> Result<()> {
        for ping in self.0 {
            ping.signal(Signal::SIGINT)?;
            ping.wait(Duration::from_secs(30))?;
            let log = ping.log();
            let line = log.lines().find(|line| line.contains("packets transmitted")).context("what ping counted")?;
            let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            let [sent, received, ..] = numbers.as_slice() else { anyhow::bail!("{line}") };
            // The last one may have been on its way.
            ensure!(received + 1 >= *sent && *sent >= at_least, "{line}");
            println!("upgrade: {line}");
        }
        Ok(())
    }
}

pub(crate) fn an_upgrade_of_both_daemon_sets_drops_no_packet_and_fails_no_request() -> Result<()> {
    step(|cluster| {
        let pings = Pings::start(cluster, &serve(cluster, 4)?)?;
        let mut before = Vec::new();
        for name in SETS {
            before.extend(cluster.pods_of_set(name)?);
        }
        let (served, ()) = load::without_a_failure(&clients(cluster)?, || {
            let version = json!({"spec": {"template": {"metadata": {"annotations": {"version": "next"}}}}});
            for name in SETS {
                let path = format!("/apis/apps/v1/namespaces/kube-system/daemonsets/{name}");
                cluster.server.patch(&path, &version)?;
            }
            SETS.iter().try_for_each(|name| cluster.rolled_out(name))
        })?;
        pings.none_lost(100)?;
        for name in SETS {
            let after = cluster.pods_of_set(name)?;
            ensure!(after.iter().all(|new| before.iter().all(|old| old.name != new.name)), "{before:?} and {after:?}");
        }
        println!("upgrade: {served:?} requests of the nodes were answered");
        Ok(())
    })
}
