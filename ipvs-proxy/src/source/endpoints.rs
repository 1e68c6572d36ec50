//! Endpoints of core/v1 as EndpointSlices, for servers that have no others.
//!
//! Pure. Invariant: the same as Kubernetes' mirroring controller makes of them: a slice for each subset and family, ready addresses ready
//! and the others not, a port without a name as it is; one without endpoints where there is no address at all.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

/// The JSON of the slices that Endpoints are, in turn.
pub(super) fn slices(endpoints: &Value) -> Vec<Value> {
    let metadata = &endpoints["metadata"];
    let mut labels = metadata.get("labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.insert("kubernetes.io/service-name".to_owned(), metadata["name"].clone());
    let slice = |family: &str, ports: Value, endpoints: Vec<Value>| {
        json!({
            "kind": "EndpointSlice",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints,
        })
    };
    let subsets = endpoints.get("subsets").and_then(Value::as_array);
    let mut found = Vec::new();
    for subset in subsets.into_iter().flatten() {
        let addresses = |field: &str, ready: bool| {
            let items = subset.get(field).and_then(Value::as_array).into_iter().flatten();
            items.map(move |item| endpoint(item, ready)).collect::<Vec<_>>()
        };
        let all = [addresses("addresses", true), addresses("notReadyAddresses", false)].concat();
        let (six, four): (Vec<_>, Vec<_>) = all.into_iter().partition(is_of_six);
        for (family, endpoints) in [("IPv4", four), ("IPv6", six)] {
            if endpoints.is_empty() {
                continue;
            }
            let ports = subset.get("ports").cloned().unwrap_or_else(|| json!([]));
            found.push(slice(family, ports, endpoints));
        }
    }
    if found.is_empty() {
        found.push(slice("IPv4", json!([]), Vec::new()));
    }
    found
}

fn endpoint(item: &Value, ready: bool) -> Value {
    let mut endpoint = Map::new();
    endpoint.insert("addresses".to_owned(), json!([item["ip"]]));
    endpoint.insert("conditions".to_owned(), json!({"ready": ready, "serving": ready, "terminating": false}));
    if let Some(node) = item.get("nodeName") {
        endpoint.insert("nodeName".to_owned(), node.clone());
    }
    endpoint.into()
}

fn is_of_six(endpoint: &Value) -> bool {
    endpoint
        .pointer("/addresses/0")
        .and_then(|text| text.as_str()?.parse().ok())
        .is_some_and(|addr: IpAddr| addr.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::slice::EndpointSlice;

    #[test]
    fn each_subset_is_a_slice_of_each_family_with_its_ports() {
        let endpoints = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}},
            "subsets": [
                {
                    "addresses": [{"ip": "172.7.21.2", "nodeName": "n1"}, {"ip": "fd00:7::2"}],
                    "notReadyAddresses": [{"ip": "172.7.22.2"}],
                    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                },
                {"addresses": [{"ip": "172.7.23.2"}], "ports": [{"port": 53, "protocol": "UDP"}]},
                {"notReadyAddresses": [], "ports": [{"port": 1}]},
            ],
        });
        let slices: Vec<_> = slices(&endpoints).iter().map(|slice| EndpointSlice::from_json(slice).unwrap()).collect();
        let text = |slice: &EndpointSlice| {
            let endpoints = slice
                .endpoints
                .iter()
                .map(|it| (it.addr.to_string(), it.ready, it.topology.node.as_deref().map(str::to_owned)));
            (slice.service.to_string(), slice.ports[0].port, slice.ports[0].name.clone(), endpoints.collect::<Vec<_>>())
        };
        let at = |addr: &str, ready: bool, node: Option<&str>| (addr.to_owned(), ready, node.map(str::to_owned));
        assert_eq!(
            slices.iter().map(text).collect::<Vec<_>>(),
            [
                (
                    "shop/web".to_owned(),
                    8080,
                    "http".to_owned(),
                    vec![at("172.7.21.2", true, Some("n1")), at("172.7.22.2", false, None)]
                ),
                ("shop/web".to_owned(), 8080, "http".to_owned(), vec![at("fd00:7::2", true, None)]),
                ("shop/web".to_owned(), 53, String::new(), vec![at("172.7.23.2", true, None)]),
            ]
        );
    }
}
