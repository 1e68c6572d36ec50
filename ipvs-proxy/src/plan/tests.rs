//! Plans of one Service: its ports that no slice has, and those without an endpoint here.

mod oracle;
mod updates;

use serde_json::json;

use super::*;

#[test]
fn ports_without_an_endpoint_here_are_counted_as_kube_proxy_counts_them() {
    let here = Here::on("n1");
    let count = |internal: &str, external: &str, nodes: &[&str]| {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "192.168.0.10", "internalTrafficPolicy": internal,
            "externalTrafficPolicy": external, "ports": [{"name": "http", "port": 80, "nodePort": 30_080}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}});
        let service = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec, "status": status});
        let service = Service::from_json(&service).unwrap();
        let endpoint =
            |(last, node): (usize, &&str)| json!({"addresses": [format!("172.7.21.{}", last + 2)], "nodeName": node});
        let endpoints: Vec<_> = nodes.iter().enumerate().map(endpoint).collect();
        let metadata = json!({"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}});
        let slice = EndpointSlice::from_json(&json!({"kind": "EndpointSlice", "metadata": metadata,
            "addressType": "IPv4", "ports": [{"name": "http", "port": 80}], "endpoints": endpoints}))
        .unwrap();
        let found = plan(&service, &service.cluster_ips, [&slice], &here).no_local;
        (found.internal, found.external)
    };
    // TestNoEndpointsMetric of kube-proxy.
    assert_eq!(count("Local", "Cluster", &["n1", "n2"]), (0, 0));
    assert_eq!(count("Cluster", "Local", &["n1", "n2"]), (0, 0));
    assert_eq!(count("Local", "Local", &["n1", "n2"]), (0, 0));
    assert_eq!(count("Local", "Cluster", &["n2"]), (1, 0));
    assert_eq!(count("Cluster", "Local", &["n2"]), (0, 1));
    assert_eq!(count("Local", "Local", &["n2", "n3"]), (1, 1));
    assert_eq!(count("Local", "Local", &[]), (0, 0));
}

#[test]
fn hints_are_missed_of_endpoints_that_there_are() {
    let spec = json!({"clusterIP": "192.168.0.10", "trafficDistribution": "PreferSameNode", "ports": [{"port": 80}]});
    let service = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec});
    let service = Service::from_json(&service).unwrap();
    let is_named = |endpoints: serde_json::Value| {
        let metadata = json!({"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}});
        let slice = json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": endpoints});
        unhinted(&service, [&EndpointSlice::from_json(&slice).unwrap()]).is_some()
    };
    let (without, with) = (
        json!({"addresses": ["172.7.21.2"]}),
        json!({"addresses": ["172.7.21.3"], "hints": {"forNodes": [{"name": "n1"}]}}),
    );
    assert_eq!([json!([]), json!([without]), json!([without, with])].map(is_named), [false, true, false]);
}

#[test]
fn ports_that_no_slice_has_are_named() {
    let spec = json!({"clusterIP": "192.168.0.10", "ports": [
        {"name": "http", "port": 80}, {"name": "metric", "port": 90}, {"name": "dns", "port": 53, "protocol": "UDP"},
    ]});
    let service = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec});
    let service = Service::from_json(&service).unwrap();
    let slice = |endpoints: serde_json::Value| {
        let metadata = json!({"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}});
        let ports = json!([{"name": "http", "port": 80}, {"name": "metrics", "port": 90}, {"name": "dns", "port": 53}]);
        EndpointSlice::from_json(&json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
            "ports": ports, "endpoints": endpoints}))
        .unwrap()
    };
    let slices = [slice(json!([{"addresses": ["172.7.21.2"]}]))];
    assert_eq!(
        unmatched(&service, slices.iter()),
        [
            "spec.ports: tcp \"metric\", which no EndpointSlice has a port for",
            "spec.ports: udp \"dns\", which no EndpointSlice has a port for",
        ]
    );
    assert!(unmatched(&service, [slice(json!([]))].iter()).is_empty(), "a Service that runs nowhere");
    assert!(unmatched(&service, [].iter()).is_empty());
}
