//! What this data path serves of what Services ask for, and the names of the rest.
//!
//! Invariant: what a Service asks for is served, or it is named here and shown in the status; nothing is dropped in
//! silence.

use netstate::Protocol;

use crate::object::service::{Policy, Service};
use crate::plan::frontend::{Kind, Masquerade, Place, frontends};
use crate::plan::{Frontend, FrontendKey};

/// True when this data path can serve the frontend.
#[must_use]
pub(crate) fn serves(key: &FrontendKey, frontend: &Frontend) -> bool {
    refusal(key, frontend).is_none() && frontend.masquerade == Masquerade::FromOutside
}

/// Why a frontend is not served at all, as `field: value`.
fn refusal(key: &FrontendKey, frontend: &Frontend) -> Option<String> {
    match (frontend.kind, key.place) {
        (Kind::NodePort, _) => Some(format!("spec.ports.nodePort: {}", key.port)),
        (Kind::External, Place::Address(addr)) => Some(format!("spec.externalIPs: {addr}")),
        (Kind::LoadBalancer, Place::Address(addr)) => Some(format!("status.loadBalancer.ingress: {addr}")),
        (Kind::ClusterIp, Place::Address(addr)) if addr.is_ipv6() => Some(format!("spec.clusterIPs: {addr}")),
        (Kind::ClusterIp, _) if key.protocol == Protocol::Sctp => Some(format!("port {}: protocol SCTP", key.port)),
        _ => None,
    }
}

/// What a frontend asks for beyond being served, as `field: value`.
fn gaps(frontend: &Frontend) -> Vec<String> {
    let mut found = Vec::new();
    if frontend.affinity.is_some() {
        found.push("spec.sessionAffinity: ClientIP".to_owned());
    }
    if frontend.policy == Policy::Local {
        let side = if frontend.kind == Kind::ClusterIp { "internal" } else { "external" };
        found.push(format!("spec.{side}TrafficPolicy: Local"));
    }
    found.extend(frontend.sources.iter().map(|range| format!("spec.loadBalancerSourceRanges: {range}")));
    found
}

/// Everything that `service` asks for and does not get, as `field: value`, each once.
#[must_use]
pub(crate) fn not_served(service: &Service) -> Vec<String> {
    let (mut refused, mut beyond) = (Vec::new(), Vec::new());
    for (key, _, frontend) in frontends(service) {
        refused.extend(refusal(&key, &frontend));
        beyond.extend(gaps(&frontend));
    }
    if let Some(port) = service.health_check_node_port {
        beyond.push(format!("spec.healthCheckNodePort: {port}"));
    }
    beyond.extend(service.traffic_distribution.iter().map(|text| format!("spec.trafficDistribution: {text}")));
    let mut all: Vec<String> = Vec::new();
    for text in refused.into_iter().chain(beyond) {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_served_yet_is_named_once_and_the_cluster_ip_is_served() {
        let service = Service::from_json(&json!({
            "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "clusterIP": "192.168.0.10", "clusterIPs": ["192.168.0.10", "fd00::10"],
                "externalIPs": ["10.4.7.10"], "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 31_000, "trafficDistribution": "PreferSameZone",
                "loadBalancerSourceRanges": ["10.4.7.0/24"],
                "ports": [
                    {"name": "http", "port": 80, "nodePort": 30_080},
                    {"name": "sig", "port": 90, "protocol": "SCTP"},
                ],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}},
        }))
        .unwrap();
        assert_eq!(
            not_served(&service),
            [
                "spec.clusterIPs: fd00::10",
                "spec.ports.nodePort: 30080",
                "spec.externalIPs: 10.4.7.10",
                "status.loadBalancer.ingress: 10.4.7.99",
                "port 90: protocol SCTP",
                "spec.sessionAffinity: ClientIP",
                "spec.externalTrafficPolicy: Local",
                "spec.loadBalancerSourceRanges: 10.4.7.0/24",
                "spec.healthCheckNodePort: 31000",
                "spec.trafficDistribution: PreferSameZone",
            ]
        );
        let served: Vec<_> = frontends(&service).filter(|(key, _, f)| serves(key, f)).collect();
        assert_eq!(served.iter().map(|(key, ..)| key.to_string()).collect::<Vec<_>>(), ["tcp 192.168.0.10:80"]);
    }
}
