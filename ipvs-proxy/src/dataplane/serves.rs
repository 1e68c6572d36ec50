//! What each data path serves of what Services ask for, and the names of the rest.
//!
//! Invariant: what a Service asks for is served, or it is named here and shown in the status; nothing is dropped in
//! silence.

use netstate::Protocol;
use netstate::family::PerFamily;

use super::Mode;
use crate::object::service::{Policy, Service, Sources};
use crate::plan::frontend::{Kind, Place, places};
use crate::plan::{Frontend, FrontendKey};

/// True when IPVS serves the frontend.
#[must_use]
pub(super) fn by_ipvs(key: &FrontendKey, frontend: &Frontend) -> bool {
    refusal(key, frontend.kind).is_none()
}

/// Why IPVS does not serve a frontend at all, as `field: value`.
fn refusal(key: &FrontendKey, kind: Kind) -> Option<String> {
    match (kind, key.place) {
        (Kind::ClusterIp, Place::Address(_)) => {
            (key.protocol == Protocol::Sctp).then(|| format!("port {}: protocol SCTP", key.port))
        }
        _ => Some(field(key, kind)),
    }
}

/// The field of a Service that asks for a frontend, with its value.
fn field(key: &FrontendKey, kind: Kind) -> String {
    let addr = match key.place {
        Place::Address(addr) => addr,
        Place::AnyNode(family) => family.unspecified(),
    };
    match kind {
        Kind::NodePort => format!("spec.ports.nodePort: {}", key.port),
        Kind::External => format!("spec.externalIPs: {addr}"),
        Kind::LoadBalancer => format!("status.loadBalancer.ingress: {addr}"),
        Kind::ClusterIp => format!("spec.clusterIPs: {addr}"),
    }
}

/// What a Service asks for beyond being served by IPVS, as `field: value`.
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

/// Everything that `service` asks for and does not get where `mode` carries the families that are `known`, as `field: value`, each
/// once.
#[must_use]
pub(super) fn not_served(service: &Service, mode: Mode, known: PerFamily<bool>) -> Vec<String> {
    let found: Vec<_> = service.ports.iter().flat_map(|port| places(service, port, &service.cluster_ips)).collect();
    let kinds: Vec<_> = found.iter().map(|(_, kind)| *kind).collect();
    let refused = |(key, kind): &(FrontendKey, Kind)| match mode {
        _ if !known.get(key.family()) => Some(field(key, *kind)),
        Mode::Ipvs => refusal(key, *kind),
        Mode::Nftables => None,
    };
    let gaps = match mode {
        Mode::Ipvs => gaps(service, &kinds),
        Mode::Nftables => {
            let affinity = service.affinity.map(|_| "spec.sessionAffinity: ClientIP".to_owned());
            let health = service.health_check_node_port.map(|port| format!("spec.healthCheckNodePort: {port}"));
            affinity.into_iter().chain(health).collect()
        }
    };
    each_once(found.iter().filter_map(refused).chain(gaps))
}

/// What no data path serves, for who does not know which is in use.
#[must_use]
pub(crate) fn served_by_none(service: &Service) -> Vec<String> {
    let [by_ipvs, by_nftables] =
        [Mode::Ipvs, Mode::Nftables].map(|mode| not_served(service, mode, PerFamily::new(true, true)));
    by_ipvs.into_iter().filter(|field| by_nftables.contains(field)).collect()
}

fn each_once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for text in texts {
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
    use crate::plan::here::Here;
    use crate::plan::plan;

    #[test]
    fn what_ipvs_does_not_serve_yet_is_named_once_and_the_cluster_ip_is_served() {
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
            not_served(&service, Mode::Ipvs, PerFamily::new(true, false)),
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
        let served = planned.frontends().iter().filter(|(key, frontend)| by_ipvs(key, frontend));
        let served: Vec<_> = served.map(|(key, _)| key.to_string()).collect();
        assert_eq!(served, ["tcp 192.168.0.10:80", "tcp [fd00::10]:80"], "what family is known is the plane's");
    }
}
