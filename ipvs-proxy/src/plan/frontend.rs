//! `Frontend`: an address and port that clients connect to on behalf of a Service, and what is asked for there.
//!
//! Neutral of the data path: a Service port has one frontend for each of its addresses, whoever serves it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netstate::Prefix;
use netstate::family::IpFamily;
use netstate::protocol::Protocol;

use super::select::Backend;
use crate::object::ObjectName;
use crate::object::service::{IngressMode, Policy, Service, ServicePort};

/// Where clients connect: what Services claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FrontendKey {
    /// Transport protocol.
    pub(crate) protocol: Protocol,
    /// The address, or any address of this node.
    pub(crate) place: Place,
    /// The port.
    pub(crate) port: u16,
}

/// The address part of a [`FrontendKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// This address.
    Address(IpAddr),
    /// Every address of this node of a family.
    AnyNode(IpFamily),
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Address(addr) => write!(f, "{} {}", self.protocol, SocketAddr::new(addr, self.port)),
            Place::AnyNode(family) => write!(f, "{} {family} node port {}", self.protocol, self.port),
        }
    }
}

/// What a frontend's address is to its Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its virtual address in the Service network.
    ClusterIp,
    /// Any address of the node.
    NodePort,
    /// One of `spec.externalIPs`.
    External,
    /// One of `status.loadBalancer.ingress`.
    LoadBalancer,
}

/// Whose connections leave with the node's address in place of the client's. A Pod that reaches itself always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Masquerade {
    /// Those of clients outside the Pod network.
    FromOutside,
    /// Everybody's: the endpoint may be on another node.
    Always,
    /// Nobody's: the endpoint is on this node and sees the client.
    Never,
}

/// What stands behind an address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frontend {
    /// What the address is to the Service.
    pub(crate) kind: Kind,
    /// The Service whose it is.
    pub(crate) owner: ObjectName,
    /// Seconds a client stays with its backend; `None` without session affinity.
    pub(crate) affinity: Option<u32>,
    /// Which endpoints may be chosen.
    pub(crate) policy: Policy,
    /// Whose connections are masqueraded.
    pub(crate) masquerade: Masquerade,
    /// Clients that may connect; everybody when empty.
    pub(crate) sources: Vec<Prefix>,
    /// Where connections go, in order; may be empty, then clients are refused.
    pub(crate) backends: Arc<[Backend]>,
}

/// The frontends of a Service, each with its port and, so far, without backends.
pub(crate) fn frontends(service: &Service) -> impl Iterator<Item = (FrontendKey, &ServicePort, Frontend)> {
    service.ports.iter().flat_map(move |port| of_port(service, port).into_iter().map(move |(k, f)| (k, port, f)))
}

fn of_port(service: &Service, port: &ServicePort) -> Vec<(FrontendKey, Frontend)> {
    let frontend = |kind| Frontend {
        kind,
        owner: service.name.clone(),
        affinity: service.affinity,
        policy: if kind == Kind::ClusterIp { service.internal_policy } else { service.external_policy },
        masquerade: match (kind, service.external_policy) {
            (Kind::ClusterIp, _) => Masquerade::FromOutside,
            (_, Policy::Cluster) => Masquerade::Always,
            (_, Policy::Local) => Masquerade::Never,
        },
        sources: if kind == Kind::LoadBalancer { service.source_ranges.clone() } else { Vec::new() },
        backends: Arc::default(),
    };
    let at = |kind| {
        let frontend = frontend(kind);
        move |addr: &IpAddr| {
            let place = Place::Address(*addr);
            (FrontendKey { protocol: port.protocol, place, port: port.port }, frontend.clone())
        }
    };
    let mut found: Vec<_> = service.cluster_ips.iter().map(at(Kind::ClusterIp)).collect();
    if let Some(number) = port.node_port {
        for family in service.families() {
            let place = Place::AnyNode(family);
            found.push((FrontendKey { protocol: port.protocol, place, port: number }, frontend(Kind::NodePort)));
        }
    }
    found.extend(service.external_ips.iter().map(at(Kind::External)));
    // An address whose load balancer is a proxy of its own must be reached through that.
    let vips = service.load_balancer.iter().filter(|ingress| ingress.mode == IngressMode::Vip);
    found.extend(vips.map(|ingress| &ingress.addr).map(at(Kind::LoadBalancer)));
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: &serde_json::Value) -> Service {
        let status =
            json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}, {"ip": "10.4.7.98", "ipMode": "Proxy"}]}});
        let object = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec, "status": status});
        Service::from_json(&object).unwrap()
    }

    fn whole(policy: &str) -> Service {
        service(&json!({
            "type": "LoadBalancer", "clusterIP": "192.168.0.10", "clusterIPs": ["192.168.0.10", "fd00::10"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30_080}],
            "externalIPs": ["10.4.7.10"], "externalTrafficPolicy": policy,
            "loadBalancerSourceRanges": ["10.4.7.0/24"], "sessionAffinity": "ClientIP",
        }))
    }

    #[test]
    fn a_port_has_a_frontend_for_each_of_its_addresses() {
        let found: Vec<_> =
            frontends(&whole("Cluster")).map(|(key, _, frontend)| (key.to_string(), frontend.kind)).collect();
        let expected = [
            ("tcp 192.168.0.10:80", Kind::ClusterIp),
            ("tcp [fd00::10]:80", Kind::ClusterIp),
            ("tcp IPv4 node port 30080", Kind::NodePort),
            ("tcp IPv6 node port 30080", Kind::NodePort),
            ("tcp 10.4.7.10:80", Kind::External),
            ("tcp 10.4.7.99:80", Kind::LoadBalancer),
        ];
        assert_eq!(found, expected.map(|(key, kind)| (key.to_owned(), kind)));
    }

    #[test]
    fn policy_masquerade_and_sources_follow_the_kind() {
        for (policy, outside) in [("Cluster", Masquerade::Always), ("Local", Masquerade::Never)] {
            for (_, _, frontend) in frontends(&whole(policy)) {
                let inside = frontend.kind == Kind::ClusterIp;
                assert_eq!(frontend.masquerade, if inside { Masquerade::FromOutside } else { outside });
                assert_eq!(frontend.sources.is_empty(), frontend.kind != Kind::LoadBalancer);
                assert_eq!(frontend.affinity, Some(10_800));
            }
        }
    }
}
