//! Pods of the image `web`, as they are written and as the API shows them.
//!
//! Invariant: pure.

use serde_json::{Value, json};

use crate::cni_node::image;

/// Where the container of such a Pod serves.
pub(crate) const PORT: u16 = 8080;

/// A Pod that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: String,
    /// ID of its first container.
    pub(crate) container: String,
}

impl Pod {
    pub(super) fn of(object: &Value) -> Self {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            name: text("/metadata/name"),
            node: text("/spec/nodeName"),
            address: text("/status/podIP"),
            container: text("/status/containerStatuses/0/containerID").replace("containerd://", ""),
        }
    }
}

/// Whether each container of it is ready.
pub(super) fn is_ready(pod: &Value) -> bool {
    let states = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    !states.is_empty() && states.iter().all(|state| state["ready"] == true)
}

/// A web server that ends when it is asked to: busybox's own, as the first process, is not ended by a SIGTERM.
pub(crate) fn command() -> [String; 3] {
    ["sh", "-c", &format!("trap exit TERM; httpd -f -p {PORT} -h /www & wait")].map(str::to_owned)
}

/// A Deployment of web servers with this label `app`. A Pod that ends serves three seconds longer: its clients may not have seen it.
pub(crate) fn deployment(name: &str, replicas: usize) -> Value {
    let container = json!({"name": "web", "image": image::NAME, "imagePullPolicy": "Never",
        "command": command(), "ports": [{"containerPort": PORT}],
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}});
    let pod =
        json!({"terminationGracePeriodSeconds": 8, "automountServiceAccountToken": false, "containers": [container]});
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}})
}

/// A Service at this address, port 80, of the Pods of such a Deployment.
pub(crate) fn service(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"clusterIP": address,
        "selector": {"app": name}, "ports": [{"port": 80, "targetPort": PORT}]}})
}
