//! The names of what Services ask for and do not get.
//!
//! Invariant: what a Service asks for is served, or it is named here and shown in the status; nothing is dropped in
//! silence.

use netstate::family::PerFamily;
use netstate::ipvs::Scheduler;

use super::Mode;
use crate::object::service::Service;
use crate::object::{affinity_prefix, weights};
use crate::plan::FrontendKey;
use crate::plan::frontend::{Kind, Place, places};

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

/// Everything that `service` asks for and does not get where the families that are `known` are served, as `field: value`, each once.
#[must_use]
pub(super) fn not_served(service: &Service, known: PerFamily<bool>) -> Vec<String> {
    let found = service.ports.iter().flat_map(|port| places(service, port, &service.cluster_ips));
    let refused = found.filter(|(key, _)| !known.get(key.family())).map(|(key, kind)| field(&key, kind));
    each_once(refused)
}

/// Schedulers that read no weight other than 0 (net/netfilter/ipvs).
const WITHOUT_WEIGHTS: [&str; 3] = ["rr", "lc", "dh"];

/// The weights that `service` asks for, where nothing reads them.
#[must_use]
pub(super) fn unweighted(service: &Service, mode: Mode, usual: &Scheduler) -> Option<String> {
    let weights = service.weights?;
    let scheduler = service.scheduler.as_deref().unwrap_or(usual);
    let reason = match mode {
        Mode::Nftables => "which is of IPVS".to_owned(),
        Mode::Ipvs if WITHOUT_WEIGHTS.contains(&scheduler.name.as_str()) => {
            format!("which the scheduler {scheduler} does not read")
        }
        Mode::Ipvs => return None,
    };
    Some(format!("metadata.annotations.{}: {weights}, {reason}", weights::ANNOTATION))
}

/// The networks that are one client to `service`, where nothing reads them.
#[must_use]
pub(super) fn ungrouped(service: &Service, mode: Mode) -> Option<String> {
    let prefix = service.affinity_prefix?;
    let reason = match (mode, service.affinity) {
        (_, None) => "which needs spec.sessionAffinity: ClientIP",
        (Mode::Nftables, Some(_)) => "which is of IPVS",
        (Mode::Ipvs, Some(_)) => return None,
    };
    Some(format!("metadata.annotations.{}: {prefix}, {reason}", affinity_prefix::ANNOTATION))
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

    #[test]
    fn a_family_without_pods_is_named_at_each_of_its_addresses_once() {
        let service = Service::from_json(&json!({
            "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "192.168.0.10", "clusterIPs": ["192.168.0.10", "fd00::10"],
                "externalIPs": ["10.4.7.10", "fd00:4::10"], "sessionAffinity": "ClientIP",
                "externalTrafficPolicy": "Local",
                "ports": [{"name": "http", "port": 80, "nodePort": 30_080}, {"name": "https", "port": 443}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}},
        }))
        .unwrap();
        assert_eq!(
            not_served(&service, PerFamily::new(true, false)),
            ["spec.clusterIPs: fd00::10", "spec.ports.nodePort: 30080", "spec.externalIPs: fd00:4::10"]
        );
        assert!(not_served(&service, PerFamily::new(true, true)).is_empty());
    }
}
