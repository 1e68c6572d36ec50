//! A node that loses its power, and comes back.
//!
//! Invariant: all that a power loss takes is taken: every process, every link and rule, all of `/run`; what lies on the disk stays.

use anyhow::{Context, Result, ensure};
use lab::eventually;
use serde_json::json;

use super::{WEB, endpoints_gone, not_cut_since, rules_follow, serve_as, step};
use crate::kube_cluster::manifests::SETS;
use crate::kube_cluster::pods::deployment;
use crate::kube_cluster::{Cluster, LIMIT, NODES, load};

/// Replicas that are ready and on this node.
fn ready_on(cluster: &Cluster, node: &str) -> Result<usize> {
    let pods = cluster.items("/api/v1/namespaces/default/pods?labelSelector=app=web")?;
    let node = cluster.host(node)?.name();
    let is_so = |pod: &&serde_json::Value| {
        pod["spec"]["nodeName"] == node && pod["status"]["containerStatuses"][0]["ready"] == true
    };
    Ok(pods.iter().filter(is_so).count())
}

/// Since when a Node is ready, or is not. Controllers take one for unreachable whose kubelet sends no heartbeat for twelve seconds, which happens on
/// a machine that is busy enough to one with power as well: its Pods go then, rightly.
fn readiness(cluster: &Cluster, node: &str) -> Result<String> {
    let found = cluster.server.get(&format!("/api/v1/nodes/{}", cluster.host(node)?.name()))?;
    let conditions = found["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").context("no condition Ready")?;
    Ok(format!("{} since {}", ready["status"], ready["lastTransitionTime"]))
}

/// Takes the second node's power under the load of the first, until other Pods are in the place of those that were lost with it.
fn lose_power(cluster: &mut Cluster, lost: &[&str], all: usize) -> Result<()> {
    let client = cluster.host(NODES[0])?.clone();
    let before = readiness(cluster, NODES[0])?;
    let seen = load::during(&[(&client, WEB)], || {
        cluster.machines.unplug(NODES[1])?;
        cluster.node_mut(NODES[1])?.lose_power()?;
        let gone = endpoints_gone(cluster, lost)?;
        let followed = rules_follow(&client, lost, gone)?;
        eventually(LIMIT, || {
            let ready = ready_on(cluster, NODES[0])?;
            ensure!(ready == all, "{ready} of {all} are ready on the other node");
            Ok(())
        })?;
        Ok(followed)
    });
    let judged = seen.and_then(|(tallies, followed)| {
        tallies.iter().try_for_each(|tally| {
            println!("power loss: {tally}");
            not_cut_since(&client, tally, followed)
        })
    });
    judged.with_context(|| {
        let now = readiness(cluster, NODES[0]).unwrap_or_else(|error| format!("{error:#}"));
        format!("that the node with power is ready was {before} and is {now}")
    })
}

pub(crate) fn a_node_without_power_gets_no_connection_once_its_endpoints_are_gone_and_comes_back_equal() -> Result<()> {
    step(|cluster| {
        let mut web = deployment("web", 4);
        let soon = |taint: &str| json!({"key": format!("node.kubernetes.io/{taint}"), "effect": "NoExecute", "tolerationSeconds": 2});
        web["spec"]["template"]["spec"]["tolerations"] = json!([soon("unreachable"), soon("not-ready")]);
        let pods = serve_as(cluster, &web, 4)?;
        let dark = cluster.host(NODES[1])?.name().to_owned();
        let lost: Vec<&str> = pods.iter().filter(|pod| pod.node == dark).map(|pod| pod.address.as_str()).collect();
        ensure!(!lost.is_empty() && lost.len() < pods.len(), "both nodes have Pods: {pods:?}");
        lose_power(cluster, &lost, pods.len())?;
        cluster.machines.plug(NODES[1])?;
        cluster.node_mut(NODES[1])?.get_power()?;
        cluster.ready()?;
        SETS.iter().try_for_each(|name| cluster.rolled_out(name))?;
        cluster.scale("web", 8)?;
        cluster.pods_of("app=web", 8)?;
        ensure!(ready_on(cluster, NODES[1])? > 0, "no Pod is on the node that came back");
        Ok(())
    })
}
