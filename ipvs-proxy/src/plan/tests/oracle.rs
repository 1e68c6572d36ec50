//! The plan against what a real kube-proxy did: every probe of every case, in IPv4 and IPv6, in every run.
//!
//! What becomes of a packet to an address and port that no Service has is the data path's, and so are pings; the rest the plan
//! decides: who answers, refusal or silence, masqueraded or not. Where ours differs on purpose [`ON_PURPOSE`] says why.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ::oracle::{Case, Outcome, Probe, Refusal, Run, Seen, Source, twin};
use netstate::family::PerFamily;
use netstate::{IpFamily, Protocol};
use serde_json::Value;

use crate::object::ObjectName;
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;
use crate::plan::frontend::Place;
use crate::plan::here::{Facts, Here, Mode, NodePorts, OwnAddresses};
use crate::plan::route::{Answer, Route};
use crate::plan::select::Backend;
use crate::plan::{Claims, Frontend, FrontendKey, plan};

/// Where ours differs: case, part of the destination or `client ->`, and why ours is right.
const ON_PURPOSE: [(&str, &str, &str); 3] = [
    (
        "46-host-network",
        "[n2] pod-n2 -> clusterIP",
        "no difference: n2 answered its own Pod past n1 (note of the case)",
    ),
    ("46-host-network NoDetector", "[n2] outside -> clusterIP", "no difference: n2 answered its neighbour past n1"),
    (
        "11-nodeport-local-with NodePortAll",
        "node-n1 -> nodePort at bridge address",
        "no difference: n1 with the address of its bridge counts as masqueraded where the port differs",
    ),
];

/// A cluster as the steps of a case have left it, and what is planned for it on n1.
struct Cluster {
    here: Here,
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    claims: Claims,
    served: BTreeMap<FrontendKey, Frontend>,
}

impl Cluster {
    fn new(run: Run) -> Self {
        let pods = if run == Run::NoDetector { Vec::new() } else { pods().to_vec() };
        let facts = Facts {
            node_ports: NodePorts::parse(node_ports(run)).unwrap(),
            masquerade_all: if run == Run::MasqueradeAll { vec![Mode::Nftables] } else { Vec::new() },
            own: own_addresses(),
            ..Facts::of(&Here::on("n1").with_pods(pods))
        };
        let here = facts.here(Mode::Nftables);
        let (services, slices) = (BTreeMap::new(), BTreeMap::new());
        Self { here, services, slices, claims: Claims::default(), served: BTreeMap::new() }
    }

    fn take(&mut self, step: &::oracle::Step) {
        for key in step.deleted.iter().flat_map(|key| [key.clone(), twin::key(key)]) {
            self.slices.remove(&key);
            if let Some(service) = self.services.remove(&key) {
                self.settle(&service.name, None);
            }
        }
        self.here.zone = step.zone.clone();
        if step.accepted {
            for object in &step.put {
                self.put(object.key.clone(), &object.json);
                self.put(twin::key(&object.key), &twin::object(&object.json));
            }
        }
        for service in self.services.values().cloned().collect::<Vec<_>>() {
            let slices: Vec<_> = self.slices.values().filter(|slice| slice.service == service.name).collect();
            let plan = plan(&service, &service.cluster_ips, slices, &self.here);
            self.settle(&service.name, Some(plan));
        }
    }

    fn put(&mut self, key: String, json: &Value) {
        if key.starts_with("Service/") {
            self.services.insert(key, Service::from_json(json).unwrap());
        } else {
            self.slices.insert(key, EndpointSlice::from_json(json).unwrap());
        }
    }

    fn settle(&mut self, service: &ObjectName, plan: Option<super::ServicePlan>) {
        for delta in self.claims.settle(service, plan) {
            match delta.new {
                Some(new) => drop(self.served.insert(delta.key, new)),
                None => drop(self.served.remove(&delta.key)),
            }
        }
    }

    /// The frontend that a packet to `to` comes to.
    fn frontend(&self, (protocol, to): (Protocol, SocketAddr)) -> Option<&Frontend> {
        let at = |place| self.served.get(&FrontendKey { protocol, place, port: to.port() });
        let has_node_ports = self.here.node_port_addresses.contains(&to.ip());
        let node_port = || at(Place::AnyNode(IpFamily::of(to.ip()))).filter(|_| has_node_ports);
        at(Place::Address(to.ip())).or_else(node_port)
    }
}

/// `nodePortAddresses` of a run.
const fn node_ports(run: Run) -> &'static str {
    match run {
        Run::Plain | Run::MasqueradeAll | Run::NoDetector => "",
        Run::NodePortCidr => "10.4.7.0/24,fd00:4:7::/64",
        Run::NodePortAll => "0.0.0.0/0,::/0",
    }
}

/// The addresses of n1 and of its twin.
fn own_addresses() -> OwnAddresses {
    let own = [[10, 4, 7, 21], [10, 4, 7, 121], [172, 7, 21, 1]].map(IpAddr::from);
    let first = own[0];
    let all = own.into_iter().flat_map(|addr| [addr, twin::address(addr)]).collect();
    OwnAddresses { all, primary: PerFamily::new(Some(first), Some(twin::address(first))), ..OwnAddresses::default() }
}

/// The Pod networks.
fn pods() -> [netstate::Prefix; 2] {
    ["172.7.0.0/16", "fd00:7::/32"].map(|text| text.parse().unwrap())
}

/// The address that a client comes from. The node has that which it connects to, when it is its own.
fn source(client: &str, to: IpAddr) -> IpAddr {
    let addr = match client {
        "pod-n1" => [172, 7, 21, 50],
        "pod-n2" => [172, 7, 22, 50],
        "p11" => [172, 7, 21, 11],
        "outside" => [10, 4, 7, 200],
        "node-n1" if own_addresses().all.contains(&to) => return to,
        _ => [10, 4, 7, 21],
    };
    let addr = IpAddr::from(addr);
    if to.is_ipv4() { addr } else { twin::address(addr) }
}

/// The route of a client: a source in the Pod network is a Pod, also when it is an address of this node.
fn route<'a>(frontend: &'a Frontend, client: &str, source: IpAddr, run: Run) -> &'a Route {
    let in_pods = pods().iter().any(|pods| pods.contains(source)) && run != Run::NoDetector;
    match client {
        _ if in_pods => &frontend.routes.pod,
        "node-n1" => &frontend.routes.node,
        _ => &frontend.routes.outside,
    }
}

/// What a client sees of a route.
fn seen(frontend: &Frontend, client: &str, source: IpAddr, run: Run) -> Seen {
    if !frontend.sources.allow(source) {
        return Seen { outcome: Some(Outcome::Timeout), ..Seen::default() };
    }
    let route = route(frontend, client, source, run);
    match &route.answer {
        Answer::Reject => Seen { outcome: Some(Outcome::Refused), by: Some(Refusal::Rule), ..Seen::default() },
        Answer::Drop => Seen { outcome: Some(Outcome::Timeout), ..Seen::default() },
        Answer::Backends(backends) => Seen {
            outcome: Some(Outcome::Answered),
            endpoints: backends.iter().map(name).collect(),
            source: backends.iter().flat_map(|backend| sources(backend, client, source, route.masquerade)).collect(),
            ..Seen::default()
        },
    }
}

/// Whose address a backend sees. What stays on the node is not masqueraded, for it leaves by no link.
fn sources(backend: &Backend, client: &str, source: IpAddr, masquerade: bool) -> Vec<Source> {
    let on_the_node = name(backend) == "n1-host";
    let hairpin = backend.addr == source;
    match (masquerade || hairpin) && !on_the_node {
        // What n1 itself sends is seen with the address of the link that it leaves by, masqueraded or not.
        false if client == "node-n1" && on_the_node => vec![Source::N1Eth0],
        false => vec![Source::Client],
        true if name(backend).starts_with("p1") => vec![Source::N1Bridge],
        true => vec![Source::N1Eth0],
    }
}

/// The name of an endpoint.
fn name(backend: &Backend) -> String {
    let text = backend.addr.to_string();
    let last = text.rsplit(['.', ':']).next().unwrap();
    match text.split_at(text.len() - last.len()).0 {
        "172.7.21." | "fd00:7:21::" => format!("p1{}", &last[1..]),
        "172.7.22." | "fd00:7:22::" => format!("p2{}", &last[1..]),
        _ if last == "21" => "n1-host".to_owned(),
        _ => "n2-host".to_owned(),
    }
}

/// Why two sights are not the same, if they are not. Of several endpoints one may have been missed by all connections when the
/// Service keeps clients with theirs.
fn difference(ours: &Seen, theirs: &Seen, sticky: bool) -> Option<String> {
    let endpoints =
        if sticky { theirs.endpoints.is_subset(&ours.endpoints) } else { theirs.endpoints == ours.endpoints };
    let source = if sticky { theirs.source.is_subset(&ours.source) } else { theirs.source == ours.source };
    let same = ours.outcome == theirs.outcome && ours.by == theirs.by && endpoints && source;
    (!same).then(|| format!("kube-proxy: {theirs}; ours: {ours}"))
}

/// Every difference of a case in a run.
fn differences(case: &Case, run: Run) -> Vec<String> {
    let mut cluster = Cluster::new(run);
    let mut found = Vec::new();
    for step in &case.steps {
        cluster.take(step);
        for (probe, family) in step.probes.iter().flat_map(|probe| IpFamily::ALL.map(|family| (probe, family))) {
            if let Some(text) = compare(&cluster, probe, family, run).filter(|_| step.determined) {
                found.push(format!(
                    "{} {run:?} {family} [{}] {} -> {}: {text}",
                    case.name, step.name, probe.client, probe.dest
                ));
            }
        }
    }
    found
}

fn compare(cluster: &Cluster, probe: &Probe, family: IpFamily, run: Run) -> Option<String> {
    let to = probe.to(family)?;
    let theirs = probe.seen(run, family);
    let Some(frontend) = cluster.frontend(to) else {
        let by_a_service = theirs.outcome == Some(Outcome::Answered) && !probe.dest.contains("host process");
        return by_a_service.then(|| format!("kube-proxy: {theirs}; ours: nobody's"));
    };
    let ours = seen(frontend, &probe.client, source(&probe.client, to.1.ip()), run);
    difference(&ours, theirs, frontend.affinity.is_some())
}

#[test]
fn every_recorded_probe_is_planned_as_kube_proxy_answered_it() {
    let mut found = Vec::new();
    for case in ::oracle::cases() {
        for run in &case.runs {
            found.extend(differences(&case, *run));
        }
    }
    let explains = |(case, part, _): &(&str, &str, &str), text: &str| text.starts_with(case) && text.contains(part);
    for reason in &ON_PURPOSE {
        assert!(found.iter().any(|text| explains(reason, text)), "nothing differs any more: {reason:?}");
    }
    let left: Vec<_> =
        found.iter().filter(|text| !ON_PURPOSE.iter().any(|reason| explains(reason, text))).cloned().collect();
    assert!(left.is_empty(), "{} differences:\n{}", left.len(), left.join("\n"));
}
