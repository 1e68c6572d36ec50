//! Which endpoints a frontend sends connections to.
//!
//! Kubernetes' rule (pkg/proxy/topology.go, CategorizeEndpoints; KEP-1669): the ready endpoints; when there is none at
//! all, those that are terminating and still serving. An endpoint that is terminating takes no new connection while a ready
//! one exists. Among the endpoints of this node the same holds for itself. Zone and node hints will narrow the first set of the whole
//! cluster; they have their place in [`Choice::of`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netstate::IpFamily;

use crate::object::service::ServicePort;
use crate::object::slice::{Endpoint, EndpointSlice};

/// This node, as far as the choice of endpoints depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Here {
    /// Its name, as EndpointSlices write it.
    pub(crate) node: String,
    /// Its own addresses: an endpoint with one of them is here, whatever its slice leaves open.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Clients can be known for Pods by their address.
    pub(crate) pods_are_known: bool,
    /// Every connection to a virtual address is masqueraded, a Pod's too.
    pub(crate) masquerade_all: bool,
}

impl Here {
    /// The node called `node` with Pods that are known by their addresses.
    #[must_use]
    pub(crate) fn on(node: impl Into<String>) -> Self {
        Self { node: node.into(), addresses: BTreeSet::new(), pods_are_known: true, masquerade_all: false }
    }
}

/// Where an endpoint runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Locality {
    /// On this node.
    Here,
    /// Nobody says; it may be on this node.
    Unknown,
    /// On another node.
    Elsewhere,
}

/// An endpoint that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Backend {
    /// The Pod's address.
    pub(crate) addr: IpAddr,
    /// The port it listens on.
    pub(crate) port: u16,
    /// Its share of new connections.
    pub(crate) weight: u32,
    /// Where it runs.
    pub(crate) locality: Locality,
}

/// Every endpoint has the same share: what spreads connections evenly is the scheduler.
const WEIGHT: u32 = 1;

/// An endpoint, put together from every slice that lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    ready: bool,
    fallback: bool,
    locality: Locality,
}

/// Which endpoints of a Service port may be used, of one family, each list in order of address and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Of the whole cluster.
    pub(crate) cluster: Arc<[Backend]>,
    /// Of this node.
    pub(crate) local: Arc<[Backend]>,
    /// There is one that could take connections, wherever it is.
    pub(crate) any: bool,
}

impl Choice {
    /// The choice for a Service port, from all slices of the Service.
    #[must_use]
    pub(crate) fn of<'a>(
        port: &ServicePort,
        family: IpFamily,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
        here: &Here,
    ) -> Self {
        let candidates = candidates(port, family, slices, here);
        let cluster = usable(candidates.iter());
        let local = usable(candidates.iter().filter(|(_, candidate)| candidate.locality == Locality::Here));
        // Whoever can take connections is in the first list, or another that is better.
        let any = !cluster.is_empty();
        Self { local: if local == cluster { Arc::clone(&cluster) } else { local }, cluster, any }
    }
}

/// The ready ones, or those that are leaving and still serving when none is ready.
fn usable<'a>(candidates: impl Iterator<Item = (&'a (IpAddr, u16), &'a Candidate)> + Clone) -> Arc<[Backend]> {
    let any_ready = candidates.clone().any(|(_, candidate)| candidate.ready);
    let chosen = candidates.filter(|(_, c)| if any_ready { c.ready } else { c.fallback });
    chosen.map(|((addr, port), c)| Backend { addr: *addr, port: *port, weight: WEIGHT, locality: c.locality }).collect()
}

/// An endpoint may stand in two slices while the controller moves it: it is what any of them says it is.
fn candidates<'a>(
    port: &ServicePort,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    here: &Here,
) -> BTreeMap<(IpAddr, u16), Candidate> {
    let mut found: BTreeMap<_, Candidate> = BTreeMap::new();
    for slice in slices {
        let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in matching.map(|p| p.port) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| IpFamily::of(endpoint.addr) == family) {
                let new = candidate(endpoint, here);
                let old = found.entry((endpoint.addr, number)).or_insert(new);
                old.ready |= new.ready;
                old.fallback |= new.fallback;
                old.locality = old.locality.min(new.locality);
            }
        }
    }
    found
}

fn candidate(endpoint: &Endpoint, here: &Here) -> Candidate {
    let locality = match endpoint.node.as_deref() {
        Some(node) if node == here.node => Locality::Here,
        _ if here.addresses.contains(&endpoint.addr) => Locality::Here,
        Some(_) => Locality::Elsewhere,
        None => Locality::Unknown,
    };
    Candidate { ready: endpoint.ready, fallback: endpoint.serving && endpoint.terminating, locality }
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::object::ObjectName;
    use crate::object::slice::EndpointPort;

    const HERE: &str = "hdss7-21.host.com";

    fn here() -> Here {
        Here { addresses: BTreeSet::from([[10, 4, 7, 21].into()]), ..Here::on(HERE) }
    }

    fn choose(port: &ServicePort, slices: &[EndpointSlice]) -> Vec<(IpAddr, u16)> {
        let choice = Choice::of(port, IpFamily::V4, slices, &here());
        choice.cluster.iter().map(|backend| (backend.addr, backend.port)).collect()
    }

    fn http() -> ServicePort {
        ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }
    }

    fn endpoint(last: u8, ready: bool, serving: bool, terminating: bool) -> Endpoint {
        Endpoint { addr: [172, 7, 21, last].into(), ready, serving, terminating, node: Some(HERE.into()) }
    }

    fn slice(endpoints: Vec<Endpoint>) -> EndpointSlice {
        let port = |name: &str, port| EndpointPort { name: name.into(), protocol: Protocol::Tcp, port };
        EndpointSlice {
            name: ObjectName::new("default", "web-1"),
            service: ObjectName::new("default", "web"),
            ports: vec![port("http", 8080), port("metrics", 9090)],
            endpoints,
            unserved: Vec::new(),
            skipped: Vec::new(),
        }
    }

    fn chosen(slices: &[EndpointSlice]) -> Vec<u8> {
        let last = |addr: &IpAddr| match addr {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        };
        choose(&http(), slices).iter().map(|(addr, _)| last(addr)).collect()
    }

    #[test]
    fn ready_endpoints_take_the_traffic() {
        let slices = [slice(vec![endpoint(2, true, true, false), endpoint(3, false, false, false)])];
        assert_eq!(chosen(&slices), [2]);
    }

    #[test]
    fn terminating_endpoints_serve_only_when_no_ready_one_is_left() {
        let leaving = endpoint(3, false, true, true);
        assert_eq!(chosen(&[slice(vec![endpoint(2, true, true, false), leaving.clone()])]), [2]);
        assert_eq!(chosen(&[slice(vec![endpoint(2, false, false, true), leaving])]), [3]);
        assert!(chosen(&[slice(vec![endpoint(2, false, true, false)])]).is_empty(), "not ready and not leaving");
    }

    #[test]
    fn the_port_is_found_by_name_and_protocol() {
        let slices = [slice(vec![endpoint(2, true, true, false)])];
        let select_port = |name: &str, protocol| {
            choose(&ServicePort { name: name.into(), protocol, port: 80, node_port: None }, &slices)
        };
        assert_eq!(select_port("metrics", Protocol::Tcp), [([172, 7, 21, 2].into(), 9090)]);
        assert!(select_port("", Protocol::Tcp).is_empty());
        assert!(select_port("http", Protocol::Udp).is_empty());
    }

    #[test]
    fn an_endpoint_in_two_slices_is_one_backend_and_ready_when_one_of_them_says_so() {
        let slices = [slice(vec![endpoint(2, false, false, false)]), slice(vec![endpoint(2, true, true, false)])];
        assert_eq!(chosen(&slices), [2]);
    }

    #[test]
    fn an_endpoint_is_here_elsewhere_or_nobody_knows() {
        let mut endpoints: Vec<_> = [2, 3, 4, 5].map(|last| endpoint(last, true, true, false)).into();
        endpoints[1].node = Some("hdss7-22.host.com".into());
        endpoints[2].node = None;
        (endpoints[3].node, endpoints[3].addr) = (None, [10, 4, 7, 21].into());
        let choice = Choice::of(&http(), IpFamily::V4, &[slice(endpoints)], &here());
        let found = |backends: &[Backend]| backends.iter().map(|backend| backend.locality).collect::<Vec<_>>();
        assert_eq!(found(&choice.cluster), [Locality::Here, Locality::Here, Locality::Elsewhere, Locality::Unknown]);
        assert_eq!(found(&choice.local), [Locality::Here; 2]);
    }

    proptest! {
        #[test]
        fn order_and_distribution_over_slices_do_not_matter(
            conditions in prop::collection::vec((2u8..6, any::<[bool; 3]>(), any::<bool>()), 0..12),
        ) {
            let all: Vec<_> = conditions.iter().map(|(last, [r, s, t], _)| endpoint(*last, *r, *s, *t)).collect();
            let reversed: Vec<_> = all.iter().rev().cloned().collect();
            let side = |wanted: bool| {
                let part = all.iter().zip(&conditions).filter(|(_, (_, _, side))| *side == wanted);
                slice(part.map(|(endpoint, _)| endpoint.clone()).collect())
            };
            let select = |slices: &[EndpointSlice]| Choice::of(&http(), IpFamily::V4, slices, &here());
            let whole = select(&[slice(all.clone())]);
            prop_assert_eq!(&whole, &select(&[slice(reversed)]));
            prop_assert_eq!(&whole, &select(&[side(true), side(false)]));
        }
    }
}
