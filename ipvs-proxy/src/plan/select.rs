//! Which endpoints a frontend sends connections to.
//!
//! Kubernetes' rule (pkg/proxy/topology.go, CategorizeEndpoints; KEP-1669): the ready endpoints; when there is none at
//! all, those that are terminating and still serving. An endpoint that is terminating takes no new connection while a ready
//! one exists. Of the whole cluster those are
//! preferred that hints (KEP-2433, KEP-3015; what a controller makes of `trafficDistribution`) mean for clients of this node or zone; the endpoints of this node are chosen among
//! themselves, whatever the hints.

pub(crate) mod reasons;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netstate::IpFamily;

use super::here::Here;
use crate::object::service::ServicePort;
use crate::object::slice::{Endpoint, EndpointSlice};
use crate::object::weights::Weights;

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
    serving: bool,
    terminating: bool,
    locality: Locality,
    /// Whether it is meant for clients of this zone.
    zone: Hint,
    /// Whether it is meant for clients on this node.
    node: Hint,
}

/// For whom an endpoint is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// Nobody says.
    Unsaid,
    /// For others.
    Others,
    /// For clients here.
    Here,
}

impl Hint {
    fn of(meant: &[Box<str>], here: Option<&str>) -> Self {
        match here {
            _ if meant.is_empty() => Self::Unsaid,
            Some(here) if meant.iter().any(|name| **name == *here) => Self::Here,
            _ => Self::Others,
        }
    }
}

impl Candidate {
    /// One that stands in two slices while the controller moves it: a copy that is not terminating is the newer one; of equal ones it
    /// is what any of them says it is.
    fn merge(&mut self, other: Self) {
        if self.terminating == other.terminating {
            self.ready |= other.ready;
            self.serving |= other.serving;
        } else if self.terminating {
            (self.terminating, self.ready, self.serving) = (false, other.ready, other.serving);
        }
        self.locality = self.locality.min(other.locality);
        self.zone = self.zone.max(other.zone);
        self.node = self.node.max(other.node);
    }
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

/// Candidates by address and port.
type Candidates = BTreeMap<(IpAddr, u16), Candidate>;

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
        let is_local = |candidate: &Candidate| candidate.locality == Locality::Here;
        let nearest = Nearest::of(&candidates);
        let cluster = usable(&candidates, |_| true, |candidate| nearest.has(candidate));
        let local = usable(&candidates, is_local, |_| true);
        // Whoever can take connections is in the first list, or another that is better.
        let any = !cluster.is_empty();
        Self { local: if local == cluster { Arc::clone(&cluster) } else { local }, cluster, any }
    }
}

impl Choice {
    /// The same with what endpoints weigh by where they run.
    #[must_use]
    pub(crate) fn weighted(self, weights: Option<Weights>) -> Self {
        let Some(weights) = weights else { return self };
        let weigh = |backends: &Arc<[Backend]>| -> Arc<[Backend]> {
            let weight = |backend: &Backend| match backend.locality {
                Locality::Here => weights.here,
                Locality::Unknown | Locality::Elsewhere => weights.elsewhere,
            };
            backends.iter().map(|backend| Backend { weight: weight(backend).into(), ..*backend }).collect()
        };
        Self { cluster: weigh(&self.cluster), local: weigh(&self.local), any: self.any }
    }
}

/// Of those that may be used the ready ones that are near, or those that are leaving and still serving when none is ready.
fn usable(
    candidates: &Candidates,
    may_be_used: impl Fn(&Candidate) -> bool,
    is_near: impl Fn(&Candidate) -> bool,
) -> Arc<[Backend]> {
    let of = |chosen: &dyn Fn(&Candidate) -> bool| -> Arc<[Backend]> {
        let chosen = candidates.iter().filter(|(_, candidate)| may_be_used(candidate) && chosen(candidate));
        let backend = |(&(addr, port), c): (&(IpAddr, u16), &Candidate)| Backend {
            addr,
            port,
            weight: WEIGHT,
            locality: c.locality,
        };
        chosen.map(backend).collect()
    };
    let ready = of(&|c| c.ready && is_near(c));
    if ready.is_empty() { of(&|c| c.serving && c.terminating) } else { ready }
}

/// Which of the ready endpoints hints lead clients here to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearest {
    /// Those for this node.
    Node,
    /// Those for this zone.
    Zone,
    /// All.
    Any,
}

impl Nearest {
    /// Hints count only when every ready endpoint has one and one is meant for here (KEP-2433, KEP-3015).
    fn of(candidates: &Candidates) -> Self {
        let ready = || candidates.values().filter(|candidate| candidate.ready);
        let lead = |hint: fn(&Candidate) -> Hint| {
            ready().all(|c| hint(c) != Hint::Unsaid) && ready().any(|c| hint(c) == Hint::Here)
        };
        if lead(|c| c.node) {
            Self::Node
        } else if lead(|c| c.zone) {
            Self::Zone
        } else {
            Self::Any
        }
    }

    fn has(self, candidate: &Candidate) -> bool {
        match self {
            Self::Node => candidate.node == Hint::Here,
            Self::Zone => candidate.zone == Hint::Here,
            Self::Any => true,
        }
    }
}

fn candidates<'a>(
    port: &ServicePort,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    here: &Here,
) -> Candidates {
    let mut found = Candidates::new();
    for slice in slices {
        let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in matching.map(|p| p.port) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| IpFamily::of(endpoint.addr) == family) {
                let (key, new) = ((endpoint.addr, number), candidate(endpoint, here));
                found.entry(key).and_modify(|old| old.merge(new)).or_insert(new);
            }
        }
    }
    found
}

/// Where an endpoint runs.
pub(super) fn locality(endpoint: &Endpoint, here: &Here) -> Locality {
    match endpoint.topology.node.as_deref() {
        Some(node) if node == here.node => Locality::Here,
        _ if here.addresses.contains(&endpoint.addr) => Locality::Here,
        Some(_) => Locality::Elsewhere,
        None => Locality::Unknown,
    }
}

fn candidate(endpoint: &Endpoint, here: &Here) -> Candidate {
    let hints = endpoint.topology.hints.as_ref();
    Candidate {
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        locality: locality(endpoint, here),
        zone: hints.map_or(Hint::Unsaid, |hints| Hint::of(&hints.zones, here.zone.as_deref())),
        node: hints.map_or(Hint::Unsaid, |hints| Hint::of(&hints.nodes, Some(&here.node))),
    }
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use proptest::prelude::*;

    use std::collections::BTreeSet;

    use super::*;
    use crate::object::ObjectName;
    use crate::object::slice::EndpointPort;
    use crate::object::topology::{Hints, Topology};

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
        let addr = [172, 7, 21, last].into();
        let topology = Topology { node: Some(HERE.into()), ..Topology::default() };
        Endpoint { addr, ready, serving, terminating, topology: topology.into() }
    }

    fn slice(endpoints: Vec<Endpoint>) -> EndpointSlice {
        let port = |name: &str, port| EndpointPort { name: name.into(), protocol: Protocol::Tcp, port };
        EndpointSlice {
            name: ObjectName::new("default", "web-1"),
            service: ObjectName::new("default", "web"),
            ports: [port("http", 8080), port("metrics", 9090)].into(),
            endpoints: endpoints.into(),
            unserved: Vec::new(),
            skipped: Vec::new(),
            trigger: crate::object::trigger::Trigger::default(),
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
    fn an_endpoint_in_two_slices_is_one_backend_and_what_the_copy_that_is_not_terminating_says() {
        for (first, second, expected) in [
            (endpoint(2, false, false, false), endpoint(2, true, true, false), &[2][..]),
            (endpoint(2, false, false, true), endpoint(2, true, true, false), &[2]),
            (endpoint(2, false, true, true), endpoint(2, false, false, false), &[]),
            (endpoint(2, false, false, true), endpoint(2, false, true, true), &[2]),
        ] {
            for slices in [[first.clone(), second.clone()], [second, first]] {
                assert_eq!(chosen(&slices.map(|endpoint| slice(vec![endpoint]))), expected);
            }
        }
    }

    #[test]
    fn of_copies_that_say_different_nodes_the_nearest_counts_in_either_order() {
        let of = |node: Option<&str>| {
            let topology = Topology { node: node.map(Into::into), ..Topology::default() };
            slice(vec![Endpoint { topology: topology.into(), ..endpoint(2, true, true, false) }])
        };
        let (mine, unknown, other) = (of(Some(HERE)), of(None), of(Some("hdss7-22.host.com")));
        for (one, another, expected) in
            [(&mine, &other, Locality::Here), (&mine, &unknown, Locality::Here), (&unknown, &other, Locality::Unknown)]
        {
            for slices in [[one.clone(), another.clone()], [another.clone(), one.clone()]] {
                let choice = Choice::of(&http(), IpFamily::V4, &slices, &here());
                let found: Vec<_> = choice.cluster.iter().map(|backend| backend.locality).collect();
                assert_eq!(found, [expected]);
            }
        }
    }

    /// Endpoints 2, 3, ... by where they are, and for which zones and nodes they are meant.
    fn hinted(endpoints: &[(&str, &[&str], &[&str])]) -> EndpointSlice {
        let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
        let endpoint = |(last, (node, zones, nodes)): (u8, &(&str, &[&str], &[&str]))| {
            let hints = Hints { zones: names(zones), nodes: names(nodes) };
            let topology = Topology { node: Some((*node).into()), hints: (hints != Hints::default()).then_some(hints) };
            Endpoint { topology: topology.into(), ..endpoint(last, true, true, false) }
        };
        slice((2..).zip(endpoints).map(endpoint).collect())
    }

    fn near(slices: &[EndpointSlice], zone: Option<&str>) -> Vec<u8> {
        let here = Here { zone: zone.map(str::to_owned), ..here() };
        let choice = Choice::of(&http(), IpFamily::V4, slices, &here);
        let first = slices[0].endpoints.iter().map(|endpoint| endpoint.addr);
        (2..).zip(first).filter(|(_, addr)| choice.cluster.iter().any(|b| b.addr == *addr)).map(|(n, _)| n).collect()
    }

    #[test]
    fn hints_lead_to_the_nearest_endpoints_when_all_have_one_and_one_is_for_here() {
        type Case = (&'static str, Vec<(&'static str, &'static [&'static str], &'static [&'static str])>, Vec<u8>);
        let cases: [Case; 7] = [
            ("zone", vec![("a", &["z1"], &[]), ("b", &["z2"], &[])], vec![2]),
            ("several zones", vec![("a", &["z2", "z1"], &[]), ("b", &["z2"], &[])], vec![2]),
            ("one without", vec![("a", &["z1"], &[]), ("b", &[], &[])], vec![2, 3]),
            ("none for here", vec![("a", &["z3"], &[]), ("b", &["z2"], &[])], vec![2, 3]),
            ("node before zone", vec![("a", &["z1"], &["x"]), (HERE, &["z1"], &[HERE])], vec![3]),
            ("zone when no node is this", vec![("a", &["z1"], &["x"]), ("b", &["z2"], &["y"])], vec![2]),
            ("zone when one has no node", vec![(HERE, &["z1"], &[HERE]), ("b", &["z1"], &[])], vec![2, 3]),
        ];
        for (name, endpoints, expected) in cases {
            assert_eq!(near(&[hinted(&endpoints)], Some("z1")), expected, "{name}");
        }
        let zones = [hinted(&[("a", &["z1"], &[]), ("b", &["z2"], &[])])];
        assert_eq!(near(&zones, None), [2, 3], "this node's zone is unknown");
    }

    #[test]
    fn of_copies_that_say_different_hints_the_nearest_counts_in_either_order() {
        // The other endpoint is meant for others, and so out of reach as soon as the hints count.
        let of =
            |zones: &'static [&str], nodes: &'static [&str]| hinted(&[("a", zones, nodes), ("b", &["z2"], &["y"])]);
        for (one, another) in [
            (of(&["z1"], &[]), of(&[], &[])),
            (of(&["z1"], &[]), of(&["z2"], &[])),
            (of(&[], &[HERE]), of(&[], &[])),
            (of(&[], &[HERE]), of(&[], &["x"])),
        ] {
            for slices in [[one.clone(), another.clone()], [another, one]] {
                assert_eq!(near(&slices, Some("z1")), [2]);
            }
        }
    }

    #[test]
    fn hints_of_endpoints_that_are_not_ready_do_not_count() {
        let mut slice = hinted(&[("a", &["z1"], &[]), ("b", &["z2"], &[]), ("c", &[], &[])]);
        slice.endpoints[2].ready = false;
        assert_eq!(near(&[slice.clone()], Some("z1")), [2]);
        slice.endpoints[0].ready = false;
        assert_eq!(near(&[slice], Some("z1")), [3]);
    }

    #[test]
    fn an_endpoint_is_here_elsewhere_or_nobody_knows() {
        let mut endpoints: Vec<_> = [2, 3, 4, 5].map(|last| endpoint(last, true, true, false)).into();
        let elsewhere = Topology { node: Some("hdss7-22.host.com".into()), ..Topology::default() };
        endpoints[1].topology = elsewhere.into();
        endpoints[2].topology = Arc::default();
        (endpoints[3].topology, endpoints[3].addr) = (Arc::default(), [10, 4, 7, 21].into());
        let choice = Choice::of(&http(), IpFamily::V4, &[slice(endpoints)], &here());
        let found = |backends: &[Backend]| backends.iter().map(|backend| backend.locality).collect::<Vec<_>>();
        assert_eq!(found(&choice.cluster), [Locality::Here, Locality::Here, Locality::Elsewhere, Locality::Unknown]);
        assert_eq!(found(&choice.local), [Locality::Here; 2]);
    }

    #[test]
    fn endpoints_weigh_by_where_they_run() {
        let mut endpoints: Vec<_> = [2, 3, 4].map(|last| endpoint(last, true, true, false)).into();
        endpoints[1].topology = Topology { node: Some("hdss7-22.host.com".into()), ..Topology::default() }.into();
        endpoints[2].topology = Arc::default();
        let choice = Choice::of(&http(), IpFamily::V4, &[slice(endpoints)], &here());
        let weights = |choice: &Choice| choice.cluster.iter().map(|backend| backend.weight).collect::<Vec<_>>();
        assert_eq!(weights(&choice.clone().weighted(None)), [1, 1, 1]);
        let weighted = choice.weighted(Some(Weights { here: 7, elsewhere: 2 }));
        assert_eq!(weights(&weighted), [7, 2, 2]);
        assert_eq!(weighted.local[0].weight, 7);
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
