//! `configs/kubernetes` on a cluster: the objects that kustomize renders, and the image of the Containerfile on each node.
//!
//! Invariant: the objects are applied as they are rendered. What an operator adds is the ConfigMap with the API server's address.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::eventually;
use serde_json::{Value, json};

#[path = "../rendered/mod.rs"]
mod rendered;

use super::node::Node;
use super::pods::Pod;
use super::{Cluster, LIMIT, NODES};
use crate::cni_node::{self, ours};
use rendered::Objects;
#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use rendered::rights;

/// The name of our image in the manifests.
const IMAGE: &str = "localhost/netd:latest";
const NAMESPACE: &str = "kube-system";
/// Our DaemonSets.
pub(crate) const SETS: [&str; 2] = ["netd", "ipvs-proxy"];

/// Where the API server writes down who of our accounts asks it for what.
pub(super) const AUDIT: &str = "/run/audit.log";

/// What it writes down.
pub(super) fn audit_policy() -> Value {
    let users = SETS.map(|name| format!("system:serviceaccount:{NAMESPACE}:{name}"));
    json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata", "users": users}, {"level": "None"}]})
}

/// The machine that builds the image, which is no node.
const BUILDER: &str = "hdss7-12";

/// Builds the image.
pub(super) fn build_image(machines: &lab::Cluster) -> Result<()> {
    let builder = machines.host(BUILDER)?;
    cni_node::show_empty_folders(builder)?;
    ours::save(builder, IMAGE).map(drop)
}

/// Gives the image that was built to the nodes.
pub(super) fn give_image(machines: &lab::Cluster, nodes: &[Node]) -> Result<()> {
    for node in nodes {
        fs::copy(machines.host(BUILDER)?.path(ours::ARCHIVE), node.host.path(ours::ARCHIVE))
            .context("copy the image")?;
        node.runtime.import(ours::ARCHIVE)?;
        fs::remove_file(node.host.path(ours::ARCHIVE))?;
    }
    Ok(())
}

impl Cluster {
    /// Applies an overlay, with the address of the API server, and waits until the DaemonSets are ready on both nodes.
    pub(super) fn deploy(&self, overlay: &str) -> Result<()> {
        let at = self.server.address();
        self.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "kubernetes-api", "namespace": NAMESPACE},
            "data": {"KUBERNETES_SERVICE_HOST": at.ip().to_string(), "KUBERNETES_SERVICE_PORT": at.port().to_string()}}))?;
        for ((kind, name), object) in &objects(overlay)? {
            self.apply(object).with_context(|| format!("apply {kind} {name}"))?;
        }
        SETS.iter().try_for_each(|name| self.rolled_out(name))
    }

    /// Waits until each node has a ready Pod of what the DaemonSet asks for now, and no other.
    pub(crate) fn rolled_out(&self, name: &str) -> Result<()> {
        eventually(LIMIT, || {
            let set = self.server.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{name}"))?;
            let status = &set["status"];
            let counts = ["updatedNumberScheduled", "numberReady", "numberAvailable"].map(|field| &status[field]);
            let is_seen = status["observedGeneration"] == set["metadata"]["generation"];
            ensure!(is_seen && counts.iter().all(|count| **count == NODES.len()), "{name}: {status}");
            Ok(())
        })
        .with_context(|| self.report())
    }

    /// The Pods of a DaemonSet.
    pub(crate) fn pods_of_set(&self, name: &str) -> Result<Vec<Pod>> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name={name}");
        Ok(self.items(&path)?.iter().map(Pod::of).collect())
    }

    /// How often containers of our Pods were started again.
    pub(crate) fn restarts(&self) -> Result<u64> {
        let pods = self.items(&format!("/api/v1/namespaces/{NAMESPACE}/pods"))?;
        let of = |pod: &Value| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(pods.iter().flat_map(of).filter_map(|state| state["restartCount"].as_u64()).sum())
    }

    /// What our accounts have asked the API server for since the begin.
    pub(crate) fn audit(&self) -> Result<String> {
        self.server.host().read(AUDIT)
    }

    /// What is known about our programs: the states of their Pods, what was reported about them, and the end of their logs.
    pub(crate) fn report(&self) -> String {
        let path = |kind: &str| format!("/api/v1/namespaces/{NAMESPACE}/{kind}");
        let states = self.items(&path("pods")).map(|all| super::summary(&all)).unwrap_or_default();
        let events = self.items(&path("events")).unwrap_or_default();
        let said: Vec<String> = events.iter().map(|event| event["message"].to_string()).collect();
        let mut text = format!("Pods: {states}\nEvents: {said:#?}");
        for node in &self.nodes {
            let logs = "for log in /var/log/pods/kube-system_*/*/*.log; do echo \"-- $log\"; tail -n 15 \"$log\"; done";
            let logs = node.host.run(&["sh", "-c", logs]).map(|said| said.stdout).unwrap_or_default();
            text += &format!("\nLogs on {}:\n{logs}", node.host.name());
        }
        text
    }
}

/// The objects of an overlay.
pub(crate) fn objects(overlay: &str) -> Result<Objects> {
    let found = rendered::overlays()?.into_iter().find(|(name, _)| name == overlay);
    Ok(found.with_context(|| format!("no overlay {overlay}"))?.1)
}
