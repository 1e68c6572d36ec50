//! `Service`: what a Kubernetes Service asks for, as values.
//!
//! Invariant: two Services that compare equal need the same kernel state; that equality is what stops annotation churn at
//! the door. A Service says what it asks for whoever can serve it; what is not served is named by the data path.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use cluster::Problem;
use netstate::family::PerFamily;
use netstate::scheduler::Scheduler;
use netstate::{IpFamily, Prefix};
use serde_json::Value;

use super::affinity_prefix::AffinityPrefix;
use super::field::{Field, is_unusable, keep, or_open, parse_network, skip};
use super::key::Kind;
use super::service_port::{node_port, ports};
use super::weights::Weights;
use super::{LONGEST_LABEL, ObjectName, object_name};

pub(crate) use super::service_port::ServicePort;

/// Label that leaves a Service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Label of headless Services and of their slices, which no proxy serves.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// The annotation that gives a Service's virtual servers a scheduler of their own.
pub(crate) const SCHEDULER: &str = "ipvs-proxy/scheduler";

/// Seconds of session affinity when the Service leaves them open (v1.ClientIPConfig).
const AFFINITY: u32 = 10_800;

/// A Service; one that nobody serves (headless, ExternalName, another proxy's) has neither addresses nor ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: ObjectName,
    /// `metadata.creationTimestamp` (RFC 3339 in UTC, so texts sort by time); empty when absent. Of two Services that
    /// claim one address and port the older one is served.
    pub(crate) created: Arc<str>,
    /// Its virtual addresses, at most one per family.
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub(crate) ports: Vec<ServicePort>,
    /// Further addresses that lead to it.
    pub(crate) external_ips: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub(crate) load_balancer: Vec<Ingress>,
    /// Seconds a client stays with its endpoint; `None` without session affinity.
    pub(crate) affinity: Option<u32>,
    /// Which addresses are one client then, by an annotation of our own.
    pub(crate) affinity_prefix: Option<AffinityPrefix>,
    /// Which endpoints the virtual addresses may lead to.
    pub(crate) internal_policy: Policy,
    /// Which endpoints everything else may lead to.
    pub(crate) external_policy: Policy,
    /// Clients that the load balancer's addresses serve.
    pub(crate) sources: PerFamily<Sources>,
    /// Port where the load balancer asks whether this node has endpoints.
    pub(crate) health_check_node_port: Option<u16>,
    /// Labelled as headless although it has an address: its clients are refused. A controller that manages its slices puts no such label
    /// on them.
    pub(crate) refuses: bool,
    /// Which endpoints clients should rather use.
    pub(crate) distribution: Option<Distribution>,
    /// The scheduler of its virtual servers, by an annotation of our own ([`SCHEDULER`]).
    pub(crate) scheduler: Option<Arc<Scheduler>>,
    /// How many connections its endpoints take, by another one.
    pub(crate) weights: Option<Weights>,
    /// Elements that cannot be read and are left out, as `field: value; accepted: form`.
    pub(crate) skipped: Vec<String>,
}

/// An address of a load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ingress {
    /// The address.
    pub(crate) addr: IpAddr,
    /// Who serves it.
    pub(crate) mode: IngressMode,
}

/// Who serves an address of a load balancer (`ipMode`, KEP-1860).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IngressMode {
    /// The nodes: packets come with this address as destination.
    Vip,
    /// The load balancer itself.
    Proxy,
}

/// Which endpoints clients should rather use (`trafficDistribution`); whoever writes the slices turns this into hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distribution {
    /// Those of the client's zone (`PreferSameZone`, also called `PreferClose`).
    SameZone,
    /// Those of the client's node, or of its zone.
    SameNode,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameZone => "PreferSameZone",
            Self::SameNode => "PreferSameNode",
        })
    }
}

/// Clients that may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Sources {
    /// Everybody.
    #[default]
    Any,
    /// Those in one of these networks; nobody when there is none.
    Only(Arc<[Prefix]>),
}

#[cfg(test)]
impl Sources {
    /// True when a client with this address may connect.
    #[must_use]
    pub(crate) fn allow(&self, client: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ranges) => ranges.iter().any(|range| range.contains(client)),
        }
    }
}

/// Which endpoints may be chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// All of the cluster.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
}

impl Service {
    /// Reads a Service.
    ///
    /// # Errors
    /// The first field that is not as the API demands.
    pub(crate) fn from_json(object: &Value) -> Result<Self, Problem> {
        let root = Field::root(object);
        root.expect_kind(Kind::Service)?;
        let name = object_name(&root)?;
        if name.namespace().len().max(name.name().len()) > LONGEST_LABEL {
            return Err(root.get("metadata").problem("a namespace and a name of at most 63 letters"));
        }
        let mut service = Self::nobodys(name);
        let is_elsewhere = is_elsewhere(&root)?;
        let cluster_ips = if is_elsewhere { Vec::new() } else { cluster_ips(&root, &mut service.skipped)? };
        let ports = ports(&root, &mut service.skipped)?;
        if cluster_ips.is_empty() {
            service.skipped = lacking_address(&root).filter(|_| !is_elsewhere).into_iter().collect();
            return Ok(service);
        }
        (service.cluster_ips, service.ports) = (cluster_ips, ports);
        // Most have one of each, and a list that grows takes room for four.
        service.cluster_ips.shrink_to_fit();
        service.ports.shrink_to_fit();
        service.created = or_open(&mut service.skipped, created(&root));
        let label = root.get("metadata").get("labels").get(HEADLESS);
        service.refuses = !label.is_absent();
        if service.refuses {
            skip(
                &mut service.skipped,
                &label.problem("no such label where there is an address: clients are refused there"),
            );
        }
        service.read_options(&root);
        Ok(service)
    }

    /// A Service that asks for nothing.
    fn nobodys(name: ObjectName) -> Self {
        Self {
            name,
            created: Arc::default(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            external_ips: Vec::new(),
            load_balancer: Vec::new(),
            affinity: None,
            affinity_prefix: None,
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            sources: PerFamily::default(),
            health_check_node_port: None,
            refuses: false,
            distribution: None,
            scheduler: None,
            weights: None,
            skipped: Vec::new(),
        }
    }

    /// Everything that a Service can ask for beside its virtual addresses and ports. An option that cannot be read counts as
    /// left open.
    fn read_options(&mut self, root: &Field<'_>) {
        let (spec, skipped) = (root.get("spec"), &mut self.skipped);
        for item in or_open(skipped, spec.get("externalIPs").items()) {
            keep(&mut self.external_ips, skipped, usable_address(&item));
        }
        for item in or_open(skipped, root.get("status").get("loadBalancer").get("ingress").items()) {
            if !item.get("ip").is_absent() {
                keep(&mut self.load_balancer, skipped, ingress(&item));
            }
        }
        self.sources = sources(&spec.get("loadBalancerSourceRanges"), skipped);
        self.internal_policy = or_open(skipped, policy(&spec.get("internalTrafficPolicy")));
        self.external_policy = or_open(skipped, policy(&spec.get("externalTrafficPolicy")));
        let affinity = affinity(&spec, skipped);
        self.affinity = or_open(skipped, affinity);
        self.affinity_prefix = or_open(skipped, AffinityPrefix::of(root));
        self.health_check_node_port = or_open(skipped, health_check(&spec, self.external_policy));
        self.distribution = or_open(skipped, distribution(&spec.get("trafficDistribution")));
        self.scheduler = or_open(skipped, scheduler(&root.get("metadata").get("annotations").get(SCHEDULER)));
        self.weights = or_open(skipped, Weights::of(root));
        self.drop_other_families();
    }

    /// Leaves out further addresses of a family in which the Service has no virtual address: it has no endpoints there.
    fn drop_other_families(&mut self) {
        let families = self.families();
        let mut keep = |field: &str, addr: IpAddr| {
            let known = families.contains(&IpFamily::of(addr));
            if !known {
                let accepted = "an address of a family that spec.clusterIPs has an address of";
                skip(&mut self.skipped, &Problem::new(field, addr.to_string(), accepted));
            }
            known
        };
        self.external_ips.retain(|addr| keep("spec.externalIPs", *addr));
        self.load_balancer.retain(|ingress| keep("status.loadBalancer.ingress.ip", ingress.addr));
    }

    /// The families it is served in.
    #[must_use]
    pub(crate) fn families(&self) -> BTreeSet<IpFamily> {
        self.cluster_ips.iter().map(|addr| IpFamily::of(*addr)).collect()
    }
}

fn created(root: &Field<'_>) -> Result<Arc<str>, Problem> {
    Ok(root.get("metadata").get("creationTimestamp").text()?.map_or_else(Arc::default, Into::into))
}

/// True for a Service that no proxy, or another one, serves.
fn is_elsewhere(root: &Field<'_>) -> Result<bool, Problem> {
    let labels = root.get("metadata").get("labels");
    let external = root.get("spec").get("type").text()? == Some("ExternalName");
    Ok(external || !labels.get(PROXY_NAME).is_absent())
}

/// What to say of a Service that is not headless and has no address: the API server gives it one, and nobody does here.
fn lacking_address(root: &Field<'_>) -> Option<String> {
    let (field, listed) = (root.get("spec").get("clusterIP"), root.get("spec").get("clusterIPs"));
    let is_open = matches!(field.text(), Ok(None | Some(""))) && listed.items().is_ok_and(|items| items.is_empty());
    is_open.then(|| field.problem("an address of the Service network, or None").to_string())
}

fn cluster_ips(root: &Field<'_>, skipped: &mut Vec<String>) -> Result<Vec<IpAddr>, Problem> {
    let spec = root.get("spec");
    if spec.is_absent() {
        return Err(spec.problem("an object with clusterIP and ports"));
    }
    let field = spec.get("clusterIP");
    let older = field.text()?.filter(|text| !text.is_empty());
    if older == Some("None") {
        return Ok(Vec::new());
    }
    let mut listed = or_open(skipped, spec.get("clusterIPs").items());
    listed.retain(|item| !matches!(item.text(), Ok(Some("None"))));
    let (mut addresses, mut refused) = (Vec::new(), None);
    for address in older.map(|_| field).into_iter().chain(listed).map(|field| usable_address(&field)) {
        refused = refused.or_else(|| address.as_ref().err().cloned());
        keep(&mut addresses, skipped, address);
    }
    refused.filter(|_| addresses.is_empty()).map_or(Ok(()), Err)?;
    let mut found = Vec::new();
    for addr in addresses {
        match found.iter().find(|other| IpFamily::of(**other) == IpFamily::of(addr)) {
            None => found.push(addr),
            Some(other) if *other == addr => {}
            Some(_) => {
                let another = Problem::new("spec.clusterIPs", addr.to_string(), "one address per family");
                skip(skipped, &another);
            }
        }
    }
    Ok(found)
}

fn ingress(item: &Field<'_>) -> Result<Ingress, Problem> {
    let mode = if item.get("ipMode").text()? == Some("Proxy") { IngressMode::Proxy } else { IngressMode::Vip };
    Ok(Ingress { addr: usable_address(&item.get("ip"))?, mode })
}

/// Ranges of one family say nothing of the other's clients. When none of a list can be read nobody is let in: a mistake in a
/// list that keeps clients out must not let everybody in.
fn sources(field: &Field<'_>, skipped: &mut Vec<String>) -> PerFamily<Sources> {
    let (mut ranges, items) = (Vec::new(), field.items());
    // Of what is left out not everything is named, so that its number says nothing.
    let mut whole = items.is_ok();
    for range in or_open(skipped, items).iter().map(source_range) {
        whole &= range.is_ok();
        keep(&mut ranges, skipped, range);
    }
    let ranges: PerFamily<Vec<Prefix>> =
        PerFamily::from_fn(|family| ranges.iter().copied().filter(|range: &Prefix| range.family() == family).collect());
    ranges.map(|_, ranges| if ranges.is_empty() && whole { Sources::Any } else { Sources::Only(ranges.into()) })
}

/// As Kubernetes reads it: white space around it and leading zeros mean nothing.
fn source_range(item: &Field<'_>) -> Result<Prefix, Problem> {
    let network = item.text()?.and_then(|text| parse_network(text.trim()));
    network.ok_or_else(|| item.problem("a network such as 10.4.7.0/24"))
}

fn distribution(field: &Field<'_>) -> Result<Option<Distribution>, Problem> {
    match field.text()? {
        None | Some("") => Ok(None),
        Some("PreferClose" | "PreferSameZone") => Ok(Some(Distribution::SameZone)),
        Some("PreferSameNode") => Ok(Some(Distribution::SameNode)),
        Some(_) => Err(field.problem("PreferClose, PreferSameZone or PreferSameNode")),
    }
}

fn usable_address(field: &Field<'_>) -> Result<IpAddr, Problem> {
    let accepted = "a unicast address that is no loopback, link-local or IPv4-mapped one";
    field.address()?.filter(|addr| !is_unusable(*addr)).ok_or_else(|| field.problem(accepted))
}

/// A load balancer asks for a node's endpoints only where it sends nobody to another node's.
fn health_check(spec: &Field<'_>, external: Policy) -> Result<Option<u16>, Problem> {
    let field = spec.get("healthCheckNodePort");
    let asks = spec.get("type").text()? == Some("LoadBalancer") && external == Policy::Local;
    match node_port(&field)? {
        Some(_) if !asks => Err(field.problem("a port with type LoadBalancer and externalTrafficPolicy Local")),
        port => Ok(port),
    }
}

fn policy(field: &Field<'_>) -> Result<Policy, Problem> {
    match field.text()? {
        None | Some("" | "Cluster") => Ok(Policy::Cluster),
        Some("Local") => Ok(Policy::Local),
        Some(_) => Err(field.problem("Cluster or Local")),
    }
}

fn scheduler(field: &Field<'_>) -> Result<Option<Arc<Scheduler>>, Problem> {
    let read = |text: &str| text.parse().map(Arc::new).map_err(|_| field.problem(Scheduler::FORM));
    field.text()?.map(read).transpose()
}

fn affinity(spec: &Field<'_>, skipped: &mut Vec<String>) -> Result<Option<u32>, Problem> {
    let field = spec.get("sessionAffinity");
    match field.text()? {
        None | Some("" | "None") => Ok(None),
        Some("ClientIP") => {
            let seconds = spec.get("sessionAffinityConfig").get("clientIP").get("timeoutSeconds");
            Ok(Some(or_open(skipped, seconds.seconds()).unwrap_or(AFFINITY)))
        }
        Some(_) => Err(field.problem("None or ClientIP")),
    }
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use serde_json::json;

    use super::*;
    use crate::object::{affinity_prefix, weights};

    fn web() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "192.168.0.10", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        })
    }

    fn with(path: &[&str], value: Value) -> Value {
        let mut object = web();
        let mut place = &mut object;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        object
    }

    #[test]
    fn a_service_is_its_address_and_ports() {
        let service = Service::from_json(&web()).unwrap();
        assert_eq!(service.cluster_ips.first().copied(), Some([192, 168, 0, 10].into()));
        assert_eq!(
            service.ports,
            [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]
        );
        assert!(service.skipped.is_empty());
    }

    #[test]
    fn an_annotation_gives_a_scheduler_and_one_that_cannot_be_read_is_named() {
        let of =
            |text: &str| Service::from_json(&with(&["metadata", "annotations"], json!({SCHEDULER: text}))).unwrap();
        let service = of("mh,mh-fallback");
        assert_eq!(service.scheduler.unwrap().to_string(), "mh,mh-fallback");
        let service = of("Round Robin");
        assert_eq!(service.scheduler, None);
        assert!(
            service.skipped[0].starts_with("metadata.annotations.ipvs-proxy/scheduler: \"Round Robin\""),
            "{:?}",
            service.skipped
        );
    }

    #[test]
    fn an_annotation_gives_weights_and_one_that_cannot_be_read_is_named() {
        let of = |text: &str| {
            Service::from_json(&with(&["metadata", "annotations"], json!({weights::ANNOTATION: text}))).unwrap()
        };
        assert_eq!(of("here=4").weights, Some(Weights { here: 4, elsewhere: 1 }));
        let service = of("here=0");
        assert_eq!(service.weights, None);
        assert!(service.skipped[0].starts_with("metadata.annotations.ipvs-proxy/weights: \"here=0\""));
    }

    #[test]
    fn an_annotation_makes_networks_one_client_and_one_that_cannot_be_read_is_named() {
        let of = |text: &str| {
            Service::from_json(&with(&["metadata", "annotations"], json!({affinity_prefix::ANNOTATION: text}))).unwrap()
        };
        assert_eq!(of("ipv4=24").affinity_prefix, "ipv4=24".parse().ok());
        let service = of("ipv4=33");
        assert_eq!(service.affinity_prefix, None);
        assert!(service.skipped[0].starts_with("metadata.annotations.ipvs-proxy/affinity-prefix: \"ipv4=33\""));
    }

    #[test]
    fn annotation_churn_makes_an_equal_value() {
        let churned = with(&["metadata", "annotations"], json!({"a": "b"}));
        assert_eq!(Service::from_json(&churned), Service::from_json(&web()));
    }

    #[test]
    fn services_without_a_virtual_address_are_valid_and_serve_nothing() {
        for object in [
            with(&["spec", "clusterIP"], json!("None")),
            with(&["spec", "clusterIP"], json!("")),
            with(&["spec", "clusterIP"], json!(null)),
            with(&["spec", "type"], json!("ExternalName")),
            with(&["metadata", "labels"], json!({"service.kubernetes.io/service-proxy-name": "other"})),
        ] {
            let service = Service::from_json(&object).unwrap();
            assert_eq!((service.cluster_ips.first().copied(), service.ports.len()), (None, 0), "{object}");
        }
    }

    #[test]
    fn a_health_check_has_a_port_with_a_load_balancer_that_keeps_to_the_node_only() {
        for (kind, external, accepted) in [
            ("LoadBalancer", "Local", true),
            ("LoadBalancer", "Cluster", false),
            ("NodePort", "Local", false),
            ("ClusterIP", "Cluster", false),
        ] {
            let mut object = web();
            object["spec"]["type"] = json!(kind);
            object["spec"]["externalTrafficPolicy"] = json!(external);
            object["spec"]["healthCheckNodePort"] = json!(31_000);
            let service = Service::from_json(&object).unwrap();
            assert_eq!(service.health_check_node_port, accepted.then_some(31_000), "{kind} {external}");
            let named = service.skipped.iter().any(|said| said.starts_with("spec.healthCheckNodePort: "));
            assert_eq!(named, !accepted, "{kind} {external}");
        }
    }

    #[test]
    fn everything_that_a_service_asks_for_is_a_value() {
        let mut object = web();
        object["spec"]["sessionAffinity"] = json!("ClientIP");
        object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
        object["spec"]["externalIPs"] = json!(["10.4.7.10"]);
        object["spec"]["externalTrafficPolicy"] = json!("Local");
        object["spec"]["type"] = json!("LoadBalancer");
        object["spec"]["loadBalancerSourceRanges"] = json!([" 10.004.7.9/24 "]);
        object["spec"]["healthCheckNodePort"] = json!(31_000);
        object["spec"]["trafficDistribution"] = json!("PreferSameZone");
        object["spec"]["clusterIPs"] = json!(["192.168.0.10", "fd00::10"]);
        object["spec"]["ports"] =
            json!([{"name": "http", "port": 80, "nodePort": 30_080}, {"name": "s", "port": 90, "nodePort": 0}]);
        object["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99", "ipMode": "Proxy"}, {"hostname": "x"}]}});
        let service = Service::from_json(&object).unwrap();
        assert_eq!(service.skipped, [""; 0]);
        assert_eq!(service.families(), BTreeSet::from(IpFamily::ALL));
        assert_eq!(service.ports.iter().map(|port| port.node_port).collect::<Vec<_>>(), [Some(30_080), None]);
        assert_eq!(service.external_ips, [IpAddr::from([10, 4, 7, 10])]);
        assert_eq!(service.load_balancer, [Ingress { addr: [10, 4, 7, 99].into(), mode: IngressMode::Proxy }]);
        assert_eq!(service.affinity, Some(60));
        assert_eq!((service.internal_policy, service.external_policy), (Policy::Cluster, Policy::Local));
        assert_eq!(*service.sources.get(IpFamily::V4), Sources::Only(Arc::new(["10.4.7.0/24".parse().unwrap()])));
        assert_eq!(*service.sources.get(IpFamily::V6), Sources::Any);
        assert_eq!(service.health_check_node_port, Some(31_000));
        assert_eq!(service.distribution, Some(Distribution::SameZone));
    }

    #[test]
    fn an_element_that_cannot_be_read_is_left_out_and_named_and_the_others_are_served() {
        let two = |bad: Value| json!([{"name": "good", "port": 80}, bad]);
        for (path, value, field) in [
            (&["spec", "ports"][..], two(json!({"name": "a", "port": 0})), "spec.ports[1].port"),
            (&["spec", "ports"], two(json!({"name": "a", "port": "81"})), "spec.ports[1].port"),
            (&["spec", "ports"], two(json!({"name": "a"})), "spec.ports[1].port"),
            (&["spec", "ports"], two(json!({"name": "a", "port": 81, "protocol": "tcp"})), "spec.ports[1].protocol"),
            (&["spec", "ports"], two(json!({"port": 81})), "spec.ports[1].name"),
            (&["spec", "ports"], two(json!({"name": "good", "port": 81})), "spec.ports[1]"),
            (&["spec", "ports"], two(json!({"name": "a", "port": 80})), "spec.ports[1]"),
            (&["spec", "ports"], two(json!("80")), "spec.ports[1].name"),
            (&["spec", "clusterIPs"], json!(["192.168.0.10", "fd00:::1"]), "spec.clusterIPs[1]"),
            (&["spec", "clusterIPs"], json!(["192.168.0.10", "::ffff:192.168.0.11"]), "spec.clusterIPs[1]"),
            (&["spec", "externalIPs"], json!(["::ffff:10.4.7.10"]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!(["255.255.255.255"]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!(["169.254.169.254"]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!(["10.4.7.300"]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!([7]), "spec.externalIPs[0]"),
            (&["spec", "loadBalancerSourceRanges"], json!(["all"]), "spec.loadBalancerSourceRanges[0]"),
            (
                &["status"],
                json!({"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}),
                "status.loadBalancer.ingress[0].ip",
            ),
            (&["spec", "externalIPs"], json!([null]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!(["10.4.7.10/24"]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!(["fe80::1%eth0"]), "spec.externalIPs[0]"),
            (&["spec", "externalIPs"], json!("10.4.7.10"), "spec.externalIPs"),
            (&["spec", "loadBalancerSourceRanges"], json!({}), "spec.loadBalancerSourceRanges"),
            (&["spec", "clusterIPs"], json!("192.168.0.10"), "spec.clusterIPs"),
            (&["status"], json!({"loadBalancer": {"ingress": {"ip": "10.4.7.9"}}}), "status.loadBalancer.ingress"),
            (&["spec", "internalTrafficPolicy"], json!("local"), "spec.internalTrafficPolicy"),
            (&["spec", "externalTrafficPolicy"], json!(7), "spec.externalTrafficPolicy"),
            (&["spec", "healthCheckNodePort"], json!("31000"), "spec.healthCheckNodePort"),
            (&["spec", "trafficDistribution"], json!([]), "spec.trafficDistribution"),
            (&["spec", "trafficDistribution"], json!("Near"), "spec.trafficDistribution"),
            (&["spec", "clusterIPs"], json!(["192.168.0.10", "192.168.0.11"]), "spec.clusterIPs"),
            (&["spec", "externalIPs"], json!(["fd00::7"]), "spec.externalIPs"),
            (&["status"], json!({"loadBalancer": {"ingress": [{"ip": "fd00::7"}]}}), "status.loadBalancer.ingress.ip"),
            (&["spec", "healthCheckNodePort"], json!(31_000), "spec.healthCheckNodePort"),
            (&["metadata", "creationTimestamp"], json!(1_700_000_000), "metadata.creationTimestamp"),
        ] {
            let service = Service::from_json(&with(path, value.clone())).unwrap();
            assert_eq!((service.cluster_ips.first().copied().is_some(), service.ports.len()), (true, 1), "{value}");
            assert_eq!(service.skipped.len(), 1, "{value}");
            assert!(service.skipped[0].starts_with(&format!("{field}: ")), "{:?}", service.skipped);
        }
    }

    #[test]
    fn an_option_that_cannot_be_read_takes_along_neither_its_port_nor_the_affinity_nor_the_other_address() {
        for port in [json!({"port": 80, "nodePort": 70_000}), json!({"port": 80, "nodePort": "30080"})] {
            let service = Service::from_json(&with(&["spec", "ports"], json!([port]))).unwrap();
            assert_eq!(service.ports.iter().map(|port| (port.port, port.node_port)).collect::<Vec<_>>(), [(80, None)]);
            assert!(service.skipped[0].starts_with("spec.ports[0].nodePort: "), "{:?}", service.skipped);
        }
        for seconds in [1, 86_400] {
            let mut object = with(&["spec", "sessionAffinity"], json!("ClientIP"));
            object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
            assert_eq!(Service::from_json(&object).unwrap().affinity, Some(seconds));
        }
        for seconds in [json!(0), json!(86_401), json!("60")] {
            let mut object = with(&["spec", "sessionAffinity"], json!("ClientIP"));
            object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
            let service = Service::from_json(&object).unwrap();
            assert_eq!(service.affinity, Some(AFFINITY), "{seconds}");
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds: ";
            assert!(service.skipped[0].starts_with(field), "{:?}", service.skipped);
        }
        let mut object = with(&["spec", "clusterIP"], json!("192.168.0.300"));
        object["spec"]["clusterIPs"] = json!(["192.168.0.300", "fd00::10"]);
        let service = Service::from_json(&object).unwrap();
        assert_eq!(service.cluster_ips, ["fd00::10".parse::<IpAddr>().unwrap()]);
        assert!(service.skipped[0].starts_with("spec.clusterIP: \"192.168.0.300\""), "{:?}", service.skipped);
    }

    #[test]
    fn a_node_port_that_two_ports_ask_for_is_the_first_ones_and_named() {
        let ports = json!([
            {"name": "http", "port": 80, "nodePort": 30_080}, {"name": "https", "port": 443, "nodePort": 30_080},
            {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30_080}
        ]);
        let service = Service::from_json(&with(&["spec", "ports"], ports)).unwrap();
        let node_ports: Vec<_> = service.ports.iter().map(|port| port.node_port).collect();
        assert_eq!(node_ports, [Some(30_080), None, Some(30_080)]);
        assert!(service.skipped[0].starts_with("spec.ports[1].nodePort: 30080"), "{:?}", service.skipped);
    }

    #[test]
    fn a_service_that_nobody_has_given_an_address_is_named() {
        for (path, value, named) in [
            (&["spec", "clusterIP"][..], json!(null), true),
            (&["spec", "clusterIP"], json!(""), true),
            (&["spec", "clusterIP"], json!("None"), false),
            (&["spec"], json!({"clusterIPs": ["None"], "ports": [{"port": 80}]}), false),
            (&["spec"], json!({"type": "ExternalName", "ports": [{"port": 80}]}), false),
        ] {
            let skipped = Service::from_json(&with(path, value.clone())).unwrap().skipped;
            assert_eq!(
                skipped.iter().any(|reason| reason.starts_with("spec.clusterIP: ")),
                named,
                "{value} {skipped:?}"
            );
        }
    }

    #[test]
    fn addresses_count_where_the_older_field_is_open() {
        for older in [json!(null), json!("")] {
            let mut object = with(&["spec", "clusterIP"], older);
            object["spec"]["clusterIPs"] = json!(["192.168.0.10", "fd00::10"]);
            assert_eq!(Service::from_json(&object).unwrap().cluster_ips.len(), 2);
            object["spec"]["clusterIPs"] = json!(["None"]);
            let service = Service::from_json(&object).unwrap();
            assert_eq!((service.cluster_ips.len(), service.skipped.len()), (0, 0));
        }
    }

    #[test]
    fn however_many_elements_cannot_be_read_a_few_are_named() {
        let many = || vec![json!(1); 10_000];
        let ports: Vec<Value> = (0..10_000).map(|_| json!({"port": 80, "name": "http"})).collect();
        let mut object = web();
        object["spec"]["ports"] = ports.into();
        object["spec"]["externalIPs"] = many().into();
        object["spec"]["loadBalancerSourceRanges"] = many().into();
        object["status"]["loadBalancer"]["ingress"] = vec![json!({"ip": "10.4.7.300"}); 10_000].into();
        let service = Service::from_json(&object).unwrap();
        let length: usize = service.skipped.iter().map(String::len).sum();
        assert!(service.skipped.len() < 100 && length < 50_000, "{} of {length} bytes", service.skipped.len());
        assert!(service.skipped.last().unwrap().contains("not named"), "{:?}", service.skipped.last());
        let mut object = web();
        object["spec"]["ports"][0]["name"] = "x".repeat(1 << 20).into();
        let problem = Service::from_json(&object).unwrap_err().to_string();
        assert!(problem.starts_with("spec.ports[0].name: ") && problem.len() < 1000, "{problem}");
    }

    #[test]
    fn a_service_with_an_address_that_is_labelled_as_headless_refuses_its_clients() {
        let plain = Service::from_json(&with(&["metadata", "labels"], json!({}))).unwrap();
        assert!(!plain.refuses);
        let labelled = with(&["metadata", "labels"], json!({"service.kubernetes.io/headless": ""}));
        let labelled = Service::from_json(&labelled).unwrap();
        assert!(labelled.refuses && labelled.cluster_ips == plain.cluster_ips);
        assert!(labelled.skipped[0].contains("service.kubernetes.io/headless"), "{:?}", labelled.skipped);
    }

    #[test]
    fn health_is_asked_for_at_a_load_balancer_whose_policy_is_local() {
        for (kind, policy, port) in [
            ("LoadBalancer", "Local", Some(31_000)),
            ("LoadBalancer", "Cluster", None),
            ("NodePort", "Local", None),
            ("ClusterIP", "Cluster", None),
        ] {
            let mut object = with(&["spec", "healthCheckNodePort"], json!(31_000));
            (object["spec"]["type"], object["spec"]["externalTrafficPolicy"]) = (json!(kind), json!(policy));
            let service = Service::from_json(&object).unwrap();
            assert_eq!(service.health_check_node_port, port, "{kind} {policy}");
        }
    }

    #[test]
    fn names_have_at_most_63_letters_each() {
        let long = "n".repeat(63);
        let mut object = web();
        (object["metadata"]["namespace"], object["metadata"]["name"]) = (json!(long), json!(long));
        object["spec"]["ports"][0]["name"] = json!(long);
        let service = Service::from_json(&object).unwrap();
        assert_eq!((service.name.to_string(), &service.ports[0].name), (format!("{long}/{long}"), &long));
        for place in ["/metadata/namespace", "/metadata/name", "/spec/ports/0/name"] {
            let mut longer = object.clone();
            *longer.pointer_mut(place).unwrap() = json!("n".repeat(64));
            assert!(Service::from_json(&longer).is_err(), "{place}");
        }
    }

    #[test]
    fn a_list_of_sources_that_cannot_be_read_lets_nobody_in() {
        let sources = |ranges: Value| {
            let service = Service::from_json(&with(&["spec", "loadBalancerSourceRanges"], ranges)).unwrap();
            IpFamily::ALL.map(|family| service.sources.get(family).allow(family.unspecified()))
        };
        assert_eq!(sources(json!([])), [true, true]);
        assert_eq!(sources(json!(["10.4.7.0"])), [false, false]);
        assert_eq!(sources(json!(["0.0.0.0/0"])), [true, true], "of the other family it says nothing");
        assert_eq!(sources(json!(["0.0.0.0/0", "::/129"])), [true, false]);
        // However much of the Service is left out before, and no longer named.
        let mut object = with(&["spec", "loadBalancerSourceRanges"], json!(["10.4.7.0"]));
        object["spec"]["externalIPs"] = vec![json!("10.4.7.300"); 100].into();
        let service = Service::from_json(&object).unwrap();
        assert!(IpFamily::ALL.into_iter().all(|family| !service.sources.get(family).allow(family.unspecified())));
    }

    #[test]
    fn malformed_services_are_refused_with_the_field() {
        for (path, value, field) in [
            (&["kind"][..], json!("Pod"), "kind"),
            (&["apiVersion"], json!("serving.knative.dev/v1"), "apiVersion"),
            (&["apiVersion"], json!("v2"), "apiVersion"),
            (&["spec"], json!(null), "spec"),
            (&["spec", "clusterIP"], json!("192.168.0"), "spec.clusterIP"),
            (&["spec", "clusterIP"], json!("127.0.0.1"), "spec.clusterIP"),
            (&["spec", "clusterIP"], json!(7), "spec.clusterIP"),
            (&["spec", "ports"], json!({}), "spec.ports"),
            (&["spec", "ports"], json!([{"port": 0}]), "spec.ports[0].port"),
            (&["spec", "ports"], json!([{"name": "a", "port": 0}, null]), "spec.ports[0].port"),
            (&["metadata", "name"], json!("a/b"), "metadata.name"),
        ] {
            let problem = Service::from_json(&with(path, value.clone())).unwrap_err();
            assert_eq!(problem.field, field, "{value}");
        }
    }
}
