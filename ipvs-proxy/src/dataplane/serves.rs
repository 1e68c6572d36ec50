//! What this data path serves of what Services ask for, and the names of the rest.
//!
//! Invariant: what a Service asks for is served, or it is named here and shown in the status; nothing is dropped in
//! silence.

use netstate::Protocol;

use crate::object::service::{Policy, Service, Sources};
use crate::plan::frontend::{Kind, Place, places};
use crate::plan::{Frontend, FrontendKey};

/// True when this data path can serve the frontend.
#[must_use]
pub(super) fn serves(key: &FrontendKey, frontend: &Frontend) -> bool {
    refusal(key, frontend.kind).is_none()
}

/// Why a frontend is not served at all, as `field: value`.
fn refusal(key: &FrontendKey, kind: Kind) -> Option<String> {
    match (kind, key.place) {
        (Kind::NodePort, _) => Some(format!("spec.ports.nodePort: {}", key.port)),
        (Kind::External, Place::Address(addr)) => Some(format!("spec.externalIPs: {addr}")),
        (Kind::LoadBalancer, Place::Address(addr)) => Some(format!("status.loadBalancer.ingress: {addr}")),
        (Kind::ClusterIp, Place::Address(addr)) if addr.is_ipv6() => Some(format!("spec.clusterIPs: {addr}")),
        (Kind::ClusterIp, _) if key.protocol == Protocol::Sctp => Some(format!("port {}: protocol SCTP", key.port)),
        _ => None,
    }
}

/// What a Service asks for beyond being served, as `field: value`.
fn gaps(service: &Service, kinds: &[Kind]) -> Vec<String> {
    let is_external = |kind: &Kind| *kind != Kind::ClusterIp;
    let mut found = Vec::new();
    if service.affinity.is_some() {
        found.push("spec.sessionAffinity: ClientIP".to_owned());
    }
    if service.internal_policy == Policy::Local && !kinds.iter().all(is_external) {
        found.push("spec.internalTrafficPolicy: Local".to_owned());
    }
    if service.external_policy == Policy::Local && kinds.iter().any(is_external) {
        found.push("spec.externalTrafficPolicy: Local".to_owned());
    }
    if kinds.contains(&Kind::LoadBalancer) {
        let only = service.sources.values().filter_map(|sources| match sources {
            Sources::Any => None,
            Sources::Only(ranges) => Some(ranges),
        });
        let ranges = only.flat_map(|ranges| ranges.iter());
        found.extend(ranges.map(|range| format!("spec.loadBalancerSourceRanges: {range}")));
    }
    found.extend(service.health_check_node_port.map(|port| format!("spec.healthCheckNodePort: {port}")));
    found
}

/// Everything that `service` asks for and does not get, as `field: value`, each once.
#[must_use]
pub(crate) fn not_served(service: &Service) -> Vec<String> {
    let found: Vec<_> = service.ports.iter().flat_map(|port| places(service, port, &service.cluster_ips)).collect();
    let kinds: Vec<_> = found.iter().map(|(_, kind)| *kind).collect();
    let refused = found.iter().filter_map(|(key, kind)| refusal(key, *kind));
    let mut all: Vec<String> = Vec::new();
    for text in refused.chain(gaps(service, &kinds)) {
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
    use crate::plan::plan;
    use crate::plan::select::Here;

    #[test]
    fn what_is_not_served_yet_is_named_once_and_the_cluster_ip_is_served() {
        let service = Service::from_json(&json!({
            "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "192.168.0.10", "clusterIPs": ["192.168.0.10", "fd00::10"],
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
                "status.loadBalancer.ingress: 10.4.7.99",
                "spec.externalIPs: 10.4.7.10",
                "port 90: protocol SCTP",
                "spec.sessionAffinity: ClientIP",
                "spec.externalTrafficPolicy: Local",
                "spec.loadBalancerSourceRanges: 10.4.7.0/24",
                "spec.healthCheckNodePort: 31000",
            ]
        );
        let planned = plan(&service, &service.cluster_ips, [], &Here::on("hdss7-21.host.com"));
        let served = planned.frontends().iter().filter(|(key, frontend)| serves(key, frontend));
        assert_eq!(served.map(|(key, _)| key.to_string()).collect::<Vec<_>>(), ["tcp 192.168.0.10:80"]);
    }
}
