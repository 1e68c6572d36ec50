//! A real kube-proxy as the DaemonSet of a cluster, in its mode iptables.
//!
//! Invariant: it is the real program, with the rights of its account.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{Host, eventually};

use super::shell::Shell;
use crate::kube_cluster::{Cluster, LIMIT, NODES};

const DONE: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds ";

/// Puts it on both nodes, and waits until it has written its rules there.
pub(crate) fn bring(cluster: &Cluster, shell: &Shell) -> Result<()> {
    let programs = cluster.server.programs().to_string_lossy().into_owned();
    shell.apply(&include_str!("kube-proxy.yaml").replace("PROGRAMS", &programs))?;
    NODES.iter().try_for_each(|node| serves(cluster.host(node)?))
}

/// Waits until the one of a node has written its rules once.
pub(crate) fn serves(node: &Host) -> Result<()> {
    eventually(LIMIT, || {
        let metrics = node.run(&["curl", "-sS", "--max-time", "5", "http://127.0.0.1:10249/metrics"])?.stdout;
        let done = metrics.lines().find_map(|line| line.strip_prefix(DONE)).context("no metrics")?;
        ensure!(done.trim().parse::<f64>()? > 0.0, "no rules yet");
        Ok(())
    })
}

/// Chains and rules of a node that begin with `KUBE-`, but for counters and the order of chains.
pub(crate) fn rules(node: &Host) -> Result<BTreeSet<String>> {
    let saved = node.run(&["sh", "-c", "iptables-save; ip6tables-save"])?.stdout;
    let named = saved.lines().filter(|line| line.contains("KUBE-"));
    Ok(named.map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect())
}

/// What kubelet has made there, once it has.
pub(crate) fn kubelets_rules(node: &Host) -> Result<BTreeSet<String>> {
    eventually(LIMIT, || {
        let made = rules(node)?;
        let drops = "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000";
        let canary = made.iter().filter(|rule| rule.starts_with(":KUBE-KUBELET-CANARY")).count();
        ensure!(made.contains(drops) && canary > 0, "kubelet has made {made:?}");
        Ok(made)
    })
}
