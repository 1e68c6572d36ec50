//! Pod subnets: each node can have one, and no two have the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::Prefix;

use crate::document::{Findings, Located};
use crate::topology::{Host, Role, SubnetPolicy, Topology};

/// Bits by which the controller-manager's subnets may be longer than an IPv6 network (cidrset.go).
const MASK_BITS: u8 = 16;

/// Bits of a node's IPv6 subnet, as netd and kubeadm have it.
const SUBNET6: u8 = 64;

/// Asks whether every node can have its Pods, and every API server reaches them.
pub(super) fn check(topology: &Topology, findings: &mut Findings) {
    for host in topology.of(Role::ControlPlane).filter(|host| !topology.has_netd(host)) {
        let field = format!("hosts.{}.roles", host.name.value);
        let found = "without a Node it gets no Pod subnet: its API server reaches no webhook and no aggregated API that is a Pod";
        findings.warning(host.name.at, &field, found, "node beside control-plane, or pods.subnets: node-ip");
    }
    for pods in &topology.networks.pods {
        let len = subnet_length(topology, &pods.value);
        if len <= pods.value.len() {
            let found = format!("subnets of /{len} do not fit {}", pods.value);
            findings.error(
                topology.pods.subnet_length.at,
                "pods.subnetLength",
                found,
                "more bits than the Pod network has",
            );
            continue;
        }
        match topology.pods.subnets.value {
            SubnetPolicy::NodeIp => by_address(topology, pods, findings),
            SubnetPolicy::Kubernetes => by_number(topology, pods, len, findings),
        }
    }
}

fn subnet_length(topology: &Topology, pods: &Prefix) -> u8 {
    if pods.is_ipv4() { topology.pods.subnet_length.value } else { SUBNET6 }
}

/// The subnet that a node has by its own address in the Pod network `pods`, if it has one.
pub(super) fn subnet_of(topology: &Topology, pods: &Prefix, address: IpAddr) -> Option<Prefix> {
    let network = topology.networks.nodes.iter().map(|network| network.value).find(|one| one.contains(address))?;
    pods.subnet(subnet_length(topology, pods), network.number_of(address)?)
}

fn by_address(topology: &Topology, pods: &Located<Prefix>, findings: &mut Findings) {
    let mut holders: BTreeMap<Prefix, &Host> = BTreeMap::new();
    let in_network = |address: &&Located<IpAddr>| {
        address.value.is_ipv4() == pods.value.is_ipv4()
            && topology.networks.nodes.iter().any(|network| network.value.contains(address.value))
    };
    for host in topology.with_netd() {
        let field = format!("hosts.{}.address", host.name.value);
        // An address outside every network has its finding already.
        for address in host.addresses.iter().filter(in_network) {
            let Some(subnet) = subnet_of(topology, &pods.value, address.value) else {
                let found = format!("the host number of {} is no number of a subnet in {}", address.value, pods.value);
                findings.error(
                    address.at,
                    &field,
                    found,
                    "another address, a larger Pod network, or pods.subnets: kubernetes",
                );
                continue;
            };
            // Of one address that two have there is a finding already.
            let is_another = |other: &&Host| other.addresses.iter().all(|other| other.value != address.value);
            if let Some(other) = holders.insert(subnet, host).filter(is_another) {
                let found = format!("{} gives {subnet}, which {} has", address.value, other.name.value);
                findings.error(
                    address.at,
                    &field,
                    found,
                    "addresses whose host numbers differ, or pods.subnets: kubernetes",
                );
            }
        }
    }
}

fn by_number(topology: &Topology, pods: &Located<Prefix>, len: u8, findings: &mut Findings) {
    let bits = len.saturating_sub(pods.value.len());
    if bits > MASK_BITS && !pods.value.is_ipv4() {
        let found = format!("{} has more subnets of /{len} than the controller-manager counts", pods.value);
        findings.error(pods.at, "networks.pods", found, format!("/{} or smaller", len.saturating_sub(MASK_BITS)));
    }
    let subnets = 1u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX);
    let nodes = topology.of(Role::Node).count();
    if u128::try_from(nodes).is_ok_and(|nodes| nodes > subnets) {
        let found = format!("{} has {subnets} subnets of /{len} for {nodes} nodes", pods.value);
        findings.error(pods.at, "networks.pods", found, "one for each node");
    }
}
