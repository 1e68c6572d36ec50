//! Two real kubelets with containerd on the reference cluster, and a control plane of Kubernetes: network and Services are DaemonSets of our
//! own manifests, rights and image, and nothing of flannel or kube-proxy is there. After each test every node has what the API says: see
//! `kube_cluster::equal`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod netd_node;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cni_node::ask;
use kube_cluster::pods::{PORT, deployment, service};
use kube_cluster::{Cluster, NODES, load, shared};

/// The overlay of `configs/kubernetes`.
const OVERLAY: &str = "reference";
/// The address of the Service `web`, which no route but the default one leads to.
const WEB: &str = "192.168.0.10:80";

/// A Deployment `web` of so many Pods behind a Service of that name.
fn serve(cluster: &Cluster, replicas: usize) -> Result<()> {
    cluster.apply(&deployment("web", replicas))?;
    cluster.apply(&service("web", "192.168.0.10"))?;
    cluster.pods_of("app=web", replicas).map(drop)
}

/// Removes both, with every Pod.
fn remove(cluster: &Cluster) -> Result<()> {
    cluster.server.delete("/api/v1/namespaces/default/services/web")?;
    cluster.server.delete("/apis/apps/v1/namespaces/default/deployments/web")?;
    cluster.pods_of("app=web", 0).map(drop)
}

fn daemon_sets_of_our_manifests_make_nodes_ready_and_pods_reach_each_other() -> Result<()> {
    shared::step(OVERLAY, |cluster| {
        serve(cluster, 6)?;
        let pods = cluster.pods_of("app=web", 6)?;
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
        remove(cluster)
    })
}

fn a_deployment_is_scaled_to_24_pods_and_back_under_load_without_a_failed_request() -> Result<()> {
    shared::step(OVERLAY, |cluster| {
        serve(cluster, 2)?;
        let clients = [(cluster.host(NODES[0])?, WEB), (cluster.host(NODES[1])?, WEB)];
        let (served, ()) = load::without_a_failure(&clients, || {
            cluster.scale("web", 24)?;
            cluster.pods_of("app=web", 24)?;
            cluster.equals()?;
            cluster.scale("web", 2)?;
            cluster.pods_of("app=web", 2).map(drop)
        })?;
        println!("scaled: {served:?} requests of the nodes were answered");
        remove(cluster)
    })
}

fn main() -> ExitCode {
    let verdict = kube_cluster::suite().run(lab::tests![
        daemon_sets_of_our_manifests_make_nodes_ready_and_pods_reach_each_other,
        a_deployment_is_scaled_to_24_pods_and_back_under_load_without_a_failed_request,
    ]);
    shared::end();
    verdict
}
