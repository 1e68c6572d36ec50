//! Objects that a cluster needs after its start and that nobody makes by himself: rights, the DNS, access for a dashboard.
//!
//! Invariant: every object is there for a version of Kubernetes that knows its API, and may be applied any number of times.

use crate::topology::{SubnetPolicy, Topology, Version};

/// The domain of Services: kubeadm's and every default's.
pub(super) const DOMAIN: &str = "cluster.local";

/// The number of the DNS server's address in the network of Services, as kubeadm has it.
pub(super) const DNS: u128 = 10;

/// Servers of the DNS, where the topology names no number.
const REPLICAS: u16 = 2;

/// Since when the administrator's group needs a binding, and clients of kubelets are in none that may do everything.
const BOUND: Version = Version::new(1, 29, 0);

/// Kubernetes of a topology that names none; a checked one does.
const NEWEST: Version = Version::new(1, 36, 0);

/// Images of CoreDNS by the first minor version of Kubernetes that has them, as kubeadm does; the first has another path.
const IMAGES: [(u32, &str); 4] = [
    (16, "coredns:1.7.0"),
    (21, "coredns/coredns:v1.8.6"),
    (25, "coredns/coredns:v1.11.1"),
    (34, "coredns/coredns:v1.12.1"),
];

/// The files of objects in the order in which they are applied.
pub(crate) fn objects(topology: &Topology) -> Vec<(&'static str, String)> {
    let version = topology.versions.kubernetes.map_or(NEWEST, |found| found.value);
    let mut rights = String::from(include_str!("objects/kubelets.yaml"));
    if version >= BOUND {
        rights += include_str!("objects/administrators.yaml");
    }
    if topology.pods.subnets.value == SubnetPolicy::Kubernetes {
        rights += include_str!("objects/netd.yaml");
    }
    vec![
        ("10-rights.yaml", rights),
        ("20-coredns.yaml", coredns(topology, version)),
        ("30-dashboard.yaml", include_str!("objects/dashboard.yaml").to_owned()),
    ]
}

fn coredns(topology: &Topology, version: Version) -> String {
    let services = topology.networks.services.iter().filter_map(|network| network.value.nth(DNS));
    let addresses: Vec<String> = services.map(|address| format!("\"{address}\"")).collect();
    let address = addresses.first().cloned().unwrap_or_default();
    // A second family needs fields that versions before 1.20 do not know.
    let families = if addresses.len() > 1 && version >= Version::new(1, 20, 0) {
        format!("  clusterIPs: [{}]\n  ipFamilyPolicy: RequireDualStack\n", addresses.join(", "))
    } else {
        String::new()
    };
    let image = topology.deviations.dns_image.clone().unwrap_or_else(|| {
        let found = IMAGES.iter().rev().find(|(minor, _)| version >= Version::new(1, *minor, 0));
        format!("registry.k8s.io/{}", found.map_or("coredns:1.7.0", |(_, image)| image))
    });
    let replicas = topology.deviations.dns_replicas.unwrap_or(REPLICAS);
    include_str!("objects/coredns.yaml")
        .replace("  FAMILIES\n", &families)
        .replace("ADDRESS", &address)
        .replace("IMAGE", &image)
        .replace("DOMAIN", DOMAIN)
        .replace("REPLICAS", &replicas.to_string())
}
