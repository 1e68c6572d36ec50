//! Two real kubelets whose Services IPVS carries: where the running kernel has no IPVS, in the lab kernel.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use cni_node::{ask, containerd};
use kube_cluster::pods::{deployment, service};
use kube_cluster::{Cluster, IPVS, NODES, OUTSIDE, Programs, load};
use lab::Need;
use lab::harness::Suite;
use lab::kubernetes::Release;

const WEB: &str = "192.168.0.10:80";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";

fn a_deployment_behind_ipvs_serves_a_node_and_a_client_outside_while_it_is_scaled_and_rolled_over() -> Result<()> {
    let cluster = Cluster::start(Programs::Processes(IPVS))?;
    cluster.apply(&deployment("web", 2))?;
    cluster.apply(&service("web", "192.168.0.10"))?;
    let at_nodes = cluster.offer_at_nodes("web")?;
    let before = cluster.pods_of("app=web", 2)?;
    let outside = cluster.host(OUTSIDE)?;
    let clients = [(cluster.host(NODES[0])?, WEB), (outside, &at_nodes[1])];
    let (served, after) = load::without_a_failure(&clients, || {
        cluster.scale("web", 3)?;
        cluster.pods_of("app=web", 3)?;
        cluster.roll(DEPLOYMENT, 3)?;
        cluster.scale("web", 2)?;
        cluster.pods_of("app=web", 2)
    })?;
    ensure!(before.iter().all(|old| after.iter().all(|new| new.name != old.name)), "{before:?} and {after:?}");
    println!("behind IPVS: {served:?} requests of a node, and from outside to the port of the other, were answered");
    ask(outside, &at_nodes[0])?;
    cluster.equals()
}

fn main() -> ExitCode {
    let suite = Suite::new(&[Need::IpVs, Need::Dummy, Need::Vxlan, Need::Nftables]).unless(containerd::obstacle());
    let suite = suite.with_kubernetes(Release::V1_20).limit(Duration::from_secs(40 * 60)).memory(3072);
    suite.run(lab::tests![
        a_deployment_behind_ipvs_serves_a_node_and_a_client_outside_while_it_is_scaled_and_rolled_over
    ])
}
