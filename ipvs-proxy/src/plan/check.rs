//! `HealthCheck`: what a load balancer asks this node about a Service (`healthCheckNodePort`).
//!
//! Invariant: what counts are addresses of endpoints on this node that want new connections. One that is on its way out does not, although
//! it still gets connections where there is no other: the load balancer shall go elsewhere meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::IpFamily;
use netstate::family::PerFamily;

use super::here::Here;
use super::select::{Locality, locality};
use crate::object::service::Service;
use crate::object::slice::{Endpoint, EndpointSlice};

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    /// The port that is asked.
    pub(crate) port: u16,
    /// Ready endpoints on this node, of each family that the Service has.
    pub(crate) ready: PerFamily<Option<usize>>,
}

impl HealthCheck {
    /// What is asked about `service`, if anything is.
    #[must_use]
    pub(crate) fn of<'a>(
        service: &Service,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
        here: &Here,
    ) -> Option<Self> {
        let port = service.health_check_node_port?;
        let is_ready = |endpoint: &&Endpoint| endpoint.ready && locality(endpoint, here) == Locality::Here;
        let with_ports = slices.into_iter().filter(|slice| !slice.ports.is_empty());
        let ready = with_ports.flat_map(|slice| slice.endpoints.iter()).filter(is_ready).map(|endpoint| endpoint.addr);
        let ready: BTreeSet<IpAddr> = ready.collect();
        let mut counts = PerFamily::default();
        for family in service.families() {
            let count = ready.iter().filter(|addr| IpFamily::of(**addr) == family).count();
            *counts.get_mut(family) = Some(count);
        }
        Some(Self { port, ready: counts })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, endpoints: &Value) -> EndpointSlice {
        let metadata = json!({"name": name, "labels": {"kubernetes.io/service-name": "a"}});
        EndpointSlice::from_json(&json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}, {"name": "more", "port": 81}], "endpoints": endpoints}))
        .unwrap()
    }

    #[test]
    fn ready_endpoints_of_this_node_count_once_each() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.7.1", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30_935, "ports": [{"name": "http", "port": 80}]});
        let service = json!({"kind": "Service", "metadata": {"name": "a"}, "spec": spec});
        let service = Service::from_json(&service).unwrap();
        let on = |last: u8, node: &str| json!({"addresses": [format!("172.7.21.{last}")], "nodeName": node});
        let leaving = json!({"addresses": ["172.7.21.13"], "nodeName": "n1",
            "conditions": {"ready": false, "serving": true, "terminating": true}});
        let slices = [
            slice("a-1", &json!([on(11, "n1"), on(12, "n1"), on(21, "n2"), leaving])),
            slice("a-2", &json!([on(11, "n1")])),
        ];
        let here = Here::on("n1");
        let asked = HealthCheck::of(&service, &slices, &here).unwrap();
        assert_eq!((asked.port, asked.ready), (30_935, PerFamily::only(IpFamily::V4, 2)));
        let none = HealthCheck::of(&service, [], &here).unwrap();
        assert_eq!(none.ready, PerFamily::only(IpFamily::V4, 0));
    }
}
