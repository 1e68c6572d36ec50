//! The objects as etcd holds them, with what a cluster of today has in them: a Node of some 14 KB, Services and slices.
//!
//! Invariant: each Node has an address, a hardware address and a podCIDR of its own; two heartbeats of a Node differ in its conditions'
//! times alone, as kubelet's do.

use lab::kubernetes::Release;
use serde_json::{Value, json};

use crate::proxy::services::Service;

/// What stands before the names of flannel's annotations.
const FLANNEL: &str = "flannel.alpha.coreos.com";
/// As many as kubelet reports (`--node-status-max-images`).
const IMAGES: usize = 50;
const CREATED: &str = "2026-11-20T08:00:00Z";

/// The Node of another node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    index: usize,
}

impl Node {
    pub(super) const fn new(index: usize) -> Self {
        Self { index }
    }

    pub(super) fn name(self) -> String {
        format!("node-{:05}", self.index)
    }

    fn parts(self) -> (usize, usize) {
        (self.index / 256, self.index % 256)
    }

    /// Where it is, or is after a move.
    pub(super) fn address(self, moved: bool) -> String {
        let (high, low) = self.parts();
        format!("10.{}.{high}.{low}", if moved { 129 } else { 128 })
    }

    /// The name of flannel's annotation with the address.
    pub(super) fn address_annotation() -> String {
        format!("{FLANNEL}/public-ip")
    }

    /// Its key in the server's etcd.
    pub(super) fn key(self, release: Release) -> String {
        let folder = if release == Release::V1_20 { "minions" } else { "nodes" };
        format!("/registry/{folder}/{}", self.name())
    }

    /// What kubelet says for the `beat`th time.
    pub(super) fn conditions(beat: usize) -> Value {
        let at = format!("2026-11-27T{:02}:{:02}:{:02}Z", beat / 3600 % 24, beat / 60 % 60, beat % 60);
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "lastHeartbeatTime": at, "lastTransitionTime": CREATED,
                "reason": reason, "message": message})
        };
        json!([
            condition("NetworkUnavailable", "False", "FlannelIsUp", "Flannel is running on this node"),
            condition(
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available"
            ),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status. AppArmor enabled"),
        ])
    }

    /// The whole object behind its `beat`th heartbeat.
    pub(super) fn object(self, beat: usize) -> Value {
        let (high, low) = self.parts();
        let (name, cidr) = (self.name(), format!("100.{}.{low}.0/24", 64 + high));
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#);
        let flannel = |name: &str| format!("{FLANNEL}/{name}");
        let annotations = json!({
            flannel("backend-data"): data, flannel("backend-type"): "vxlan", flannel("kube-subnet-manager"): "true",
            flannel("public-ip"): self.address(false), "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
            "node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        });
        let labels = json!({
            "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": name, "node.kubernetes.io/instance-type": "m5.4xlarge", "topology.kubernetes.io/region": "eu-central-1",
            "topology.kubernetes.io/zone": "eu-central-1a",
        });
        let room = json!({"cpu": "16", "ephemeral-storage": "101430960Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
            "memory": "65843032Ki", "pods": "110"});
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": self.uid(), "creationTimestamp": CREATED, "labels": labels, "annotations": annotations,
                "managedFields": managed(&annotations, &labels)},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr], "providerID": format!("aws:///eu-central-1a/i-{:017x}", self.index)},
            "status": {
                "addresses": [{"type": "InternalIP", "address": self.address(false)}, {"type": "Hostname", "address": name}],
                "allocatable": room, "capacity": room, "conditions": Self::conditions(beat),
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}, "images": self.images(), "nodeInfo": self.info(),
            },
        })
    }

    fn uid(self) -> String {
        format!("8d0c2f64-5a3b-4c1e-9f27-{:012x}", self.index)
    }

    fn images(self) -> Vec<Value> {
        let image = |number: usize| {
            let name = format!("registry.example.com/platform/service-{:02}", (self.index + number) % 97);
            let digest = format!("{:016x}", self.index * IMAGES + number).repeat(4);
            json!({"names": [format!("{name}@sha256:{digest}"), format!("{name}:v1.{number}.7")], "sizeBytes": 48_123_904 + number})
        };
        (0..IMAGES).map(image).collect()
    }

    fn info(self) -> Value {
        let id = format!("{:032x}", self.index);
        json!({"architecture": "amd64", "bootID": self.uid(), "containerRuntimeVersion": "containerd://1.6.20",
            "kernelVersion": "6.1.0-28-amd64", "kubeProxyVersion": "v1.20.2", "kubeletVersion": "v1.20.2", "machineID": id,
            "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)", "systemUUID": id})
    }
}

/// What server-side apply keeps of who wrote which field.
fn managed(annotations: &Value, labels: &Value) -> Value {
    let fields = |object: &Value| -> Value {
        let names = object.as_object().into_iter().flat_map(|object| object.keys());
        names.map(|name| (format!("f:{name}"), json!({}))).collect::<serde_json::Map<_, _>>().into()
    };
    let condition = |kind: &str| {
        (
            format!(r#"k:{{"type":"{kind}"}}"#),
            json!({"f:lastHeartbeatTime": {}, "f:message": {}, "f:reason": {}, "f:status": {}}),
        )
    };
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition);
    let conditions: Value = conditions.into_iter().collect::<serde_json::Map<_, _>>().into();
    let entry = |manager: &str, fields: Value| json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1", "fieldsV1": fields});
    json!([
        entry(
            "kubelet",
            json!({"f:metadata": {"f:annotations": fields(annotations), "f:labels": fields(labels)},
            "f:status": {"f:conditions": conditions, "f:images": {}, "f:nodeInfo": {"f:bootID": {}, "f:kernelVersion": {}}}})
        ),
        entry("kube-controller-manager", json!({"f:spec": {"f:podCIDR": {}, "f:podCIDRs": {".": {}}}})),
    ])
}

/// Keys and values of a Service and its slice in the server's etcd.
pub(super) fn service(service: Service, release: Release) -> [(String, String); 2] {
    let (name, address) = (service.name(), service.address());
    let whole = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": format!("5b1f{name:0>32}"), "creationTimestamp": CREATED,
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop"},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:labels": {"f:app.kubernetes.io/name": {}}}, "f:spec": {"f:ports": {}, "f:selector": {}}}}]},
        "spec": {"type": "ClusterIP", "clusterIP": address.ip(), "clusterIPs": [address.ip()], "sessionAffinity": "None",
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": address.port(), "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    });
    let folder = if release == Release::V1_20 { "services/specs" } else { "services" };
    let slices = if release == Release::V1_20 { "endpointslices" } else { "discovery.k8s.io/endpointslices" };
    [
        (format!("/registry/{folder}/default/{name}"), whole.to_string()),
        (format!("/registry/{slices}/default/{}", service.slice_name()), slice(service, release).to_string()),
    ]
}

fn slice(service: Service, release: Release) -> Value {
    let name = service.name();
    json!({
        "apiVersion": release.slices(), "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": service.slice_name(), "namespace": "default", "uid": format!("6c2a{name:0>32}"), "creationTimestamp": CREATED,
            "generateName": format!("{name}-"), "generation": 1,
            "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "uid": format!("5b1f{name:0>32}"), "controller": true,
                "blockOwnerDeletion": true}]},
        "endpoints": endpoints(service, false, release),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

/// The endpoints, one of them exchanged when `changed`.
pub(super) fn endpoints(service: Service, changed: bool, release: Release) -> Value {
    let endpoint = |(number, address): (usize, std::net::SocketAddrV4)| {
        let node = Node::new(number).name();
        let mut one = json!({"addresses": [address.ip()], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("{}-{number}", service.name()),
                "uid": format!("7d3b{:0>32}", number)}});
        let place = if release == Release::V1_20 {
            ("topology", json!({"kubernetes.io/hostname": node}))
        } else {
            ("nodeName", json!(node))
        };
        if let Some(fields) = one.as_object_mut() {
            fields.insert(place.0.to_owned(), place.1);
        }
        one
    };
    service.endpoints(changed).into_iter().enumerate().map(endpoint).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_node_has_the_size_of_those_of_a_cluster_and_a_heartbeat_changes_times_alone() {
        let (first, next) = (Node::new(4999).object(1), Node::new(4999).object(2));
        assert!((10_000..16_000).contains(&first.to_string().len()), "{}", first.to_string().len());
        assert_ne!(first, next);
        let without = |mut node: Value| {
            node["status"]["conditions"] = Value::Null;
            node
        };
        assert_eq!(without(first), without(next));
    }

    #[test]
    fn nodes_share_neither_address_nor_subnet() {
        let of =
            |pick: fn(Node) -> String| (0..5_000).map(|index| pick(Node::new(index))).collect::<BTreeSet<_>>().len();
        assert_eq!(of(|node| node.address(false)), 5_000);
        assert_eq!(of(|node| node.object(0)["spec"]["podCIDR"].to_string()), 5_000);
    }
}
