//! `EndpointSlice` and `Endpoint`: where the Pods of a Service are and which of them take traffic.
//!
//! Invariant: as with Services, equal values need the same kernel state. Conditions that the slice leaves open have
//! Kubernetes' defaults: ready, serving, not terminating.

use std::net::IpAddr;

use cluster::Problem;
use netstate::Protocol;
use serde_json::Value;

use super::field::{Field, is_unusable, keep};
use super::{ObjectName, object_name};

/// Label that names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A part of the endpoints of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointSlice {
    /// Its own name.
    pub(crate) name: ObjectName,
    /// The Service it belongs to.
    pub(crate) service: ObjectName,
    /// The ports that every endpoint of the slice serves.
    pub(crate) ports: Vec<EndpointPort>,
    /// The endpoints; none when the slice is of a kind that is not served (FQDN, IPv6).
    pub(crate) endpoints: Vec<Endpoint>,
    /// What it carries that is not served, as `field: value`.
    pub(crate) unserved: Vec<String>,
    /// Elements that cannot be read and are left out, as `field: value; accepted: form`.
    pub(crate) skipped: Vec<String>,
}

/// A port of every endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointPort {
    /// The name by which a Service port finds it.
    pub(crate) name: String,
    /// Transport protocol.
    pub(crate) protocol: Protocol,
    /// The port the Pods listen on.
    pub(crate) port: u16,
}

/// One Pod of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its address.
    pub(crate) addr: IpAddr,
    /// It wants new connections.
    pub(crate) ready: bool,
    /// It can answer, although it may be on its way out.
    pub(crate) serving: bool,
    /// It is on its way out.
    pub(crate) terminating: bool,
    /// Name of its node, if the slice says.
    pub(crate) node: Option<String>,
}

impl EndpointSlice {
    /// Reads an EndpointSlice of discovery.k8s.io/v1.
    ///
    /// # Errors
    /// The first field that is not as the API demands.
    pub(crate) fn from_json(object: &Value) -> Result<Self, Problem> {
        let root = Field::root(object);
        root.expect_kind("EndpointSlice")?;
        let name = object_name(&root)?;
        let label = root.get("metadata").get("labels").get(SERVICE_NAME);
        let service = label.text()?.filter(|text| !text.is_empty());
        let service = service.ok_or_else(|| label.problem("the name of the slice's Service"))?;
        let service = ObjectName::new(name.namespace(), service);
        let (ports, endpoints) = (Vec::new(), Vec::new());
        let mut slice = Self { name, service, ports, endpoints, unserved: Vec::new(), skipped: Vec::new() };
        let family = root.get("addressType");
        match family.text()? {
            Some("IPv4") => slice.read_lists(&root)?,
            Some(other @ ("IPv6" | "FQDN")) => slice.unserved.push(format!("addressType: {other}")),
            _ => return Err(family.problem("IPv4, IPv6 or FQDN")),
        }
        Ok(slice)
    }

    fn read_lists(&mut self, root: &Field<'_>) -> Result<(), Problem> {
        for item in root.get("ports").items()? {
            // A slice port without a number means every port, which no virtual server can express.
            if !item.is_object() || !item.get("port").is_absent() {
                keep(&mut self.ports, &mut self.skipped, port(&item));
            }
        }
        for item in root.get("endpoints").items()? {
            keep(&mut self.endpoints, &mut self.skipped, endpoint(&item));
        }
        Ok(())
    }
}

fn port(item: &Field<'_>) -> Result<EndpointPort, Problem> {
    let port = item.get("port").port()?.ok_or_else(|| item.problem("an object with name, protocol and port"))?;
    let name = item.get("name").text()?.unwrap_or_default().to_owned();
    Ok(EndpointPort { name, protocol: item.get("protocol").protocol()?, port })
}

fn endpoint(item: &Field<'_>) -> Result<Endpoint, Problem> {
    let accepted = "a unicast IPv4 address that is no loopback or link-local one";
    // Consumers use the first address only (discovery/v1: "addresses").
    let addresses = item.get("addresses");
    let first = addresses.items()?.into_iter().next().ok_or_else(|| addresses.problem("a list of addresses"))?;
    let addr = first.address()?.filter(|addr| addr.is_ipv4() && !is_unusable(*addr));
    let conditions = item.get("conditions");
    Ok(Endpoint {
        addr: addr.ok_or_else(|| first.problem(accepted))?,
        ready: conditions.get("ready").flag()?.unwrap_or(true),
        serving: conditions.get("serving").flag()?.unwrap_or(true),
        terminating: conditions.get("terminating").flag()?.unwrap_or(false),
        node: item.get("nodeName").text()?.filter(|node| !node.is_empty()).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice() -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [
                {"addresses": ["172.7.21.2"], "conditions": {"ready": true}, "nodeName": "hdss7-21.host.com"},
                {"addresses": ["172.7.22.2"], "conditions": {"ready": false, "terminating": true}},
                {"addresses": ["172.7.22.3"]},
            ],
        })
    }

    #[test]
    fn a_slice_is_its_service_ports_and_endpoints() {
        let slice = EndpointSlice::from_json(&slice()).unwrap();
        assert_eq!(slice.service, ObjectName::new("default", "web"));
        assert_eq!(slice.ports, [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }]);
        let conditions: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(conditions, [(true, true, false), (false, true, true), (true, true, false)]);
        assert_eq!(slice.endpoints[0].node.as_deref(), Some("hdss7-21.host.com"));
    }

    #[test]
    fn slices_of_other_address_types_are_reported_and_hold_no_endpoints() {
        let mut object = slice();
        object["addressType"] = json!("FQDN");
        object["endpoints"] = json!([{"addresses": ["web.host.com"]}]);
        let slice = EndpointSlice::from_json(&object).unwrap();
        assert!(slice.endpoints.is_empty());
        assert_eq!(slice.unserved, ["addressType: FQDN"]);
    }

    #[test]
    fn a_port_without_a_number_is_read_over() {
        let mut object = slice();
        object["ports"] = json!([{"name": "all"}, {"name": "http", "port": 8080}]);
        assert_eq!(EndpointSlice::from_json(&object).unwrap().ports.len(), 1);
    }

    #[test]
    fn an_element_that_cannot_be_read_is_left_out_and_named_and_the_others_are_served() {
        let beside = |bad: Value| json!([{"addresses": ["172.7.21.2"]}, bad]);
        for (key, value, field) in [
            ("ports", json!([{"name": "http", "port": 8080}, {"port": 0}]), "ports[1].port"),
            ("ports", json!([{"name": "http", "port": 8080}, "80"]), "ports[1]"),
            ("ports", json!([{"name": "http", "port": 8080}, {"port": 1, "protocol": "X"}]), "ports[1].protocol"),
            ("endpoints", beside(json!({})), "endpoints[1].addresses"),
            ("endpoints", beside(json!("172.7.21.3")), "endpoints[1].addresses"),
            ("endpoints", beside(json!({"addresses": []})), "endpoints[1].addresses"),
            ("endpoints", beside(json!({"addresses": ["fd00::1"]})), "endpoints[1].addresses[0]"),
            ("endpoints", beside(json!({"addresses": ["127.0.0.1"]})), "endpoints[1].addresses[0]"),
            ("endpoints", beside(json!(null)), "endpoints[1].addresses"),
            ("endpoints", beside(json!({"addresses": [null, "172.7.21.3"]})), "endpoints[1].addresses[0]"),
            ("endpoints", beside(json!({"addresses": "172.7.21.3"})), "endpoints[1].addresses"),
            ("endpoints", beside(json!({"addresses": ["172.7.21.3/24"]})), "endpoints[1].addresses[0]"),
            ("endpoints", beside(json!({"addresses": ["fe80::1%eth0"]})), "endpoints[1].addresses[0]"),
            ("endpoints", beside(json!({"addresses": ["::ffff:172.7.21.3"]})), "endpoints[1].addresses[0]"),
            ("ports", json!([{"name": "http", "port": 8080}, {"port": "8081"}]), "ports[1].port"),
            ("ports", json!([{"name": "http", "port": 8080}, {"port": 65_536}]), "ports[1].port"),
            ("ports", json!([{"name": "http", "port": 8080}, {"port": -1}]), "ports[1].port"),
            ("ports", json!([{"name": "http", "port": 8080}, null]), "ports[1]"),
            (
                "endpoints",
                beside(json!({"addresses": ["172.7.21.3"], "conditions": {"ready": "yes"}})),
                "endpoints[1].conditions.ready",
            ),
            ("endpoints", beside(json!({"addresses": ["172.7.21.3"], "nodeName": 7})), "endpoints[1].nodeName"),
        ] {
            let mut object = slice();
            object[key] = value.clone();
            let slice = EndpointSlice::from_json(&object).unwrap();
            let kept = if key == "ports" { slice.ports.len() } else { slice.endpoints.len() };
            assert_eq!((kept, slice.skipped.len()), (1, 1), "{value}");
            assert!(slice.skipped[0].starts_with(&format!("{field}: ")), "{:?}", slice.skipped);
        }
    }

    #[test]
    fn lists_that_are_null_or_missing_are_empty() {
        for key in ["ports", "endpoints"] {
            let mut object = slice();
            object[key] = Value::Null;
            let slice = EndpointSlice::from_json(&object).unwrap();
            assert_eq!((slice.ports.len() * slice.endpoints.len(), slice.skipped.len()), (0, 0), "{key}");
        }
    }

    #[test]
    fn malformed_slices_are_refused_with_the_field() {
        for (key, value, field) in [
            ("kind", json!("Endpoints"), "kind"),
            ("metadata", json!({"name": "web-1"}), "metadata.labels.kubernetes.io/service-name"),
            ("addressType", json!("IPv5"), "addressType"),
            ("ports", json!({}), "ports"),
            ("endpoints", json!("none"), "endpoints"),
        ] {
            let mut object = slice();
            object[key] = value.clone();
            assert_eq!(EndpointSlice::from_json(&object).unwrap_err().field, field, "{value}");
        }
    }
}
