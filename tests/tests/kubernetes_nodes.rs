//! Two real kubelets with containerd on the reference cluster: control plane of Kubernetes, network and Services of our three programs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod netd_node;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cni_node::{ask, containerd};
use kube_cluster::pods::{PORT, deployment, service};
use kube_cluster::{Cluster, NODES, Programs, load};
use lab::kubernetes::Release;
use lab::{Need, Process};

/// The address of the Service, which no route but the default one leads to.
const WEB: &str = "192.168.0.10:80";

fn a_deployment_on_two_kubelets_is_scaled_under_load_without_a_failed_request() -> Result<()> {
    let cluster = Cluster::start(Programs::Processes)?;
    cluster.apply(&deployment("web", 2))?;
    cluster.apply(&service("web", "192.168.0.10"))?;
    cluster.pods(2)?;
    cluster.scale("web", 8)?;
    let pods = cluster.pods(8)?;
    let used: BTreeSet<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(used.len() == NODES.len(), "both nodes have Pods: {pods:?}");
    cluster.reservations_equal(&pods)?;
    // Each node's processes reach each Pod, over the tunnel where it is the other's.
    for name in NODES {
        for pod in &pods {
            let said = ask(cluster.host(name)?, &format!("{}:{PORT}", pod.address))?;
            ensure!(said.ends_with(&pod.name), "{} from {name}: {said}", pod.address);
        }
    }
    // A Pod reaches every other, and is seen with its own address.
    let here = cluster.host(NODES[0])?;
    let own = pods.iter().find(|pod| pod.node == here.name()).context("no Pod there")?;
    for pod in pods.iter().filter(|pod| *pod != own) {
        let said = cluster.ask_from(own, &format!("{}:{PORT}", pod.address))?;
        ensure!(said.starts_with(&format!("{} ", own.address)), "{} saw {said}, not {}", pod.address, own.address);
    }
    let (served, pods) = load::without_a_failure(&[(here, WEB), (cluster.host(NODES[1])?, WEB)], || {
        cluster.scale("web", 2)?;
        cluster.pods(2)?;
        cluster.scale("web", 6)?;
        cluster.pods(6)
    })?;
    println!("requests from the nodes under the changes: {served:?}");
    cluster.reservations_equal(&pods)?;
    let run = cluster.nodes.iter().flat_map(|node| &node.daemons).all(Process::is_running);
    ensure!(run, "our programs run");
    cluster.scale("web", 0)?;
    cluster.pods(0)?;
    cluster.reservations_equal(&[])
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables])
        .unless(containerd::obstacle())
        .with_kubernetes(Release::V1_20)
        .run(lab::tests![a_deployment_on_two_kubelets_is_scaled_under_load_without_a_failed_request])
}
