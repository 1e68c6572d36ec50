//! Deployments that change under load.
//!
//! Invariant: what is counted is said: a Pod that ends in peace costs no try of any client; one that is killed costs those alone that were sent
//! to it before its endpoint was gone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::eventually;
use serde_json::json;

use super::{WEB, WEB_DEPLOYMENT, WEB_SERVICE, clients, endpoints_gone, not_cut_since, rules_follow, serve, step};
use crate::cni_node::ask;
use crate::kube_cluster::pods::{PORT, Pod};
use crate::kube_cluster::{NODES, OUTSIDE, load};

/// How long a change may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

pub(crate) fn daemon_sets_of_our_manifests_make_nodes_ready_and_pods_reach_each_other() -> Result<()> {
    step(|cluster| {
        let pods = serve(cluster, 6)?;
        let used: BTreeSet<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
        ensure!(used.len() == NODES.len(), "both nodes have Pods: {pods:?}");
        // Each node's processes reach each Pod, over the tunnel where it is the other's.
        for name in NODES {
            for pod in &pods {
                let said = ask(cluster.host(name)?, &format!("{}:{PORT}", pod.address))?;
                ensure!(said.ends_with(&pod.name), "{} from {name}: {said}", pod.address);
            }
        }
        // A Pod reaches every other, and is seen with its own address.
        let own = pods.first().context("a Pod")?;
        for pod in pods.iter().filter(|pod| *pod != own) {
            let said = cluster.ask_from(own, &format!("{}:{PORT}", pod.address))?;
            ensure!(said.starts_with(&format!("{} ", own.address)), "{} saw {said}, not {}", pod.address, own.address);
        }
        Ok(())
    })
}

/// Asked by both nodes at the Service's address, and from outside at a port of each node.
pub(crate) fn a_deployment_is_scaled_to_24_pods_and_back_under_load_without_a_failed_request() -> Result<()> {
    step(|cluster| {
        serve(cluster, 2)?;
        let (outside, at_nodes) = (cluster.host(OUTSIDE)?, cluster.offer_at_nodes("web")?);
        let [one, other] = clients(cluster)?;
        let (served, ()) =
            load::without_a_failure(&[one, other, (outside, &at_nodes[0]), (outside, &at_nodes[1])], || {
                cluster.scale("web", 24)?;
                cluster.pods_of("app=web", 24)?;
                cluster.equals()?;
                cluster.scale("web", 2)?;
                cluster.pods_of("app=web", 2).map(drop)
            })?;
        println!("scaled: {served:?} requests of the nodes and from outside were answered");
        Ok(())
    })
}

pub(crate) fn a_deployment_is_rolled_over_under_load_without_a_failed_request() -> Result<()> {
    step(|cluster| {
        let before = serve(cluster, 6)?;
        let (served, after) = load::without_a_failure(&clients(cluster)?, || {
            cluster.roll(WEB_DEPLOYMENT, before.len())?;
            cluster.pods_of("app=web", before.len())
        })?;
        ensure!(before.iter().all(|old| after.iter().all(|new| new.name != old.name)), "{before:?} and {after:?}");
        println!("rolled over: {served:?} requests of the nodes were answered");
        Ok(())
    })
}

/// Each of three Pods of six is deleted without a moment of grace. A connection that it had is lost, and so is one that is sent to it before
/// its endpoint is gone; the client tries again.
pub(crate) fn pods_deleted_by_force_under_load_get_no_connection_once_their_endpoints_are_gone() -> Result<()> {
    step(|cluster| {
        let pods = serve(cluster, 6)?;
        let victims: Vec<&Pod> = pods.iter().step_by(2).collect();
        let addresses: Vec<&str> = victims.iter().map(|pod| pod.address.as_str()).collect();
        let clients = clients(cluster)?;
        let (tallies, followed) = load::during(&clients, || {
            for pod in &victims {
                cluster.server.delete(&format!("/api/v1/namespaces/default/pods/{}", pod.name))?;
            }
            let gone = endpoints_gone(cluster, &addresses)?;
            let followed = clients.map(|(host, _)| rules_follow(host, &addresses, gone));
            cluster.pods_of("app=web", pods.len())?;
            followed.into_iter().collect::<Result<Vec<_>>>()
        })?;
        for (((client, _), tally), followed) in clients.iter().zip(&tallies).zip(followed) {
            not_cut_since(client, tally, followed)?;
            println!("deleted by force: {tally}");
        }
        Ok(())
    })
}

/// Without the detour over another node the server sees who asks.
pub(crate) fn a_client_outside_reaches_pods_of_the_node_alone_by_the_policy_local() -> Result<()> {
    step(|cluster| {
        let pods = serve(cluster, 1)?;
        let (outside, at_nodes) = (cluster.host(OUTSIDE)?, cluster.offer_at_nodes("web")?);
        cluster.server.patch(WEB_SERVICE, &json!({"spec": {"externalTrafficPolicy": "Local"}}))?;
        cluster.equals()?;
        let own = outside.address()?.to_string();
        for (name, url) in NODES.iter().zip(&at_nodes) {
            let node = cluster.host(name)?.name();
            // Of the policy the comparison above says nothing.
            eventually(SOON, || {
                match ask(outside, url) {
                    Ok(said) => ensure!(pods[0].node == node && said.starts_with(&format!("{own} ")), "{url}: {said}"),
                    Err(error) => ensure!(pods[0].node != node, "{url}: {error:#}"),
                }
                Ok(())
            })?;
        }
        ask(cluster.host(NODES[0])?, WEB).map(drop)
    })
}
