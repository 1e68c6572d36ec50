//! What is done on a cluster whose network and Services are our DaemonSets, step by step.
//!
//! Invariant: each step begins and ends with nothing but our programs on the cluster, and every node as the API says.

pub(crate) mod changes;
pub(crate) mod entrances;
pub(crate) mod kills;
pub(crate) mod names;
pub(crate) mod power;
pub(crate) mod rights;
pub(crate) mod upgrade;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, eventually};
use serde_json::Value;

use crate::kube_cluster::pods::{Pod, deployment, service};
use crate::kube_cluster::{Cluster, LIMIT, NODES, shared};

/// The address of the Service `web`, which no route but the default one leads to.
pub(crate) const WEB: &str = "192.168.0.10:80";
/// Until a node leads no connection to an endpoint any more that the API has not.
const PROPAGATION: Duration = Duration::from_secs(1);

/// Runs a step on the cluster of the overlay `reference`.
fn step(step: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    shared::step("reference", step)
}

/// A Deployment `web` of so many Pods behind a Service of that name.
fn serve(cluster: &Cluster, replicas: usize) -> Result<Vec<Pod>> {
    cluster.apply(&deployment("web", replicas))?;
    cluster.apply(&service("web", "192.168.0.10"))?;
    cluster.pods_of("app=web", replicas)
}

/// Removes both, with every Pod.
fn remove(cluster: &Cluster) -> Result<()> {
    // The slices of a Service that is gone stay as they are until somebody collects them, and the next one of that name finds them.
    cluster.scale("web", 0)?;
    cluster.pods_of("app=web", 0)?;
    cluster.server.delete("/api/v1/namespaces/default/services/web")?;
    cluster.server.delete("/apis/apps/v1/namespaces/default/deployments/web").map(drop)
}

/// Both nodes as clients of the Service.
fn clients(cluster: &Cluster) -> Result<[(&Host, &'static str); 2]> {
    Ok([(cluster.host(NODES[0])?, WEB), (cluster.host(NODES[1])?, WEB)])
}

/// Waits until no slice has these addresses as ready endpoints, and says when that was so.
fn endpoints_gone(cluster: &Cluster, addresses: &[&str]) -> Result<Instant> {
    let path = format!("/apis/{}/endpointslices", cluster.server.release().slices());
    eventually(LIMIT, || {
        for slice in cluster.items(&path)? {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let address = endpoint["addresses"][0].as_str().context("an address")?;
                let is_ready = endpoint["conditions"]["ready"] != Value::Bool(false);
                ensure!(!is_ready || !addresses.contains(&address), "{address} is an endpoint");
            }
        }
        Ok(())
    })?;
    Ok(Instant::now())
}
