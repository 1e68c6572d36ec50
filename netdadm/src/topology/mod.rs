//! `Topology`: the hosts, networks and versions of one cluster, as its file says them.
//!
//! Pure. Invariant: a value here has the form of its field, but for names of hosts, which stand as they are written; what
//! could not be read is not here. Whether the values go together is said by [`crate::check`].

mod deviations;
mod names;
mod ports;
mod read;
mod version;

use std::net::{IpAddr, SocketAddr};

use netstate::Prefix;

pub(crate) use deviations::{Deviations, Setting, Value};
pub(crate) use names::{Backend, Component, Domain, Folder, HostName, Label, Prefixed, Role, SubnetPolicy, Switch};
pub(crate) use ports::{Ports, Purpose, Transport};
pub(crate) use read::{Reading, read};
pub(crate) use version::Version;

use crate::document::{Located, Position};

/// A cluster.
#[derive(Debug, Clone)]
pub(crate) struct Topology {
    /// What the cluster is called.
    pub(crate) cluster: Option<Located<Label>>,
    /// What follows the names of hosts in the DNS.
    pub(crate) domain: Option<Located<Domain>>,
    /// Where hosts, Pods and Services have their addresses.
    pub(crate) networks: Networks,
    /// How Pods get their addresses.
    pub(crate) pods: Pods,
    /// Where clients find the API servers; else at the first of them.
    pub(crate) endpoint: Option<Endpoint>,
    /// Where the leases of Pod subnets lie in etcd.
    pub(crate) etcd_prefix: Option<Located<Prefixed>>,
    /// What every host runs that does not deviate.
    pub(crate) versions: Versions,
    /// Where its programs lie.
    pub(crate) binaries: Binaries,
    /// Ports that are not the usual ones, and those that are.
    pub(crate) ports: Ports,
    /// What it has otherwise than others.
    pub(crate) deviations: Deviations,
    /// The hosts in the order of the file.
    pub(crate) hosts: Vec<Host>,
}

/// The networks, one of each family that the cluster has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Networks {
    /// Hosts' own; there may be several of one family.
    pub(crate) nodes: Vec<Located<Prefix>>,
    /// Pods'.
    pub(crate) pods: Vec<Located<Prefix>>,
    /// Services'.
    pub(crate) services: Vec<Located<Prefix>>,
}

/// How Pods get their addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pods {
    /// Who says which subnet a node has.
    pub(crate) subnets: Located<SubnetPolicy>,
    /// Bits of the network in a node's IPv4 subnet.
    pub(crate) subnet_length: Located<u8>,
    /// How nodes reach each other's Pods.
    pub(crate) backend: Located<Backend>,
}

/// Where clients find the API servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Where it is written.
    pub(crate) at: Position,
    /// The address.
    pub(crate) address: IpAddr,
    /// The port, if it is not that of the API servers.
    pub(crate) port: Option<u16>,
}

/// Versions of what is not ours.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Versions {
    /// Of the API server, the managers and kubelets.
    pub(crate) kubernetes: Option<Located<Version>>,
    /// Of etcd.
    pub(crate) etcd: Option<Located<Version>>,
    /// Of containerd; without one the kubelet uses what it did before: docker.
    pub(crate) containerd: Option<Located<Version>>,
}

/// Where the leases of Pod subnets lie, as flannel has it.
pub(crate) const ETCD_PREFIX: &str = "/coreos.com/network";

/// Folders of programs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Binaries {
    /// API server, managers, kubelet.
    pub(crate) kubernetes: Option<Located<Folder>>,
    /// etcd.
    pub(crate) etcd: Option<Located<Folder>>,
    /// containerd.
    pub(crate) containerd: Option<Located<Folder>>,
    /// Ours.
    pub(crate) netd: Option<Located<Folder>>,
}

/// One machine.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Its name as it is written, which is that of its Node and of its member of etcd.
    pub(crate) name: Located<String>,
    /// Its addresses, the first of them the one that others use.
    pub(crate) addresses: Vec<Located<IpAddr>>,
    /// What it is for; empty for a machine that only asks.
    pub(crate) roles: Vec<Located<Role>>,
    /// Versions that are not the cluster's.
    pub(crate) versions: Versions,
    /// Folders that are not the cluster's.
    pub(crate) binaries: Binaries,
    /// True when its member of etcd was added to a cluster that runs.
    pub(crate) joins: bool,
}

/// Programs that lie in one folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// API server, managers, kubelet.
    Kubernetes,
    /// etcd.
    Etcd,
    /// containerd.
    Containerd,
    /// Ours.
    Netd,
}

/// Where programs of Debian's packages lie.
const PACKAGES: &str = "/usr/bin";

/// Where programs lie that no package brings.
const LOCAL: &str = "/usr/local/bin";

impl Host {
    /// True when it is for `role`.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles.iter().any(|one| one.value == role)
    }

    /// Where its programs of one kind lie.
    pub(crate) fn folder(&self, topology: &Topology, program: Program) -> String {
        let (own, common) = (&self.binaries, &topology.binaries);
        let (own, common, usual) = match program {
            Program::Kubernetes => (&own.kubernetes, &common.kubernetes, LOCAL),
            Program::Etcd => (&own.etcd, &common.etcd, PACKAGES),
            Program::Containerd => (&own.containerd, &common.containerd, PACKAGES),
            Program::Netd => (&own.netd, &common.netd, LOCAL),
        };
        own.as_ref().or(common.as_ref()).map_or_else(|| usual.to_owned(), |found| found.value.to_string())
    }
}

impl Topology {
    /// The hosts that are for `role`, in the order of the file.
    pub(crate) fn of(&self, role: Role) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(move |host| host.has(role))
    }

    /// True when netd runs on `host`: on every node, and beside an API server, because webhooks and aggregated APIs are Pods. Where
    /// Kubernetes gives the subnets, netd needs a Node.
    pub(crate) fn has_netd(&self, host: &Host) -> bool {
        host.has(Role::Node) || host.has(Role::ControlPlane) && self.pods.subnets.value == SubnetPolicy::NodeIp
    }

    /// The hosts on which netd runs, in the order of the file.
    pub(crate) fn with_netd(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| self.has_netd(host))
    }

    /// Where clients find the API servers.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        let usual = self.ports.api_server();
        if let Some(endpoint) = &self.endpoint {
            return Some(SocketAddr::new(endpoint.address, endpoint.port.unwrap_or(usual)));
        }
        let first = self.of(Role::ControlPlane).next()?.addresses.first()?;
        Some(SocketAddr::new(first.value, usual))
    }
}

impl Versions {
    /// These, and of `others` what is not here.
    pub(crate) fn or(&self, others: &Self) -> Self {
        Self {
            kubernetes: self.kubernetes.or(others.kubernetes),
            etcd: self.etcd.or(others.etcd),
            containerd: self.containerd.or(others.containerd),
        }
    }
}
