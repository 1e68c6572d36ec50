//! Every combination of policies, endpoints, source ranges and settings against kube-proxy's rules, on both data paths and in both
//! families.
//!
//! The rules are written down here once more, from what kube-proxy does and not from how plans or rows are made: which endpoints may
//! be used (TestCategorizeEndpoints), who is led to which and masqueraded (TestInternalExternalMasquerade), who may connect
//! (loadBalancerSourceRanges).

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::family::PerFamily;
use netstate::ipvs::VirtualServerKey;
use netstate::{IpFamily, Protocol};
use serde_json::{Value, json};

use super::super::Mode;
use super::model::{Fate, Kernel};
use super::packets::{NODE, kernel, places_of};
use crate::plan::here::Here;
use crate::plan::pods::Pods;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Ready while it terminates (publishNotReadyAddresses).
    Published,
    NotReady,
    /// Terminating and serving.
    Leaving,
    /// Terminating, and serving no more.
    Gone,
}

impl State {
    fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Published)
    }
}

/// For which zone an endpoint is meant, and for which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    Unsaid,
    Here,
    Elsewhere,
    /// For this node, and for another zone.
    NodeHere,
    /// For another node, and for this zone.
    NodeElsewhere,
}

impl Hint {
    fn zone(self) -> Option<&'static str> {
        match self {
            Self::Unsaid => None,
            Self::Here | Self::NodeElsewhere => Some("z1"),
            Self::Elsewhere | Self::NodeHere => Some("z2"),
        }
    }

    fn node(self) -> Option<&'static str> {
        match self {
            Self::Unsaid | Self::Here | Self::Elsewhere => None,
            Self::NodeHere => Some("n1"),
            Self::NodeElsewhere => Some("n2"),
        }
    }

    fn json(self) -> Value {
        let names = |name: Option<&str>| name.map_or(json!([]), |name| json!([{"name": name}]));
        json!({"forZones": names(self.zone()), "forNodes": names(self.node())})
    }
}

#[derive(Debug, Clone, Copy)]
struct Endpoint {
    here: bool,
    state: State,
    hint: Hint,
}

/// Whom `loadBalancerSourceRanges` lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ranges {
    Unsaid,
    Outside,
    Node,
    /// The network of the node's Pods, in which its bridge is, too.
    PodsHere,
}

#[derive(Debug)]
struct Case {
    endpoints: Vec<Endpoint>,
    internal_local: bool,
    external_local: bool,
    ranges: Ranges,
    masquerade_all: bool,
    /// Pods are known by their network.
    knows_pods: bool,
    /// Clients stay with their endpoints.
    affinity: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    PodHere,
    PodElsewhere,
    Node,
    /// The node with the address of its Pods' bridge.
    Bridge,
    Outside,
}

const CLIENTS: [Client; 5] = [Client::PodHere, Client::PodElsewhere, Client::Node, Client::Bridge, Client::Outside];

const BRIDGE: [&str; 2] = ["172.7.21.1", "fd07:21::1"];

impl Client {
    fn address(self, family: IpFamily) -> IpAddr {
        let both = match self {
            Self::PodHere => ["172.7.21.50", "fd07:21::50"],
            Self::PodElsewhere => ["172.7.22.50", "fd07:22::50"],
            Self::Node => NODE,
            Self::Bridge => BRIDGE,
            Self::Outside => ["10.4.7.200", "fd04:7::200"],
        };
        both[usize::from(!family.is_v4())].parse().unwrap()
    }
}

impl Ranges {
    fn networks(self) -> Value {
        match self {
            Self::Unsaid => json!([]),
            Self::Outside => json!(["10.4.7.200/32", "fd04:7::200/128"]),
            Self::Node => json!(["10.4.7.21/32", "fd04:7::21/128"]),
            Self::PodsHere => json!(["172.7.21.0/24", "fd07:21::/64"]),
        }
    }

    fn admit(self, client: Client) -> bool {
        match self {
            Self::Unsaid => true,
            Self::Outside => client == Client::Outside,
            Self::Node => client == Client::Node,
            Self::PodsHere => matches!(client, Client::PodHere | Client::Bridge),
        }
    }
}

/// The address of the endpoint with this number.
fn address(number: usize, endpoint: Endpoint, family: IpFamily) -> IpAddr {
    let node = if endpoint.here { 21 } else { 22 };
    let text = match family {
        IpFamily::V4 => format!("172.7.{node}.{}", number + 2),
        IpFamily::V6 => format!("fd07:{node}::{}", number + 2),
    };
    text.parse().unwrap()
}

impl Case {
    fn new(endpoints: &[Endpoint], policies: (bool, bool)) -> Self {
        Self {
            endpoints: endpoints.to_vec(),
            internal_local: policies.0,
            external_local: policies.1,
            ranges: Ranges::Unsaid,
            masquerade_all: false,
            knows_pods: true,
            affinity: false,
        }
    }

    fn numbers(&self, wanted: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
        (0..self.endpoints.len()).filter(|number| wanted(&self.endpoints[*number])).collect()
    }

    /// What clients that may use the whole cluster are led to.
    fn cluster(&self) -> Vec<usize> {
        let ready = self.numbers(|endpoint| endpoint.state.is_ready());
        if ready.is_empty() {
            return self.numbers(|endpoint| endpoint.state == State::Leaving);
        }
        // Those for this node before those for this zone, and of each only where every ready endpoint is meant for one.
        for (is_node, here) in [(true, "n1"), (false, "z1")] {
            let hint = |number: &usize| self.endpoints[*number].hint;
            let meant = |number: &usize| if is_node { hint(number).node() } else { hint(number).zone() };
            let near: Vec<_> = ready.iter().copied().filter(|number| meant(number) == Some(here)).collect();
            if !near.is_empty() && ready.iter().all(|number| meant(number).is_some()) {
                return near;
            }
        }
        ready
    }

    /// What those are led to that may use this node's only.
    fn local(&self) -> Vec<usize> {
        let ready = self.numbers(|endpoint| endpoint.here && endpoint.state.is_ready());
        let leaving = || self.numbers(|endpoint| endpoint.here && endpoint.state == State::Leaving);
        if ready.is_empty() { leaving() } else { ready }
    }

    fn expected(&self, client: Client, place: &str, mode: Mode, family: IpFamily) -> Fate {
        if place == "LB" && !self.ranges.admit(client) {
            return Fate::Dropped;
        }
        let is_node = matches!(client, Client::Node | Client::Bridge);
        let is_pod = self.knows_pods && matches!(client, Client::PodHere | Client::PodElsewhere | Client::Bridge);
        let is_internal = place == "ClusterIP";
        let is_local = if is_internal { self.internal_local } else { self.external_local && !is_pod && !is_node };
        let (chosen, all) = (if is_local { self.local() } else { self.cluster() }, self.cluster());
        if chosen.is_empty() {
            return if all.is_empty() { Fate::Refused } else { Fate::Dropped };
        }
        let masquerade = match () {
            () if is_pod => is_internal && self.masquerade_all || !is_internal && !self.external_local,
            () if is_internal => {
                // With IPVS a node connects from the virtual address, which leads nowhere back.
                self.masquerade_all || self.knows_pods || is_node && mode == Mode::Ipvs
            }
            () => is_node || !self.external_local,
        };
        let endpoints = chosen.into_iter().map(|number| address(number, self.endpoints[number], family));
        Fate::Led(endpoints.collect(), masquerade)
    }

    fn kernel(&self, mode: Mode) -> Kernel {
        let policy = |local| if local { "Local" } else { "Cluster" };
        let service = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {
            "type": "LoadBalancer", "clusterIP": "192.168.0.10", "clusterIPs": ["192.168.0.10", "fd09::10"],
            "ports": [{"port": 80, "nodePort": 30_080}], "loadBalancerSourceRanges": self.ranges.networks(),
            "externalIPs": ["10.4.7.98", "fd04:7::98"], "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
            "internalTrafficPolicy": policy(self.internal_local), "externalTrafficPolicy": policy(self.external_local),
        }, "status": {"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}, {"ip": "fd04:7::99"}]}}});
        let slices = IpFamily::ALL.map(|family| {
            let endpoint = |(number, endpoint): (usize, &Endpoint)| {
                let (ready, leaving) = (endpoint.state.is_ready(), endpoint.state == State::Leaving);
                let terminating = !matches!(endpoint.state, State::Ready | State::NotReady);
                json!({
                    "addresses": [address(number, *endpoint, family)], "nodeName": if endpoint.here { "n1" } else { "n2" },
                    "conditions": {"ready": ready, "serving": ready || leaving, "terminating": terminating}, "hints": endpoint.hint.json(),
                })
            };
            let endpoints: Vec<_> = self.endpoints.iter().enumerate().map(endpoint).collect();
            json!({
                "kind": "EndpointSlice", "addressType": family.to_string(), "ports": [{"port": 8080}], "endpoints": endpoints,
                "metadata": {"name": format!("web-{family}").to_lowercase(), "labels": {"kubernetes.io/service-name": "web"}},
            })
        });
        kernel(mode, &service, &slices, |here| {
            let mut here = Here { zone: Some("z1".to_owned()), masquerade_all: self.masquerade_all, ..here };
            here.addresses.extend(BRIDGE.map(|addr| addr.parse::<IpAddr>().unwrap()));
            if !self.knows_pods {
                here.pods = PerFamily::from_fn(|_| Some(Pods::Unknown));
            }
            here
        })
    }

    /// Every client at every place, and Pods that are led to themselves.
    fn ensure(&self) {
        for mode in [Mode::Ipvs, Mode::Nftables] {
            let kernel = self.kernel(mode);
            for (family, client) in IpFamily::ALL.into_iter().flat_map(|family| CLIENTS.map(|client| (family, client)))
            {
                for (place, to) in places(family) {
                    // Where the node has the address it connects from that.
                    let is_bound = client == Client::Node && mode == Mode::Ipvs && place != "NodePort";
                    let from = if is_bound { to.addr } else { client.address(family) };
                    let expected = self.expected(client, place, mode, family);
                    let found = kernel.fate(from, &to);
                    assert_eq!(found, expected, "{client:?} at the {place} of {family} on {mode:?}: {self:?}");
                    if let (Fate::Led(endpoints, false), Client::PodHere) = (found, client) {
                        self.ensure_hairpins(&kernel, place, &endpoints);
                    }
                }
            }
        }
    }

    /// A Pod that keeps its address is masqueraded towards itself: of another node, at the virtual address, by what its packet notes.
    fn ensure_hairpins(&self, kernel: &Kernel, place: &str, endpoints: &BTreeSet<IpAddr>) {
        for (number, endpoint) in self.endpoints.iter().enumerate() {
            for addr in IpFamily::ALL.map(|family| address(number, *endpoint, family)) {
                let needs = endpoints.contains(&addr) && (place != "ClusterIP" || endpoint.here);
                let has = kernel.has(IpFamily::of(addr), "hairpin", vec![addr.into(), addr.into()]);
                assert!(has || !needs, "{addr} at the {place}: {self:?}");
            }
        }
    }
}

/// Every kind of place that the Service has, node ports at both addresses of the node.
fn places(family: IpFamily) -> Vec<(&'static str, VirtualServerKey)> {
    let at = |both: [&str; 2], port| VirtualServerKey {
        protocol: Protocol::Tcp,
        addr: both[usize::from(!family.is_v4())].parse().unwrap(),
        port,
    };
    let others = [("External", at(["10.4.7.98", "fd04:7::98"], 80)), ("NodePort", at(BRIDGE, 30_080))];
    places_of(family).into_iter().chain(others).collect()
}

/// All lists of at most `most` of these, without regard to order.
fn lists(kinds: &[Endpoint], most: usize) -> Vec<Vec<Endpoint>> {
    let Some(less) = most.checked_sub(1) else { return vec![Vec::new()] };
    let mut found = vec![Vec::new()];
    for (number, first) in kinds.iter().enumerate() {
        found.extend(lists(&kinds[number..], less).into_iter().map(|rest| [&[*first], rest.as_slice()].concat()));
    }
    found
}

fn kinds(states: &[State], hints: &[Hint]) -> Vec<Endpoint> {
    let of = |here| {
        let with = move |state: &State| hints.iter().map(move |hint| (*state, *hint)).collect::<Vec<_>>();
        states.iter().flat_map(with).map(move |(state, hint)| Endpoint { here, state, hint })
    };
    [true, false].into_iter().flat_map(of).collect()
}

const POLICIES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn every_combination_of_policies_and_endpoints_is_answered_by_kube_proxys_rules() {
    let states =
        kinds(&[State::Ready, State::Published, State::NotReady, State::Leaving, State::Gone], &[Hint::Unsaid]);
    let zones = kinds(&[State::Ready], &[Hint::Unsaid, Hint::Here, Hint::Elsewhere]);
    let nodes = kinds(&[State::Ready], &[Hint::Unsaid, Hint::Here, Hint::NodeHere, Hint::NodeElsewhere]);
    // Hints of endpoints that are not ready, or are leaving, beside those that are.
    let mixed = kinds(&[State::Published, State::NotReady, State::Leaving], &[Hint::Here, Hint::NodeElsewhere]);
    let (states, hints) = (lists(&states, 2), [lists(&zones, 3), lists(&nodes, 2), lists(&mixed, 2)].concat());
    assert!(states.len() > 50 && hints.len() > 100);
    for (endpoints, policies) in states.iter().chain(&hints).flat_map(|list| POLICIES.map(|policies| (list, policies)))
    {
        Case::new(endpoints, policies).ensure();
    }
    // Who stays is chosen for in chains of another shape; which endpoints there are for whom is the same.
    for (endpoints, policies) in states.iter().flat_map(|list| POLICIES.map(|policies| (list, policies))) {
        Case { affinity: true, ..Case::new(endpoints, policies) }.ensure();
    }
}

#[test]
fn every_combination_with_source_ranges_and_settings_is_answered_by_kube_proxys_rules() {
    let all = lists(&kinds(&[State::Ready, State::Leaving], &[Hint::Unsaid]), 2);
    for (endpoints, policies) in all.iter().flat_map(|list| POLICIES.map(|policies| (list, policies))) {
        for ranges in [Ranges::Outside, Ranges::Node, Ranges::PodsHere] {
            for affinity in [false, true] {
                Case { ranges, affinity, ..Case::new(endpoints, policies) }.ensure();
            }
        }
        for (masquerade_all, knows_pods) in [(true, true), (false, false), (true, false)] {
            Case { masquerade_all, knows_pods, ..Case::new(endpoints, policies) }.ensure();
        }
    }
}
