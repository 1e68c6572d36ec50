//! The objects of a case with their twins, as one manifest.
//!
//! Invariant: every manifest has more Services than the one before: headless ones without endpoints, which nobody serves, stand
//! behind the others. So the number of Services that the proxy knows says which manifest it has read. There are so many of them
//! from the start that the end of a case is no loss of most objects, which the proxy would doubt for a minute.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use netstate::IpFamily;
use oracle::{Step, twin};
use serde_json::{Value, json};

use super::client::Transport;

/// Services beside those of the cases at the beginning.
const OTHERS: usize = 200;

/// What an address is to its Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Virtual,
    /// One of `spec.externalIPs` or of a load balancer that leaves it to the nodes.
    External,
}

/// The external addresses of a Service that are not the node's.
fn external(service: &Value) -> impl Iterator<Item = &Value> {
    let listed = service["spec"]["externalIPs"].as_array().into_iter().flatten();
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let vips = ingress.filter(|entry| entry["ipMode"] != "Proxy").map(|entry| &entry["ip"]);
    let is_own =
        |addr: &&Value| addr.as_str().is_some_and(|addr| addr.starts_with("10.4.7.") || addr.starts_with("fd00:4:7:"));
    listed.chain(vips).filter(move |addr| !is_own(addr))
}

fn is_proxied(service: &Value) -> bool {
    let labels = &service["metadata"]["labels"];
    let is_virtual = service["spec"]["clusterIP"].as_str().is_some_and(|addr| addr != "None");
    is_virtual
        && service["spec"]["type"] != "ExternalName"
        && labels["service.kubernetes.io/service-proxy-name"].is_null()
}

/// How an endpoint is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition {
    Ready,
    /// Terminating and serving.
    Leaving,
    /// Terminating, and serving no more.
    Gone,
}

#[derive(Debug, Default)]
pub(crate) struct Objects {
    objects: BTreeMap<String, Value>,
    /// Services of the last manifest.
    last: usize,
}

impl Objects {
    /// Takes in what a step deletes and what it puts, unless the API server refused it.
    pub(crate) fn take(&mut self, step: &Step) {
        for key in &step.deleted {
            self.objects.remove(key);
            self.objects.remove(&twin::key(key));
        }
        for object in step.put.iter().filter(|_| step.accepted) {
            self.objects.insert(object.key.clone(), object.json.clone());
            self.objects.insert(twin::key(&object.key), twin::object(&object.json));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.objects.clear();
    }

    /// The only slice of a family has these endpoints from now on.
    pub(crate) fn set_endpoints(&mut self, family: IpFamily, endpoints: &[(&str, Condition)]) -> Result<()> {
        let is_twin = |key: &str| key.ends_with(twin::SUFFIX);
        let key = self.objects.keys().find(|key| key.starts_with("EndpointSlice/") && !is_twin(key));
        let key = key.context("no slice")?.clone();
        let mut slice = self.objects.get(&key).context("no slice")?.clone();
        let endpoint = |(name, condition): &(&str, Condition)| {
            let (node, number) = name.trim_start_matches('p').split_at(1);
            let (ready, serving, terminating) = match condition {
                Condition::Ready => (true, true, false),
                Condition::Leaving => (false, true, true),
                Condition::Gone => (false, false, true),
            };
            json!({
                "addresses": [format!("172.7.2{node}.1{number}")], "nodeName": format!("n{node}"), "zone": format!("z{node}"),
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            })
        };
        let list: Vec<Value> = endpoints.iter().map(endpoint).collect();
        slice["endpoints"] = json!(list);
        match family {
            IpFamily::V4 => self.objects.insert(key, slice),
            IpFamily::V6 => self.objects.insert(twin::key(&key), twin::object(&slice)),
        };
        Ok(())
    }

    /// Takes all Services away and returns them.
    pub(crate) fn take_services(&mut self) -> BTreeMap<String, Value> {
        let (services, others) =
            std::mem::take(&mut self.objects).into_iter().partition(|(key, _)| key.starts_with("Service/"));
        self.objects = others;
        services
    }

    /// No Service keeps clients with their endpoint any more.
    pub(crate) fn forget_clients(&mut self) {
        for (_, service) in self.objects.iter_mut().filter(|(key, _)| key.starts_with("Service/")) {
            service["spec"]["sessionAffinity"] = json!("None");
        }
    }

    /// Brings objects back.
    pub(crate) fn put(&mut self, objects: BTreeMap<String, Value>) {
        self.objects.extend(objects);
    }

    /// Whether an address is a Service's, and which kind of it.
    pub(crate) fn kind(&self, addr: IpAddr) -> Option<Kind> {
        let addr = json!(addr.to_string());
        let external = |service: &Value| self::external(service).any(|other| *other == addr);
        let virtual_at = |service: &&Value| service["spec"]["clusterIP"] == addr;
        let proxied = || self.services().filter(|service| is_proxied(service));
        let kind = proxied().find(virtual_at).map(|_| Kind::Virtual);
        kind.or_else(|| proxied().any(external).then_some(Kind::External))
    }

    /// Whether a Service has this port at this external address.
    pub(crate) fn serves(&self, transport: Transport, to: SocketAddr) -> bool {
        let (addr, protocol) = (json!(to.ip().to_string()), if transport == Transport::Udp { "UDP" } else { "TCP" });
        let is_of = |port: &Value| port["port"] == to.port() && port["protocol"].as_str().unwrap_or("TCP") == protocol;
        let has = |service: &Value| service["spec"]["ports"].as_array().is_some_and(|ports| ports.iter().any(is_of));
        let here = |service: &&Value| external(service).any(|other| *other == addr);
        self.services().filter(|service| is_proxied(service)).filter(here).any(has)
    }

    /// Where a kind of address of the only Service of a family is: `clusterIP`, `externalIP`, `nodePort`.
    pub(crate) fn address(&self, dest: &str, family: IpFamily) -> Option<(Transport, SocketAddr)> {
        let of_family = |service: &&Value| {
            service["spec"]["clusterIP"].as_str().is_some_and(|addr| addr.contains(':') != family.is_v4())
        };
        let spec = &self.services().find(of_family)?["spec"];
        let port = &spec["ports"][0];
        let number = |name: &str| port[name].as_u64().and_then(|number| u16::try_from(number).ok());
        let to = |addr: &Value, name: &str| Some(SocketAddr::new(addr.as_str()?.parse().ok()?, number(name)?));
        let node: IpAddr = if family.is_v4() { "10.4.7.21" } else { "fd00:4:7::21" }.parse().ok()?;
        let to = match dest.split(' ').next()? {
            "clusterIP" => to(&spec["clusterIP"], "port")?,
            "externalIP" => to(&spec["externalIPs"][0], "port")?,
            "nodePort" => SocketAddr::new(node, number("nodePort")?),
            _ => return None,
        };
        Some((if port["protocol"] == "UDP" { Transport::Udp } else { Transport::Tcp }, to))
    }

    /// The manifest, and how many Services and slices it has.
    pub(crate) fn manifest(&mut self) -> (String, usize, usize) {
        let services = self.objects.keys().filter(|key| key.starts_with("Service/")).count();
        let slices = self.objects.len() - services;
        self.last = (services + OTHERS).max(self.last + 1);
        let mut items: Vec<Value> = self.objects.values().cloned().collect();
        items.extend((0..self.last - services).map(|number| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("zz-{number:04}"), "namespace": "zz"},
                "spec": {"clusterIP": "None", "ports": [{"port": 80}]},
            })
        }));
        items.extend((0..OTHERS).map(|number| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
                "metadata": {
                    "name": format!("zz-{number:04}"), "namespace": "zz",
                    "labels": {"kubernetes.io/service-name": format!("zz-{number:04}")},
                },
            })
        }));
        (json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string(), self.last, slices + OTHERS)
    }

    /// The Services of the case.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(|(key, _)| key.starts_with("Service/")).map(|(_, service)| service)
    }

    /// Whether the Service that has this address keeps clients with their endpoint.
    pub(crate) fn keeps_clients(&self, to: SocketAddr) -> bool {
        let (addr, port) = (json!(to.ip().to_string()), json!(to.port()));
        let has = |service: &Value| {
            let spec = &service["spec"];
            let listed = |list: &Value| list.as_array().is_some_and(|list| list.contains(&addr));
            let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
            spec["clusterIP"] == addr
                || listed(&spec["externalIPs"])
                || ingress.is_some_and(|list| list.iter().any(|entry| entry["ip"] == addr))
                || spec["ports"].as_array().is_some_and(|ports| ports.iter().any(|one| one["nodePort"] == port))
        };
        let sticky = |service: &Value| service["spec"]["sessionAffinity"] == "ClientIP";
        self.objects.values().any(|object| sticky(object) && has(object))
    }
}
