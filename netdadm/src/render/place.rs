//! `Place`: one host in its cluster, and what its rooms ask about both.
//!
//! Invariant: a place has an address; the topology was checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::topology::{Host, Program, Purpose, Role, SubnetPolicy, Topology, Version};

/// Where certificates and keys lie on a host, as kubeadm has it.
pub(crate) const PKI: &str = "/etc/kubernetes/pki";

/// Kubernetes of a host whose version nobody said; a checked topology says it.
const NEWEST: Version = Version::new(1, 36, 0);

/// A host in its cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The cluster.
    pub(crate) topology: &'a Topology,
    /// The host.
    pub(crate) host: &'a Host,
    /// The address that others use.
    pub(crate) address: IpAddr,
}

/// A kubeconfig of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kubeconfig {
    /// The file, below `/etc/kubernetes`.
    pub(crate) file: &'static str,
    /// The certificate of its user, below the folder of certificates, without suffix.
    pub(crate) certificate: &'static str,
    /// Its user.
    pub(crate) user: String,
    /// The API server.
    pub(crate) server: String,
}

impl<'a> Place<'a> {
    /// `host` in `topology`; nothing when it has no address.
    pub(crate) fn of(topology: &'a Topology, host: &'a Host) -> Option<Self> {
        let address = host.addresses.first()?.value;
        Some(Self { topology, host, address })
    }

    /// The name of the host, its Node and its member of etcd.
    pub(super) fn name(&self) -> &'a str {
        &self.host.name.value
    }

    /// The version of Kubernetes that it runs.
    pub(super) fn kubernetes(&self) -> Version {
        self.host.versions.or(&self.topology.versions).kubernetes.map_or(NEWEST, |found| found.value)
    }

    /// True when its Kubernetes is of this minor version or newer.
    pub(super) fn since(&self, minor: u32) -> bool {
        self.kubernetes() >= Version::new(1, minor, 0)
    }

    /// The version of etcd that it runs, if it is known.
    pub(super) fn etcd(&self) -> Option<Version> {
        self.host.versions.or(&self.topology.versions).etcd.map(|found| found.value)
    }

    /// The version of containerd that it runs; without one docker.
    pub(super) fn containerd(&self) -> Option<Version> {
        self.host.versions.or(&self.topology.versions).containerd.map(|found| found.value)
    }

    /// The path of a program.
    pub(super) fn program(&self, of: Program, name: &str) -> String {
        format!("{}/{name}", self.host.folder(self.topology, of))
    }

    /// A port of the cluster.
    pub(super) fn port(&self, purpose: Purpose) -> u16 {
        self.topology.ports.of(purpose)
    }

    /// Its own address with a port.
    pub(crate) fn at(&self, purpose: Purpose) -> SocketAddr {
        SocketAddr::new(self.address, self.port(purpose))
    }

    /// Loopback with a port.
    pub(super) fn loopback(&self, purpose: Purpose) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port(purpose))
    }

    /// Every address with a port, of both families where there are both.
    pub(super) fn everywhere(&self, purpose: Purpose) -> SocketAddr {
        SocketAddr::new(unspecified(self.address), self.port(purpose))
    }

    /// Where every member of etcd serves clients.
    pub(super) fn etcd_endpoints(&self) -> String {
        let members = self.topology.of(Role::Etcd).filter_map(|host| Place::of(self.topology, host));
        let urls: Vec<String> = members.map(|member| format!("https://{}", member.at(Purpose::EtcdClient))).collect();
        urls.join(",")
    }

    /// The networks of Pods, separated by commas.
    pub(super) fn pods(&self) -> String {
        joined(self.topology.networks.pods.iter().map(|network| network.value))
    }

    /// The networks of Services, separated by commas.
    pub(super) fn services(&self) -> String {
        joined(self.topology.networks.services.iter().map(|network| network.value))
    }

    /// True when netd leases Pod subnets in etcd.
    pub(super) fn leases_in_etcd(&self) -> bool {
        self.topology.pods.subnets.value == SubnetPolicy::NodeIp
    }

    /// The kubeconfigs of its components, by its roles.
    pub(crate) fn kubeconfigs(&self) -> Vec<Kubeconfig> {
        let local = format!("https://{}", self.loopback(Purpose::ApiServer));
        let server = self.topology.server().map_or_else(|| local.clone(), |address| format!("https://{address}"));
        let of = |file, certificate, user: &str, server: &str| Kubeconfig {
            file,
            certificate,
            user: user.to_owned(),
            server: server.to_owned(),
        };
        let mut found = Vec::new();
        if self.host.has(Role::ControlPlane) {
            // A manager follows the version of its own server.
            let manager = "system:kube-controller-manager";
            found.push(of("controller-manager.conf", "controller-manager", manager, &local));
            found.push(of("scheduler.conf", "scheduler", "system:kube-scheduler", &local));
        }
        if self.host.has(Role::Node) {
            let user = format!("system:node:{}", self.name());
            found.push(of("kubelet.conf", "kubelet-client", &user, &server));
            found.push(of("kube-proxy.conf", "kube-proxy", "system:kube-proxy", &server));
            if !self.leases_in_etcd() {
                found.push(of("netd.conf", "netd", "netd", &server));
            }
        }
        found
    }
}

/// Every address of the family of `address`; of IPv6 it is of both.
pub(super) fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Values separated by commas.
pub(super) fn joined(values: impl Iterator<Item = impl ToString>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}
