//! `EndpointSlice` and `Endpoint`: where the Pods of a Service are and which of them take traffic.
//!
//! Invariant: as with Services, equal values need the same kernel state. Conditions that the slice leaves open have
//! Kubernetes' defaults: ready, serving, not terminating.

use std::net::IpAddr;
use std::sync::Arc;

use cluster::Problem;
use netstate::{IpFamily, Protocol};
use serde_json::Value;

use super::field::{Field, is_unusable, keep, skip};
use super::key::Kind;
use super::service::HEADLESS;
use super::topology::{Hints, Topology};
use super::trigger::Trigger;
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
    pub(crate) ports: Box<[EndpointPort]>,
    /// The endpoints, all of one family; none when the slice is of a kind that is not served (FQDN, headless).
    pub(crate) endpoints: Box<[Endpoint]>,
    /// What it carries that is not served, as `field: value`.
    pub(crate) unserved: Vec<String>,
    /// Elements that cannot be read and are left out, as `field: value; accepted: form`.
    pub(crate) skipped: Vec<String>,
    /// When what it says came about.
    pub(crate) trigger: Trigger,
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
    /// Where it runs and whose clients it is meant for.
    pub(crate) topology: Arc<Topology>,
}

impl EndpointSlice {
    /// Reads an EndpointSlice of discovery.k8s.io/v1.
    ///
    /// # Errors
    /// The first field that is not as the API demands.
    pub(crate) fn from_json(object: &Value) -> Result<Self, Problem> {
        let root = Field::root(object);
        root.expect_kind(Kind::EndpointSlice)?;
        let name = object_name(&root)?;
        let label = root.get("metadata").get("labels").get(SERVICE_NAME);
        let service = label.text()?.filter(|text| !text.is_empty());
        let service = service.ok_or_else(|| label.problem("the name of the slice's Service"))?;
        let service = ObjectName::new(name.namespace(), service);
        let (ports, endpoints) = (Box::default(), Box::default());
        let trigger = Trigger::of(&root);
        let mut slice = Self { name, service, ports, endpoints, unserved: Vec::new(), skipped: Vec::new(), trigger };
        let headless = !root.get("metadata").get("labels").get(HEADLESS).is_absent();
        let family = root.get("addressType");
        match family.text()? {
            Some("IPv4" | "IPv6") if headless => {}
            Some("IPv4") => slice.read_lists(&root, IpFamily::V4)?,
            Some("IPv6") => slice.read_lists(&root, IpFamily::V6)?,
            Some(other @ "FQDN") => slice.unserved.push(format!("addressType: {other}")),
            _ => return Err(family.problem("IPv4, IPv6 or FQDN")),
        }
        Ok(slice)
    }

    fn read_lists(&mut self, root: &Field<'_>, family: IpFamily) -> Result<(), Problem> {
        let (mut ports, mut endpoints, mut hints) = (Vec::new(), Vec::new(), Vec::new());
        for item in root.get("ports").items()? {
            if item.is_object() && item.get("port").is_absent() {
                // It means every port, which no address and port can express.
                self.unserved.push(item.get("port").problem("a number").to_string());
            } else {
                keep(&mut ports, &mut self.skipped, port(&item));
            }
        }
        for item in root.get("endpoints").items()? {
            let read = endpoint(&item, family, &mut hints);
            keep(&mut endpoints, &mut self.skipped, read);
        }
        (self.ports, self.endpoints) = (ports.into(), endpoints.into());
        self.skipped.append(&mut hints);
        Ok(())
    }
}

/// A name; none where the text is empty.
fn name(field: &Field<'_>) -> Result<Option<Box<str>>, Problem> {
    Ok(field.text()?.filter(|text| !text.is_empty()).map(Into::into))
}

/// The names in a list of hints. What cannot be read is left out: an endpoint without a hint is one for everybody.
fn hinted(field: &Field<'_>, skipped: &mut Vec<String>) -> Box<[Box<str>]> {
    let items = field.items().unwrap_or_else(|problem| {
        skip(skipped, &problem);
        Vec::new()
    });
    let mut found = Vec::new();
    for item in items.iter().map(|item| item.get("name")) {
        let name = name(&item).and_then(|name| name.ok_or_else(|| item.problem("the name of a zone or node")));
        keep(&mut found, skipped, name);
    }
    found.into()
}

fn port(item: &Field<'_>) -> Result<EndpointPort, Problem> {
    let port = item.get("port").port()?.ok_or_else(|| item.problem("an object with name, protocol and port"))?;
    let name = item.get("name").text()?.unwrap_or_default().to_owned();
    Ok(EndpointPort { name, protocol: item.get("protocol").protocol()?, port })
}

/// Which addresses endpoints of a slice of this family may have.
const fn accepted(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "a unicast IPv4 address that is no loopback or link-local one",
        IpFamily::V6 => "a unicast IPv6 address that is no loopback, link-local or IPv4-mapped one",
    }
}

/// The address that was left out of a slice for its family, if that is what an element says that was left out.
pub(crate) fn of_other_family(skipped: &str) -> Option<IpAddr> {
    let (found, form) = skipped.split_once("; accepted: ")?;
    let addr: IpAddr = found.rsplit_once(": ")?.1.trim_matches('"').parse().ok()?;
    let other = [IpFamily::V4, IpFamily::V6].into_iter().find(|family| *family != IpFamily::of(addr))?;
    (form == accepted(other)).then_some(addr)
}

/// An endpoint; hints that cannot be read go to `skipped`.
fn endpoint(item: &Field<'_>, family: IpFamily, skipped: &mut Vec<String>) -> Result<Endpoint, Problem> {
    let accepted = accepted(family);
    // Consumers use the first address only (discovery/v1: "addresses").
    let addresses = item.get("addresses");
    let first = addresses.items()?.into_iter().next().ok_or_else(|| addresses.problem("a list of addresses"))?;
    let addr = first.address()?.filter(|addr| IpFamily::of(*addr) == family && !is_unusable(*addr));
    let addr = addr.ok_or_else(|| first.problem(accepted))?;
    let (conditions, hints) = (item.get("conditions"), item.get("hints"));
    let zones = hinted(&hints.get("forZones"), skipped);
    let hints = Hints { zones, nodes: hinted(&hints.get("forNodes"), skipped) };
    let node = name(&item.get("nodeName"))?;
    Ok(Endpoint {
        addr,
        ready: conditions.get("ready").flag()?.unwrap_or(true),
        serving: conditions.get("serving").flag()?.unwrap_or(true),
        terminating: conditions.get("terminating").flag()?.unwrap_or(false),
        topology: Arc::new(Topology { node, hints: (hints != Hints::default()).then_some(hints) }),
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
        assert_eq!(*slice.ports, [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }]);
        let conditions: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(conditions, [(true, true, false), (false, true, true), (true, true, false)]);
        assert_eq!(slice.endpoints[0].topology.node.as_deref(), Some("hdss7-21.host.com"));
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
    fn a_port_without_a_number_is_named() {
        let mut object = slice();
        object["ports"] = json!([{"name": "all"}, {"name": "http", "port": 8080}]);
        let slice = EndpointSlice::from_json(&object).unwrap();
        assert_eq!(slice.ports.len(), 1);
        assert_eq!(slice.unserved, ["ports[0].port: missing; accepted: a number"]);
    }

    #[test]
    fn hints_and_node_are_values_and_a_hint_that_cannot_be_read_is_left_out() {
        let mut object = slice();
        object["endpoints"] = json!([{
            "addresses": ["172.7.21.2"], "nodeName": "n1", "zone": "z1",
            "hints": {"forZones": [{"name": "z1"}, {"name": 7}, {"name": "z2"}], "forNodes": [{"name": "n1"}]},
        }, {"addresses": ["172.7.21.3"], "hints": {"forZones": "z1"}}]);
        let slice = EndpointSlice::from_json(&object).unwrap();
        let hints = slice.endpoints[0].topology.hints.as_ref().unwrap();
        assert_eq!(*hints.zones, ["z1".into(), "z2".into()]);
        assert_eq!(*hints.nodes, ["n1".into()]);
        assert_eq!((slice.endpoints.len(), &slice.endpoints[1].topology.hints), (2, &None));
        let fields: Vec<_> = slice.skipped.iter().map(|reason| reason.split(": ").next().unwrap()).collect();
        assert_eq!(fields, ["endpoints[0].hints.forZones[1].name", "endpoints[1].hints.forZones"]);
    }

    #[test]
    fn slices_of_ipv6_hold_ipv6_endpoints_only() {
        let mut object = slice();
        object["addressType"] = json!("IPv6");
        let others = ["172.7.21.3", "::ffff:172.7.21.3", "::ffff:127.0.0.1", "::1", "fe80::1", "ff02::1", "::"];
        let addresses = ["fd00:7:21::2"].into_iter().chain(others);
        object["endpoints"] = addresses.map(|addr| json!({"addresses": [addr]})).collect();
        let slice = EndpointSlice::from_json(&object).unwrap();
        assert_eq!(slice.endpoints.iter().map(|e| e.addr.to_string()).collect::<Vec<_>>(), ["fd00:7:21::2"]);
        assert_eq!(slice.skipped.len(), others.len());
    }

    #[test]
    fn a_slice_of_a_headless_service_holds_nothing() {
        let mut object = slice();
        object["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
        let slice = EndpointSlice::from_json(&object).unwrap();
        assert_eq!((slice.ports.len(), slice.endpoints.len()), (0, 0));
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
            ("apiVersion", json!("v1"), "apiVersion"),
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
