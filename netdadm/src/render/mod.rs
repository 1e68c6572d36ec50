//! What each host of a topology gets: a tree of files and the units that read them, a room for each component.
//!
//! Pure. Invariant: a tree follows from the topology alone, so that rendering twice gives the same bytes; no key is in it, only
//! the paths at which keys will lie.

mod api_server;
mod cni;
mod containerd;
mod controller_manager;
mod etcd;
mod flags;
mod kubelet;
mod netd;
mod objects;
mod place;
mod proxy;
mod scheduler;
mod system;
#[cfg(test)]
mod tests;
mod tree;
mod unit;

use crate::topology::{Host, Role, Topology};

pub(crate) use containerd::CONFIG as CONTAINERD;
pub(crate) use etcd::{DATA, initial_members};
pub(crate) use objects::objects;
pub(crate) use place::{PKI, Place};
pub(crate) use tree::{File, Tree};

/// The folder of Kubernetes' own files on a host.
pub(crate) const KUBERNETES: &str = "/etc/kubernetes";

/// What `host` gets; nothing when it has no part in the cluster.
pub(crate) fn host(topology: &Topology, host: &Host) -> Tree {
    let mut tree = Tree::default();
    let Some(place) = Place::of(topology, host) else { return tree };
    system::add(&place, &mut tree);
    if host.has(Role::Etcd) {
        etcd::add(&place, &mut tree);
    }
    if host.has(Role::ControlPlane) {
        api_server::add(&place, &mut tree);
        controller_manager::add(&place, &mut tree);
        scheduler::add(&place, &mut tree);
        for (name, text) in objects(topology) {
            tree.file(format!("{KUBERNETES}/objects/{name}"), text);
        }
    }
    if host.has(Role::Node) {
        containerd::add(&place, &mut tree);
        cni::add(&place, &mut tree);
        kubelet::add(&place, &mut tree);
    }
    if topology.has_netd(host) {
        netd::add(&place, &mut tree);
    }
    if host.has(Role::Node) {
        proxy::add(&place, &mut tree);
    }
    tree
}

/// True when `host` and those that are made before it are a quorum of etcd's members, so that its API server can start.
fn has_quorum(topology: &Topology, host: &Host) -> bool {
    let is_before = |other: &&Host| other.name.value != host.name.value;
    let before = order(topology).into_iter().take_while(is_before).filter(|other| other.has(Role::Etcd)).count();
    let there = before.saturating_add(usize::from(host.has(Role::Etcd)));
    there > topology.of(Role::Etcd).count() / 2
}

/// The hosts in the order in which they are made: members of etcd before API servers, which wait for a quorum of them, and
/// these before hosts that have nodes only.
pub(crate) fn order(topology: &Topology) -> Vec<&Host> {
    let rank = |host: &Host| match (host.has(Role::ControlPlane), host.has(Role::Etcd), host.has(Role::Node)) {
        (false, true, _) => Some(0),
        (true, ..) => Some(1),
        (false, false, true) => Some(2),
        (false, false, false) => None,
    };
    let mut hosts: Vec<(u8, &Host)> =
        topology.hosts.iter().filter_map(|host| rank(host).map(|rank| (rank, host))).collect();
    hosts.sort_by_key(|(rank, _)| *rank);
    hosts.into_iter().map(|(_, host)| host).collect()
}
