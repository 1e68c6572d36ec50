//! What a topology makes: one line for each host.
//!
//! Pure. Invariant: only what follows from the file stands here; what the kernel or a server will say does not.

use std::net::IpAddr;

use super::subnet_of;
use crate::document::Located;
use crate::topology::{ETCD_PREFIX, Host, Program, Role, SubnetPolicy, Topology, Version};

/// A table of hosts: name, address, roles, Pod subnet.
pub(crate) fn summary(topology: &Topology) -> String {
    let head = ["HOST", "ADDRESS", "ROLES", "POD SUBNET", "PROGRAMS"].map(str::to_owned);
    let rows: Vec<[String; 5]> =
        std::iter::once(head).chain(topology.hosts.iter().map(|host| row(topology, host))).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let hosts: String = rows.iter().map(line).collect();
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    let leases =
        topology.etcd_prefix.as_ref().map_or_else(|| ETCD_PREFIX.to_owned(), |prefix| prefix.value.to_string());
    let server = topology.server().map_or_else(|| "nowhere".to_owned(), |address| address.to_string());
    format!("cluster {cluster}, API server {server}, leases below {leases}\n{hosts}")
}

fn row(topology: &Topology, host: &Host) -> [String; 5] {
    let name = match &topology.domain {
        Some(domain) if !host.name.value.contains('.') => format!("{}.{}", host.name.value, domain.value),
        _ => host.name.value.clone(),
    };
    let joined = |texts: Vec<String>| texts.join(",");
    let addresses = joined(host.addresses.iter().map(|address| address.value.to_string()).collect());
    let roles = joined(host.roles.iter().map(|role| role.value.to_string()).collect());
    [name, addresses, roles, subnets(topology, host), programs(topology, host)]
}

fn subnets(topology: &Topology, host: &Host) -> String {
    if !topology.has_netd(host) {
        return "-".to_owned();
    }
    if topology.pods.subnets.value == SubnetPolicy::Kubernetes {
        return "by Kubernetes".to_owned();
    }
    let of = |address: IpAddr| {
        let mut pods = topology.networks.pods.iter().filter(|pods| pods.value.is_ipv4() == address.is_ipv4());
        pods.find_map(|pods| subnet_of(topology, &pods.value, address)).map(|subnet| subnet.to_string())
    };
    let subnets: Vec<String> = host.addresses.iter().filter_map(|address| of(address.value)).collect();
    subnets.join(",")
}

/// What the host runs, and where it lies: `etcd 3.4.23 in /usr/bin`.
fn programs(topology: &Topology, host: &Host) -> String {
    let versions = host.versions.or(&topology.versions);
    let is_node = host.has(Role::Node);
    let all = [
        ("etcd", host.has(Role::Etcd), versions.etcd, Program::Etcd),
        ("kubernetes", is_node || host.has(Role::ControlPlane), versions.kubernetes, Program::Kubernetes),
        ("containerd", is_node && versions.containerd.is_some(), versions.containerd, Program::Containerd),
        ("netd", topology.has_netd(host), None, Program::Netd),
    ];
    let said = |name: &str, version: Option<Located<Version>>, program: Program| {
        let version = version.map_or_else(String::new, |found| format!(" {}", found.value));
        format!("{name}{version} in {}", host.folder(topology, program))
    };
    let running = all.into_iter().filter(|(_, runs, ..)| *runs);
    let lines: Vec<String> = running.map(|(name, _, version, program)| said(name, version, program)).collect();
    if lines.is_empty() { "-".to_owned() } else { lines.join(", ") }
}
