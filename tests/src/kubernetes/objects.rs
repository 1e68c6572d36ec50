//! Where an object lies in the API: its path from its kind, namespace and name.
//!
//! Invariant: pure; a kind that is not listed as one of the cluster is of a namespace, `default` without one.

use anyhow::{Context, Result};
use serde_json::Value;

/// Kinds of the cluster.
const OF_CLUSTER: [&str; 8] = [
    "Node",
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "ServiceCIDR",
    "IPAddress",
    "PriorityClass",
    "CustomResourceDefinition",
];

/// A place in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    /// `/api/v1/namespaces/default/services`
    pub(crate) collection: String,
    /// `web`
    pub(crate) name: String,
    /// `default`; none for an object of the cluster.
    pub(crate) namespace: Option<String>,
}

impl Path {
    pub(crate) fn of(object: &Value) -> Result<Self> {
        let version = text(object, "/apiVersion").context("an object without apiVersion")?;
        let kind = text(object, "/kind").context("an object without kind")?;
        let name = text(object, "/metadata/name").context("an object without a name")?.to_owned();
        let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let namespace =
            (!OF_CLUSTER.contains(&kind)).then(|| text(object, "/metadata/namespace").unwrap_or("default").to_owned());
        let within = namespace.as_ref().map(|name| format!("/namespaces/{name}")).unwrap_or_default();
        Ok(Self { collection: format!("{root}{within}/{}", plural(kind)), name, namespace })
    }

    /// `/api/v1/namespaces/default/services/web`
    pub(crate) fn whole(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }
}

/// The word in the path.
fn plural(kind: &str) -> String {
    let word = kind.to_lowercase();
    match word.as_bytes() {
        _ if word == "endpoints" => word,
        [.., b'c', b'y'] => format!("{}ies", word.trim_end_matches('y')),
        [.., b's'] => format!("{word}es"),
        _ => format!("{word}s"),
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(version: &str, kind: &str, namespace: Option<&str>) -> String {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = namespace.into();
        }
        Path::of(&object).unwrap().whole()
    }

    #[test]
    fn objects_lie_below_their_group_and_namespace() {
        assert_eq!(path("v1", "Node", None), "/api/v1/nodes/x");
        assert_eq!(path("v1", "Service", None), "/api/v1/namespaces/default/services/x");
        assert_eq!(path("v1", "Endpoints", Some("kube-system")), "/api/v1/namespaces/kube-system/endpoints/x");
        assert_eq!(
            path("discovery.k8s.io/v1", "EndpointSlice", Some("a")),
            "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/x"
        );
        assert_eq!(
            path("networking.k8s.io/v1", "NetworkPolicy", None),
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/x"
        );
        assert_eq!(path("networking.k8s.io/v1", "IPAddress", None), "/apis/networking.k8s.io/v1/ipaddresses/x");
        assert_eq!(
            path("rbac.authorization.k8s.io/v1", "ClusterRole", None),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/x"
        );
    }
}
