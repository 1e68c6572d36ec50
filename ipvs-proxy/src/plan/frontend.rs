//! `Frontend`: an address and port that clients connect to on behalf of a Service, and what is asked for there.
//!
//! Neutral of the data path: a Service port has one frontend for each of its addresses, whoever serves it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netstate::family::IpFamily;
use netstate::protocol::Protocol;
use netstate::scheduler::Scheduler;

use super::here::Here;
use super::route::Routes;
use super::select::Choice;
use crate::object::ObjectName;
use crate::object::service::{IngressMode, Service, ServicePort, Sources};

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

impl FrontendKey {
    /// The family it is reached in.
    #[must_use]
    pub(crate) const fn family(&self) -> IpFamily {
        match self.place {
            Place::Address(addr) => IpFamily::of(addr),
            Place::AnyNode(family) => family,
        }
    }
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

/// What stands behind an address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frontend {
    /// What the address is to the Service.
    pub(crate) kind: Kind,
    /// The Service whose it is.
    pub(crate) owner: ObjectName,
    /// How long a client stays with its backend, if it does.
    pub(crate) affinity: Option<Affinity>,
    /// The scheduler that the Service asks for, if it asks for one.
    pub(crate) scheduler: Option<Arc<Scheduler>>,
    /// Clients that may connect.
    pub(crate) sources: Sources,
    /// Where each class of client is led.
    pub(crate) routes: Routes,
}

/// A client, known by its address or the network of it, stays with its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Affinity {
    /// For so many seconds after its last connection.
    pub(crate) seconds: u32,
    /// At all frontends of this port of the Service alike, the port's number in `spec.ports`.
    pub(crate) port: u16,
    /// Addresses that are equal in so many bits are one client, where the data path can do it; `None`: each is one.
    pub(crate) prefix: Option<u8>,
}

/// Where clients of a port connect, with what the address is to the Service, when its virtual addresses are `addresses`; each place
/// once.
#[must_use]
pub(crate) fn places(service: &Service, port: &ServicePort, addresses: &[IpAddr]) -> Vec<(FrontendKey, Kind)> {
    let at = |kind| {
        move |addr: &IpAddr| {
            (FrontendKey { protocol: port.protocol, place: Place::Address(*addr), port: port.port }, kind)
        }
    };
    let mut found: Vec<_> = addresses.iter().map(at(Kind::ClusterIp)).collect();
    if let Some(number) = port.node_port {
        for family in service.families() {
            let place = Place::AnyNode(family);
            found.push((FrontendKey { protocol: port.protocol, place, port: number }, Kind::NodePort));
        }
    }
    // An address whose load balancer is a proxy of its own must be reached through that.
    let vips = service.load_balancer.iter().filter(|ingress| ingress.mode == IngressMode::Vip);
    found.extend(vips.map(|ingress| &ingress.addr).map(at(Kind::LoadBalancer)));
    found.extend(service.external_ips.iter().map(at(Kind::External)));
    let mut seen = BTreeSet::new();
    found.retain(|(key, _)| seen.insert(*key));
    found
}

impl Frontend {
    /// What stands at a place of a port of `service` whose endpoints are `choice`.
    #[must_use]
    pub(crate) fn new(
        (service, port): (&Service, &ServicePort),
        (key, kind): (&FrontendKey, Kind),
        choice: &Choice,
        here: &Here,
    ) -> Self {
        Self {
            kind,
            owner: service.name.clone(),
            affinity: service.affinity.map(|seconds| Affinity {
                seconds,
                port: port.port,
                prefix: service.affinity_prefix.and_then(|prefix| *prefix.0.get(key.family())),
            }),
            scheduler: service.scheduler.clone(),
            sources: match kind {
                Kind::LoadBalancer => service.sources.get(key.family()).clone(),
                Kind::ClusterIp | Kind::NodePort | Kind::External => Sources::Any,
            },
            routes: match kind {
                Kind::ClusterIp => Routes::internal((service.internal_policy, key.family()), choice, here),
                Kind::NodePort | Kind::External | Kind::LoadBalancer => {
                    Routes::external((service.external_policy, key.family()), choice, here)
                }
            },
        }
    }
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
        let service = whole("Cluster");
        let found: Vec<_> = places(&service, &service.ports[0], &service.cluster_ips)
            .into_iter()
            .map(|(key, kind)| (key.to_string(), kind))
            .collect();
        let expected = [
            ("tcp 192.168.0.10:80", Kind::ClusterIp),
            ("tcp [fd00::10]:80", Kind::ClusterIp),
            ("tcp IPv4 node port 30080", Kind::NodePort),
            ("tcp IPv6 node port 30080", Kind::NodePort),
            ("tcp 10.4.7.99:80", Kind::LoadBalancer),
            ("tcp 10.4.7.10:80", Kind::External),
        ];
        assert_eq!(found, expected.map(|(key, kind)| (key.to_owned(), kind)));
    }

    #[test]
    fn sources_are_of_the_load_balancer_and_affinity_of_all() {
        let service = whole("Local");
        for (key, kind) in places(&service, &service.ports[0], &service.cluster_ips) {
            let frontend =
                Frontend::new((&service, &service.ports[0]), (&key, kind), &Choice::default(), &Here::on("n1"));
            assert_eq!(frontend.sources != Sources::Any, kind == Kind::LoadBalancer, "{kind:?}");
            assert_eq!(frontend.affinity, Some(Affinity { seconds: 10_800, port: 80, prefix: None }), "{kind:?}");
        }
    }

    #[test]
    fn an_address_that_is_a_load_balancers_and_external_lets_in_whom_the_load_balancer_does() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "192.168.0.10", "externalIPs": ["10.4.7.99"],
            "loadBalancerSourceRanges": ["10.4.7.0/24"], "ports": [{"port": 80}]});
        let service = service(&spec);
        let found = places(&service, &service.ports[0], &service.cluster_ips);
        let kinds: Vec<_> = found.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, [Kind::ClusterIp, Kind::LoadBalancer]);
    }
}
