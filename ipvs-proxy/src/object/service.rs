//! `Service`: what of a Kubernetes Service matters here.
//!
//! Invariant: two Services that compare equal need the same kernel state; that equality is what stops annotation churn at
//! the door. What a Service asks for and is not served is kept as text, so it can be shown and never goes unnoticed.

use std::net::IpAddr;

use cluster::Problem;
use netstate::Protocol;
use serde_json::Value;

use super::field::{Field, is_unusable};
use super::{ObjectName, object_name};

/// Label that hands a Service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of headless Services.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: ObjectName,
    /// `metadata.creationTimestamp` (RFC 3339 in UTC, so texts sort by time); empty when absent. Of two Services that
    /// claim one address and port the older one is served.
    pub(crate) created: String,
    /// The virtual address; `None` when there is nothing to serve (headless, ExternalName, another proxy's).
    pub(crate) cluster_ip: Option<IpAddr>,
    /// Its ports that can be served.
    pub(crate) ports: Vec<ServicePort>,
    /// What it asks for beyond ClusterIP over TCP and UDP, as `field: value`.
    pub(crate) unserved: Vec<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServicePort {
    /// Its name, which finds the port of an EndpointSlice; empty for an only port.
    pub(crate) name: String,
    /// Transport protocol.
    pub(crate) protocol: Protocol,
    /// The virtual port.
    pub(crate) port: u16,
}

impl Service {
    /// Reads a Service.
    ///
    /// # Errors
    /// The first field that is not as the API demands.
    pub(crate) fn from_json(object: &Value) -> Result<Self, Problem> {
        let root = Field::root(object);
        root.expect_kind("Service")?;
        let name = object_name(&root)?;
        let created = root.get("metadata").get("creationTimestamp").text()?.unwrap_or_default().to_owned();
        let mut unserved = Vec::new();
        let cluster_ip = if is_elsewhere(&root)? { None } else { cluster_ip(&root, &mut unserved)? };
        let ports = ports(&root, &mut unserved)?;
        if cluster_ip.is_none() {
            return Ok(Self { name, created, cluster_ip, ports: Vec::new(), unserved });
        }
        note_unserved(&root, &mut unserved)?;
        Ok(Self { name, created, cluster_ip, ports, unserved })
    }
}

/// True for a Service that no proxy, or another one, serves.
fn is_elsewhere(root: &Field<'_>) -> Result<bool, Problem> {
    let labels = root.get("metadata").get("labels");
    let external = root.get("spec").get("type").text()? == Some("ExternalName");
    Ok(external || !labels.get(PROXY_NAME).is_absent() || !labels.get(HEADLESS).is_absent())
}

fn cluster_ip(root: &Field<'_>, unserved: &mut Vec<String>) -> Result<Option<IpAddr>, Problem> {
    let spec = root.get("spec");
    if spec.is_absent() {
        return Err(spec.problem("an object with clusterIP and ports"));
    }
    let field = spec.get("clusterIP");
    if matches!(field.text()?, None | Some("" | "None")) {
        return Ok(None);
    }
    let mut addresses: Vec<IpAddr> = field.address()?.into_iter().collect();
    for item in spec.get("clusterIPs").items()? {
        let address = item.address()?.ok_or_else(|| item.problem("an address"))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    unserved.extend(addresses.iter().filter(|addr| addr.is_ipv6()).map(|addr| format!("spec.clusterIPs: {addr}")));
    let accepted = "a unicast address that is no loopback or link-local one";
    match addresses.into_iter().find(IpAddr::is_ipv4) {
        Some(addr) if is_unusable(addr) => Err(field.problem(accepted)),
        found => Ok(found),
    }
}

fn ports(root: &Field<'_>, unserved: &mut Vec<String>) -> Result<Vec<ServicePort>, Problem> {
    let items = root.get("spec").get("ports").items()?;
    let mut ports: Vec<ServicePort> = Vec::new();
    for item in &items {
        let name = item.get("name").text()?.unwrap_or_default().to_owned();
        if name.is_empty() && items.len() > 1 {
            return Err(item.get("name").problem("a name for each of several ports"));
        }
        let port = item.get("port").port()?.ok_or_else(|| item.get("port").problem("a port from 1 to 65535"))?;
        match item.get("protocol").protocol()? {
            Protocol::Sctp => unserved.push(format!("port {port}: protocol SCTP")),
            protocol => ports.push(ServicePort { name, protocol, port }),
        }
    }
    let twice = |(index, port): (usize, &ServicePort)| {
        ports
            .iter()
            .take(index)
            .any(|other| (other.protocol, other.port) == (port.protocol, port.port) || other.name == port.name)
    };
    match ports.iter().enumerate().find(|(index, port)| twice((*index, port))) {
        Some(_) => Err(root.get("spec").get("ports").problem("each name, and each pair of protocol and port, once")),
        None => Ok(ports),
    }
}

/// Everything a Service can ask for that is not done yet.
fn note_unserved(root: &Field<'_>, unserved: &mut Vec<String>) -> Result<(), Problem> {
    let spec = root.get("spec");
    for item in spec.get("ports").items()? {
        if let Some(port) = item.get("nodePort").port().unwrap_or(None) {
            unserved.push(format!("spec.ports.nodePort: {port}"));
        }
    }
    for item in spec.get("externalIPs").items()? {
        unserved.push(format!("spec.externalIPs: {}", item.text()?.unwrap_or_default()));
    }
    for item in root.get("status").get("loadBalancer").get("ingress").items()? {
        if let Some(ip) = item.get("ip").text()? {
            unserved.push(format!("status.loadBalancer.ingress: {ip}"));
        }
    }
    for (key, default) in
        [("sessionAffinity", "None"), ("internalTrafficPolicy", "Cluster"), ("externalTrafficPolicy", "Cluster")]
    {
        if let Some(value) = spec.get(key).text()?.filter(|value| !value.is_empty() && *value != default) {
            unserved.push(format!("spec.{key}: {value}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn web() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "192.168.0.10", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        })
    }

    fn with(path: &[&str], value: Value) -> Value {
        let mut object = web();
        let mut place = &mut object;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        object
    }

    #[test]
    fn a_service_is_its_address_and_ports() {
        let service = Service::from_json(&web()).unwrap();
        assert_eq!(service.cluster_ip, Some([192, 168, 0, 10].into()));
        assert_eq!(service.ports, [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }]);
        assert!(service.unserved.is_empty());
    }

    #[test]
    fn annotation_churn_makes_an_equal_value() {
        let churned = with(&["metadata", "annotations"], json!({"a": "b"}));
        assert_eq!(Service::from_json(&churned), Service::from_json(&web()));
    }

    #[test]
    fn services_without_a_virtual_address_are_valid_and_serve_nothing() {
        for object in [
            with(&["spec", "clusterIP"], json!("None")),
            with(&["spec", "clusterIP"], json!("")),
            with(&["spec", "clusterIP"], json!(null)),
            with(&["spec", "type"], json!("ExternalName")),
            with(&["metadata", "labels"], json!({"service.kubernetes.io/headless": ""})),
            with(&["metadata", "labels"], json!({"service.kubernetes.io/service-proxy-name": "other"})),
        ] {
            let service = Service::from_json(&object).unwrap();
            assert_eq!((service.cluster_ip, service.ports.len()), (None, 0), "{object}");
        }
    }

    #[test]
    fn what_is_not_served_yet_is_told_and_the_cluster_ip_is_served() {
        let mut object = web();
        object["spec"]["sessionAffinity"] = json!("ClientIP");
        object["spec"]["externalIPs"] = json!(["10.4.7.10"]);
        object["spec"]["externalTrafficPolicy"] = json!("Local");
        object["spec"]["clusterIPs"] = json!(["192.168.0.10", "fd00::10"]);
        object["spec"]["ports"] = json!([
            {"name": "http", "port": 80, "nodePort": 30_080},
            {"name": "sig", "port": 90, "protocol": "SCTP"},
        ]);
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}});
        let service = Service::from_json(&object).unwrap();
        assert_eq!(service.ports.len(), 1);
        assert_eq!(
            service.unserved,
            [
                "spec.clusterIPs: fd00::10",
                "port 90: protocol SCTP",
                "spec.ports.nodePort: 30080",
                "spec.externalIPs: 10.4.7.10",
                "status.loadBalancer.ingress: 10.4.7.99",
                "spec.sessionAffinity: ClientIP",
                "spec.externalTrafficPolicy: Local",
            ]
        );
    }

    #[test]
    fn malformed_services_are_refused_with_the_field() {
        let two = json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]);
        for (path, value, field) in [
            (&["kind"][..], json!("Pod"), "kind"),
            (&["spec"], json!(null), "spec"),
            (&["spec", "clusterIP"], json!("192.168.0"), "spec.clusterIP"),
            (&["spec", "clusterIP"], json!("127.0.0.1"), "spec.clusterIP"),
            (&["spec", "clusterIP"], json!(7), "spec.clusterIP"),
            (&["spec", "ports"], json!({}), "spec.ports"),
            (&["spec", "ports"], json!([{"port": "80"}]), "spec.ports[0].port"),
            (&["spec", "ports"], json!([{}]), "spec.ports[0].port"),
            (&["spec", "ports"], json!([{"port": 80, "protocol": "tcp"}]), "spec.ports[0].protocol"),
            (&["spec", "ports"], json!([{"port": 80}, {"port": 81}]), "spec.ports[0].name"),
            (&["spec", "ports"], two, "spec.ports"),
            (&["metadata", "name"], json!("a/b"), "metadata.name"),
        ] {
            let problem = Service::from_json(&with(path, value.clone())).unwrap_err();
            assert_eq!(problem.field, field, "{value}");
        }
    }
}
