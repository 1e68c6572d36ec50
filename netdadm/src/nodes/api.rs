//! `Api`: the API server that answers, asked as the administrator of a rendered folder.
//!
//! Invariant: what is gone already is a success.

use std::path::Path;

use cluster::ClusterError;
use cluster::kubernetes::{Access, Client, Patch};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use super::pods::Pod;
use crate::topology::{Role, Topology, Version};

/// Evictions of `policy/v1`.
const POLICY_V1: Version = Version::new(1, 22, 0);

/// An API server.
pub(crate) struct Api {
    runtime: Runtime,
    client: Client,
    /// Group and version of evictions.
    policy: &'static str,
}

/// A Node, as far as it is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    unschedulable: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pods {
    items: Vec<Pod>,
}

impl Node {
    /// True when no Pod is sent to it.
    pub(crate) const fn is_cordoned(&self) -> bool {
        self.spec.unschedulable
    }

    /// Why it is not ready, in its kubelet's words; nothing when it is.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let condition = |kind: &str| self.status.conditions.iter().find(|condition| condition.kind == kind);
        match (condition("Ready"), condition("NetworkUnavailable")) {
            (Some(ready), _) if ready.status != "True" => Err(format!("not Ready: {}", ready.message)),
            (Some(_), Some(network)) if network.status == "True" => {
                Err(format!("its network is not there: {}", network.message))
            }
            (Some(_), _) => Ok(()),
            (None, _) => Err("its kubelet has said nothing yet".to_owned()),
        }
    }
}

impl Api {
    /// The first API server of `topology` that answers, asked with `admin.conf` below `out`.
    ///
    /// # Errors
    /// When none answers, or there is no `admin.conf`.
    pub(crate) fn open(topology: &Topology, out: &Path) -> Result<Self, String> {
        let admin = out.join("pki/admin.conf");
        if !admin.exists() {
            return Err(format!("{} is not there; name the folder that `netdadm render` wrote by -o", admin.display()));
        }
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| format!("start asking: {cause}"))?;
        let admin = admin.display().to_string();
        let versions =
            topology.of(Role::ControlPlane).filter_map(|host| host.versions.or(&topology.versions).kubernetes);
        let is_old = versions.into_iter().any(|version| version.value < POLICY_V1);
        let policy = if is_old { "policy/v1beta1" } else { "policy/v1" };
        let mut said = Vec::new();
        let port = topology.ports.api_server();
        for address in topology.of(Role::ControlPlane).filter_map(|host| host.addresses.first()) {
            let url = format!("https://{}", std::net::SocketAddr::new(address.value, port));
            let access =
                Access::new(Some(&admin), Some(&url), concat!("netdadm/", env!("CARGO_PKG_VERSION")), "admin.conf");
            let client = Client::connect(&access).map_err(|error| error.asked_once())?;
            match runtime.block_on(client.get::<Value>("/version")) {
                Ok(_) => return Ok(Self { runtime, client, policy }),
                Err(error) => said.push(error.asked_once()),
            }
        }
        Err(format!("no API server answers: {}", said.join("; ")))
    }

    /// The Node of this name, if it is there.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn node(&self, name: &str) -> Result<Option<Node>, String> {
        match self.runtime.block_on(self.client.get(&path(name))) {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error.asked_once()),
        }
    }

    /// Sends no Pod to it any more.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn cordon(&self, name: &str) -> Result<(), String> {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        self.runtime
            .block_on(self.client.patch::<Value>(&path(name), &patch))
            .map(drop)
            .map_err(|error| error.asked_once())
    }

    /// Pods on it.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn pods(&self, name: &str) -> Result<Vec<Pod>, String> {
        let listing = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}");
        let pods = self.runtime.block_on(self.client.list::<Pods>(&listing));
        pods.map(|pods| pods.items).map_err(|error| error.asked_once())
    }

    /// Evicts a Pod; `Some` is why a PodDisruptionBudget does not let it go now.
    ///
    /// # Errors
    /// What the server says otherwise.
    pub(crate) fn evict(&self, pod: &Pod) -> Result<Option<String>, String> {
        let request = pod.request(self.policy);
        match self.runtime.block_on(self.client.create::<Value>(&pod.eviction(), &request)) {
            Ok(_) => Ok(None),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) if error.status() == Some(429) => Ok(Some(error.message)),
            Err(error) => Err(error.asked_once()),
        }
    }

    /// Deletes the Node.
    ///
    /// # Errors
    /// What the server says.
    pub(crate) fn delete(&self, name: &str) -> Result<(), String> {
        let gone = |error: &ClusterError| error.status() == Some(404);
        match self.runtime.block_on(self.client.delete(&path(name))) {
            Err(error) if !gone(&error) => Err(error.asked_once()),
            _ => Ok(()),
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_with_its_kubelet_and_its_network() {
        let node = |conditions: &str| -> Node {
            serde_json::from_str(&format!(r#"{{"spec":{{}},"status":{{"conditions":[{conditions}]}}}}"#)).unwrap()
        };
        let ready = r#"{"type":"Ready","status":"True","message":"posting"}"#;
        assert_eq!(node(ready).ready(), Ok(()));
        let without = format!(r#"{ready},{{"type":"NetworkUnavailable","status":"True","message":"no lease"}}"#);
        assert_eq!(node(&without).ready().unwrap_err(), "its network is not there: no lease");
        let silent = r#"{"type":"Ready","status":"Unknown","message":"stopped posting"}"#;
        assert_eq!(node(silent).ready().unwrap_err(), "not Ready: stopped posting");
        assert!(node("").ready().is_err() && !node("").is_cordoned());
    }
}
