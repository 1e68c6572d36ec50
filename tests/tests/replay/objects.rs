//! The objects of a case with their twins, as one manifest.
//!
//! Invariant: every manifest has more Services than the one before: headless ones without endpoints, which nobody serves, stand
//! behind the others. So the number of Services that the proxy knows says which manifest it has read. There are so many of them
//! from the start that the end of a case is no loss of most objects, which the proxy would doubt for a minute.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use oracle::{Step, twin};
use serde_json::{Value, json};

/// Services beside those of the cases at the beginning.
const OTHERS: usize = 200;

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
