//! Which endpoints a frontend sends connections to.
//!
//! Kubernetes' rule (pkg/proxy/topology.go, CategorizeEndpoints; KEP-1669): the ready endpoints; when there is none at
//! all, those that are terminating and still serving. An endpoint that is terminating takes no new connection while a ready
//! one exists. Zone and node hints will narrow the first set; they have their place in [`select`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::service::ServicePort;
use crate::object::slice::{Endpoint, EndpointSlice};

/// Address and port of a Pod.
pub(crate) type Backend = (IpAddr, u16);

/// An endpoint, put together from every slice that lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    ready: bool,
    fallback: bool,
    maybe_local: bool,
}

/// What [`select`] chose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Where connections go.
    pub(crate) backends: BTreeSet<Backend>,
    /// Those of them that run on this node, or of which no slice says where they run.
    pub(crate) maybe_local: BTreeSet<IpAddr>,
}

/// The backends of a Service port, from all slices of the Service, for a proxy on `node`.
#[must_use]
pub(crate) fn select<'a>(
    port: &ServicePort,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> Selection {
    let candidates = candidates(port, slices, node);
    let mut chosen: BTreeMap<_, _> = candidates.iter().filter(|(_, c)| c.ready).collect();
    if chosen.is_empty() {
        chosen = candidates.iter().filter(|(_, c)| c.fallback).collect();
    }
    Selection {
        maybe_local: chosen.iter().filter(|(_, c)| c.maybe_local).map(|((addr, _), _)| *addr).collect(),
        backends: chosen.into_keys().copied().collect(),
    }
}

/// An endpoint may stand in two slices while the controller moves it: it is what any of them says it is.
fn candidates<'a>(
    port: &ServicePort,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &str,
) -> BTreeMap<Backend, Candidate> {
    let mut found: BTreeMap<Backend, Candidate> = BTreeMap::new();
    for slice in slices {
        let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in matching.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let new = candidate(endpoint, node);
                let old = found.entry((endpoint.addr, number)).or_insert(new);
                old.ready |= new.ready;
                old.fallback |= new.fallback;
                old.maybe_local |= new.maybe_local;
            }
        }
    }
    found
}

fn candidate(endpoint: &Endpoint, node: &str) -> Candidate {
    Candidate {
        ready: endpoint.ready,
        fallback: endpoint.serving && endpoint.terminating,
        maybe_local: endpoint.node.as_deref().is_none_or(|name| name == node),
    }
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::object::ObjectName;
    use crate::object::slice::EndpointPort;

    const HERE: &str = "hdss7-21.host.com";

    fn http() -> ServicePort {
        ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }
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
        }
    }

    fn chosen(slices: &[EndpointSlice]) -> Vec<u8> {
        let last = |addr: &IpAddr| match addr {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        };
        select(&http(), slices, HERE).backends.iter().map(|(addr, _)| last(addr)).collect()
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
            select(&ServicePort { name: name.into(), protocol, port: 80 }, &slices, HERE).backends
        };
        assert_eq!(select_port("metrics", Protocol::Tcp), BTreeSet::from([([172, 7, 21, 2].into(), 9090)]));
        assert!(select_port("", Protocol::Tcp).is_empty());
        assert!(select_port("http", Protocol::Udp).is_empty());
    }

    #[test]
    fn an_endpoint_in_two_slices_is_one_backend_and_ready_when_one_of_them_says_so() {
        let slices = [slice(vec![endpoint(2, false, false, false)]), slice(vec![endpoint(2, true, true, false)])];
        assert_eq!(chosen(&slices), [2]);
    }

    #[test]
    fn endpoints_of_other_nodes_are_not_local_and_unknown_ones_may_be() {
        let mut endpoints =
            vec![endpoint(2, true, true, false), endpoint(3, true, true, false), endpoint(4, true, true, false)];
        endpoints[1].node = Some("hdss7-22.host.com".into());
        endpoints[2].node = None;
        let selection = select(&http(), &[slice(endpoints)], HERE);
        assert_eq!(selection.maybe_local, BTreeSet::from([[172, 7, 21, 2].into(), [172, 7, 21, 4].into()]));
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
            let whole = select(&http(), &[slice(all.clone())], HERE);
            prop_assert_eq!(&whole, &select(&http(), &[slice(reversed)], HERE));
            prop_assert_eq!(&whole, &select(&http(), &[side(true), side(false)], HERE));
        }
    }
}
