//! Every field of the API of Services and EndpointSlices (v1 and discovery.k8s.io/v1 of Kubernetes 1.36): what the plan depends on, and what
//! no proxy reads.

use netstate::IpFamily;
use netstate::family::PerFamily;
use serde_json::{Value, json};

use super::service::Service;
use super::slice::EndpointSlice;
use crate::dataplane::{DataPlane, Guards, Mode, NodeAddresses, Options};
use crate::plan::check::HealthCheck;
use crate::plan::here::Here;
use crate::plan::plan;
use crate::plan::pods::Pods;

/// What becomes of a field.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// What is planned follows it, or it is named in the status.
    Served,
    /// It says something to somebody else.
    Elsewhere(&'static str),
}

use Fate::{Elsewhere, Served};

/// Fields of a Service with a value that differs from that of [`service`].
fn fields_of_services() -> Vec<(&'static str, Value, Fate)> {
    vec![
        ("/metadata/namespace", json!("other"), Served),
        ("/metadata/name", json!("other"), Served),
        ("/metadata/creationTimestamp", json!("2025-01-01T00:00:00Z"), Served),
        ("/metadata/labels", json!({"service.kubernetes.io/service-proxy-name": "x"}), Served),
        (
            "/metadata/annotations",
            json!({"service.kubernetes.io/topology-mode": "Auto"}),
            Elsewhere("hints of the slices"),
        ),
        ("/metadata/annotations", json!({"ipvs-proxy/scheduler": "wlc"}), Served),
        ("/spec/allocateLoadBalancerNodePorts", json!(false), Elsewhere("the API server sets nodePort")),
        ("/spec/clusterIP", json!("192.168.0.11"), Served),
        ("/spec/clusterIPs", json!(["192.168.0.10", "fd00::10"]), Served),
        ("/spec/externalIPs", json!(["10.4.7.10"]), Served),
        ("/spec/externalName", json!("host.com"), Elsewhere("DNS")),
        ("/spec/externalTrafficPolicy", json!("Local"), Served),
        ("/spec/healthCheckNodePort", json!(31_000), Served),
        ("/spec/internalTrafficPolicy", json!("Local"), Served),
        ("/spec/ipFamilies", json!(["IPv6", "IPv4"]), Elsewhere("the API server sets clusterIPs")),
        ("/spec/ipFamilyPolicy", json!("PreferDualStack"), Elsewhere("the API server sets clusterIPs")),
        ("/spec/loadBalancerClass", json!("metallb"), Elsewhere("the load balancer's controller sets status")),
        ("/spec/loadBalancerIP", json!("10.4.7.98"), Elsewhere("the load balancer's controller sets status")),
        ("/spec/loadBalancerSourceRanges", json!(["10.4.7.0/24"]), Served),
        ("/spec/ports/0/appProtocol", json!("http"), Elsewhere("proxies of layer 7")),
        ("/spec/ports/0/name", json!("other"), Served),
        ("/spec/ports/0/nodePort", json!(30_081), Served),
        ("/spec/ports/0/port", json!(81), Served),
        ("/spec/ports/0/protocol", json!("UDP"), Served),
        ("/spec/ports/0/targetPort", json!(9090), Elsewhere("ports of the slices")),
        ("/spec/publishNotReadyAddresses", json!(true), Elsewhere("conditions of the slices")),
        ("/spec/selector", json!({"app": "web"}), Elsewhere("endpoints of the slices")),
        ("/spec/sessionAffinity", json!("ClientIP"), Served),
        (
            "/spec/sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": 7}}),
            Elsewhere("with sessionAffinity only"),
        ),
        ("/spec/trafficDistribution", json!("PreferSameNode"), Served),
        ("/spec/type", json!("ExternalName"), Served),
        ("/status/conditions", json!([]), Elsewhere("people")),
        ("/status/loadBalancer/ingress/0/hostname", json!("lb.host.com"), Elsewhere("DNS")),
        ("/status/loadBalancer/ingress/0/ip", json!("10.4.7.98"), Served),
        ("/status/loadBalancer/ingress/0/ipMode", json!("Proxy"), Served),
        ("/status/loadBalancer/ingress/0/ports", json!([]), Elsewhere("people")),
    ]
}

/// Fields of an EndpointSlice with a value that differs from that of [`slice`].
fn fields_of_slices() -> Vec<(&'static str, Value, Fate)> {
    vec![
        ("/addressType", json!("FQDN"), Served),
        ("/metadata/labels", json!({"kubernetes.io/service-name": "other"}), Served),
        ("/metadata/annotations", json!({"endpoints.kubernetes.io/x": "y"}), Elsewhere("metrics")),
        ("/endpoints/0/addresses", json!(["172.7.21.3"]), Served),
        ("/endpoints/0/conditions/ready", json!(false), Served),
        ("/endpoints/0/conditions/serving", json!(false), Served),
        ("/endpoints/0/conditions/terminating", json!(true), Served),
        ("/endpoints/0/deprecatedTopology", json!({"a": "b"}), Elsewhere("nobody since v1")),
        ("/endpoints/0/hints/forNodes", json!([{"name": "n1"}]), Served),
        ("/endpoints/0/hints/forZones", json!([{"name": "z1"}]), Served),
        ("/endpoints/0/hostname", json!("web-0"), Elsewhere("DNS")),
        ("/endpoints/0/nodeName", json!("n2"), Served),
        ("/endpoints/0/targetRef", json!({"kind": "Pod"}), Elsewhere("people")),
        ("/endpoints/0/zone", json!("z2"), Elsewhere("who writes hints")),
        ("/ports/0/appProtocol", json!("http"), Elsewhere("proxies of layer 7")),
        ("/ports/0/name", json!("other"), Served),
        ("/ports/0/port", json!(null), Served),
        ("/ports/0/protocol", json!("UDP"), Served),
    ]
}

fn service() -> Value {
    json!({
        "kind": "Service", "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "LoadBalancer", "clusterIP": "192.168.0.10",
            "ports": [{"name": "http", "port": 80, "nodePort": 30_080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}},
    })
}

fn slice() -> Value {
    json!({
        "kind": "EndpointSlice", "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["172.7.21.2"], "conditions": {"ready": true}, "nodeName": "n1", "zone": "z1"},
            {"addresses": ["172.7.22.2"], "nodeName": "n2"},
        ],
    })
}

/// `object` with another value at a place; objects on the way are made.
fn with(mut object: Value, path: &str, value: &Value) -> Value {
    let mut place = &mut object;
    for key in path.split('/').skip(1) {
        place = match key.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[key],
        };
    }
    *place = value.clone();
    object
}

/// All that is served of a Service with this slice, and all that is named of them.
fn outcome(service: &Value, slice: &Value) -> String {
    let (service, slice) = (Service::from_json(service).unwrap(), EndpointSlice::from_json(slice).unwrap());
    // The data path that names more of what it does not serve.
    let link = netstate::IfName::new("kube-ipvs0").unwrap();
    let pods = PerFamily::only(IpFamily::V4, Pods::Inside("172.7.0.0/16".parse().unwrap()));
    let path = DataPlane::new(Options {
        mode: Mode::Ipvs,
        link,
        scheduler: "rr".to_owned().into(),
        pods,
        services: PerFamily::default(),
        local: Vec::new(),
        node: NodeAddresses::default(),
        announced: std::collections::BTreeSet::new(),
        guards: Guards::default(),
    });
    let named = (path.not_served(&service), &service.skipped, &slice.unserved, &slice.skipped, &service.distribution);
    let here = Here { zone: Some("z1".to_owned()), ..Here::on("n1") };
    let of_service = (slice.service == service.name).then_some(&slice);
    let planned = plan(&service, &service.cluster_ips, of_service, &here);
    let asked = HealthCheck::of(&service, of_service, &here);
    // What an endpoint says of itself shows where others stand beside it, or none is ready.
    let endpoint = slice.endpoints.first().map(|endpoint| (endpoint.serving, endpoint.terminating, &endpoint.topology));
    format!(
        "{named:?} {planned:?} {asked:?} {endpoint:?} {:?}",
        IpFamily::ALL.map(|family| service.sources.get(family).clone())
    )
}

#[test]
fn every_field_of_the_api_is_served_or_named_or_meant_for_others() {
    let before = outcome(&service(), &slice());
    let services = fields_of_services().into_iter().map(|(path, value, fate)| {
        let after = outcome(&with(service(), path, &value), &slice());
        (path, fate, after)
    });
    let slices = fields_of_slices().into_iter().map(|(path, value, fate)| {
        let after = outcome(&service(), &with(slice(), path, &value));
        (path, fate, after)
    });
    for (path, fate, after) in services.chain(slices) {
        match fate {
            Served => assert_ne!(after, before, "{path} changes nothing"),
            Elsewhere(whose) => assert_eq!(after, before, "{path} is not for {whose} alone"),
        }
    }
}
