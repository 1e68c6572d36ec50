//! `Ports`: who listens where.
//!
//! Invariant: each purpose has one port, the usual one where the file says nothing
//! (Kubernetes, "Ports and Protocols"; Documentation/etcd; include/uapi/linux/vxlan by flannel).

use std::collections::BTreeMap;
use std::fmt;

use super::{Host, Role, Topology};
use crate::document::{Fields, Findings, Located, Node, Position, scalar};

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// The API server.
    ApiServer,
    /// Clients of etcd.
    EtcdClient,
    /// Other members of etcd.
    EtcdPeer,
    /// Metrics of etcd, on loopback.
    EtcdMetrics,
    /// The kubelet.
    Kubelet,
    /// Health of the kubelet, on loopback.
    KubeletHealth,
    /// The controller-manager.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// Metrics of ipvs-proxy, on loopback.
    ProxyMetrics,
    /// Health of ipvs-proxy.
    ProxyHealth,
    /// Metrics of netd, on loopback.
    Netd,
    /// Tunnels of VXLAN.
    Vxlan,
    /// Tunnels of WireGuard.
    Wireguard,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Purpose {
    /// Each with its field, its usual port and the role of the hosts that listen there.
    const ALL: [(Self, &str, u16, Role); 13] = [
        (Self::ApiServer, "apiServer", 6443, Role::ControlPlane),
        (Self::EtcdClient, "etcdClient", 2379, Role::Etcd),
        (Self::EtcdPeer, "etcdPeer", 2380, Role::Etcd),
        (Self::EtcdMetrics, "etcdMetrics", 2381, Role::Etcd),
        (Self::Kubelet, "kubelet", 10250, Role::Node),
        (Self::KubeletHealth, "kubeletHealth", 10248, Role::Node),
        (Self::ControllerManager, "controllerManager", 10257, Role::ControlPlane),
        (Self::Scheduler, "scheduler", 10259, Role::ControlPlane),
        (Self::ProxyMetrics, "proxyMetrics", 10249, Role::Node),
        (Self::ProxyHealth, "proxyHealth", 10256, Role::Node),
        (Self::Netd, "netd", 10247, Role::Node),
        (Self::Vxlan, "vxlan", 8472, Role::Node),
        (Self::Wireguard, "wireguard", 51820, Role::Node),
    ];

    /// What carries it.
    pub(crate) const fn transport(self) -> Transport {
        match self {
            Self::Vxlan | Self::Wireguard => Transport::Udp,
            _ => Transport::Tcp,
        }
    }

    fn row(self) -> (&'static str, Role) {
        let found = Self::ALL.iter().find(|(purpose, ..)| *purpose == self);
        found.map_or(("", Role::Nothing), |(_, field, _, role)| (*field, *role))
    }

    /// True when `host` listens there.
    pub(crate) fn is_served_by(self, topology: &Topology, host: &Host) -> bool {
        match self {
            Self::Netd | Self::Vxlan | Self::Wireguard => topology.has_netd(host),
            _ => host.has(self.row().1),
        }
    }
}

impl fmt::Display for Purpose {
    /// The name of its field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().0)
    }
}

/// The ports of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Ports(BTreeMap<Purpose, (u16, Option<Position>)>);

impl Default for Ports {
    fn default() -> Self {
        Self(Purpose::ALL.iter().map(|(purpose, _, usual, _)| (*purpose, (*usual, None))).collect())
    }
}

impl Ports {
    /// The ports that `node` names; the usual ones beside them.
    pub(crate) fn read(node: &Node, findings: &mut Findings) -> Self {
        let mut ports = Self::default();
        let Some(mut fields) = Fields::of(node, "ports", findings) else { return ports };
        for (purpose, name, ..) in Purpose::ALL {
            let path = fields.path(name);
            let read = fields.take(name).and_then(|node| scalar::<u16>(node, &path, findings));
            if let Some(Located { at, value }) = read {
                ports.0.insert(purpose, (value, Some(at)));
            }
        }
        fields.finish(findings);
        ports
    }

    /// The port of one purpose.
    pub(crate) fn of(&self, purpose: Purpose) -> u16 {
        self.0.get(&purpose).map_or(0, |(port, _)| *port)
    }

    /// Where API servers listen.
    pub(crate) fn api_server(&self) -> u16 {
        self.of(Purpose::ApiServer)
    }

    /// Each purpose with its port and the place that says so, if one does.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Purpose, u16, Option<Position>)> {
        self.0.iter().map(|(purpose, (port, at))| (*purpose, *port, *at))
    }
}
