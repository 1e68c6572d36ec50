//! Web servers of a Service in Pods on chosen nodes, and their networks as places to ask and ping from.
//!
//! Invariant: pure, but for looking up the network of a Pod.

use anyhow::Result;
use lab::{Host, Pod, bin_dir};
use serde_json::{Value, json};

use crate::cni_node::image;
use crate::kube_cluster::{Cluster, pods};

/// The Service.
pub(crate) const ADDRESS: &str = "192.168.0.10:80";
pub(crate) const NODE_PORT: u16 = 30080;

/// The Service of all Pods `app: web`.
pub(crate) fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort",
        "clusterIP": "192.168.0.10", "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]}})
}

/// A Pod on this node that serves on port 8080, and at this port of the node. The server is the tests' own, with the node's C library.
pub(crate) fn pod(name: &str, node: &Host, host_port: u16) -> Result<Value> {
    let programs = bin_dir()?;
    let folders = [("lab", programs.to_string_lossy().into_owned(), "/lab"), ("lib", "/usr/lib".to_owned(), "/lib")];
    let folders = folders.into_iter().chain([("lib64", "/usr/lib64".to_owned(), "/lib64")]);
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for (volume, on_node, inside) in folders {
        volumes.push(json!({"name": volume, "hostPath": {"path": on_node}}));
        mounts.push(json!({"name": volume, "mountPath": inside, "readOnly": true}));
    }
    let container = json!({"name": "web", "image": image::NAME, "imagePullPolicy": "Never",
        "command": ["/lab/echo-http", name, "8080"], "volumeMounts": mounts,
        "ports": [{"containerPort": 8080, "hostPort": host_port}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": node.name(), "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}], "containers": [container], "volumes": volumes}}))
}

/// The network of a Pod.
pub(crate) fn network(cluster: &Cluster, pod: &pods::Pod) -> Result<Pod> {
    cluster.host(&pod.node)?.pod_with_address(&pod.name, pod.address.parse()?)
}
