//! What is done on a cluster whose network and Services are our DaemonSets, step by step.
//!
//! Invariant: each step begins and ends with nothing but our programs and at most the Deployment `web` behind its Service on the cluster, and
//! every node as the API says. A step can be run without the others.

pub(crate) mod changes;
pub(crate) mod entrances;
pub(crate) mod kills;
pub(crate) mod names;
pub(crate) mod outage;
pub(crate) mod power;
pub(crate) mod rights;
pub(crate) mod upgrade;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, allowing_for_load, eventually};
use serde_json::Value;

use crate::kube_cluster::load::Tally;
use crate::kube_cluster::pods::{Pod, deployment, service};
use crate::kube_cluster::{Cluster, LIMIT, NODES, shared};

/// The address of the Service `web`, which no route but the default one leads to.
pub(crate) const WEB: &str = "192.168.0.10:80";
const WEB_SERVICE: &str = "/api/v1/namespaces/default/services/web";
const WEB_DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";
/// Until the rules of a node lead to no endpoint any more that the API has not, on a machine that has nothing else to do.
const PROPAGATION: Duration = Duration::from_secs(1);

/// Runs a step on the cluster of the overlay `reference`.
fn step(step: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    shared::step("reference", step)
}

/// A Deployment `web` of so many Pods behind a Service of that name; those that a step before has left are used.
fn serve(cluster: &Cluster, replicas: usize) -> Result<Vec<Pod>> {
    serve_as(cluster, &deployment("web", replicas), replicas)
}

/// The same of this Deployment `web`; Pods of another one go first.
fn serve_as(cluster: &Cluster, web: &Value, replicas: usize) -> Result<Vec<Pod>> {
    match cluster.server.get(WEB_DEPLOYMENT) {
        Ok(found) if has_pods_like(web, &found) => cluster.scale("web", replicas)?,
        Ok(_) => remove(cluster).and_then(|()| cluster.apply(web))?,
        Err(_) => cluster.apply(web)?,
    }
    cluster.apply(&service("web", "192.168.0.10"))?;
    cluster.pods_of("app=web", replicas)
}

/// Whether a Deployment has the tolerations and probes of another one.
fn has_pods_like(web: &Value, found: &Value) -> bool {
    let has = |field: &str| [web, found].map(|one| one.pointer(&format!("/spec/template/spec/{field}")).is_some());
    ["tolerations", "containers/0/readinessProbe"].into_iter().map(has).all(|[one, other]| one == other)
}

/// Removes both, with every Pod.
fn remove(cluster: &Cluster) -> Result<()> {
    // The slices of a Service that is gone stay as they are until somebody collects them, and the next one of that name finds them.
    cluster.scale("web", 0)?;
    cluster.pods_of("app=web", 0)?;
    cluster.server.delete(WEB_SERVICE)?;
    cluster.server.delete(WEB_DEPLOYMENT).map(drop)
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

/// Waits until the rules of a node lead to none of these addresses, which no slice has since `gone`; says when that was so. A connection that was
/// cut with its Pod leaves an entry in its client's kernel that leads the client's next one from the same port to the Pod that is no more, for up
/// to five minutes (of kube-proxy it is the same): it is forgotten here, so that what is cut later is the rules' doing.
fn rules_follow(host: &Host, addresses: &[&str], gone: Instant) -> Result<Instant> {
    eventually(LIMIT, || {
        let rules = host.run(&["nft", "list", "map", "ip", "ipvs-proxy", "endpoints"])?.stdout;
        let mut words = rules.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
        ensure!(!words.any(|word| addresses.contains(&word)), "{} leads to {addresses:?}: {rules}", host.name());
        Ok(())
    })?;
    let (late, limit) = (gone.elapsed(), allowing_for_load(PROPAGATION));
    ensure!(late <= limit, "{} follows the API after {late:?}, on this machine after {limit:?} at most", host.name());
    for address in addresses {
        host.run(&["sh", "-c", &format!("conntrack -D -p tcp -r {address} || true")])?;
    }
    Ok(Instant::now())
}

/// Fails when a client's try was cut that began after its rules had followed, with where its kernel leads the connections without an answer.
fn not_cut_since(client: &Host, tally: &Tally, followed: Instant) -> Result<()> {
    tally.not_cut_after(followed).with_context(|| {
        let open = client.run(&["sh", "-c", "conntrack -L -p tcp --dport 80 2>&1 | grep -v TIME_WAIT; ip neigh"]);
        format!("{}: {}", client.name(), open.map_or_else(|error| format!("{error:#}"), |open| open.stdout))
    })
}
