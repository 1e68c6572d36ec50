//! `Node`: what the cluster says of the node that this runs on.
//!
//! Invariant: as with Services, equal values need the same of us: a heartbeat, which changes conditions and times only, makes an equal
//! value. Of a list the first element of each family counts, as for kube-proxy; what cannot be read is left out and named.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use cluster::Problem;
use netstate::family::PerFamily;
use netstate::{IpFamily, Prefix};
use serde_json::Value;

use super::field::{Field, is_unusable, keep, parse_network, skip};
use super::key::Kind;
use super::{ObjectName, cluster_name};

/// Label of the zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Taint of a node that the cluster's autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node; see the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: ObjectName,
    /// Its zone, if it has one.
    pub(crate) zone: Option<Arc<str>>,
    /// The networks of its Pods (`spec.podCIDRs`).
    pub(crate) pods: PerFamily<Option<Prefix>>,
    /// Its addresses: those of type InternalIP before those of type ExternalIP.
    pub(crate) addresses: PerFamily<Option<IpAddr>>,
    /// Why no new traffic from outside is to come to it, if so.
    pub(crate) leaving: Option<Leaving>,
    /// Elements that cannot be read and are left out, as `field: value; accepted: form`.
    pub(crate) skipped: Vec<String>,
}

/// Why a node gets no new traffic from outside, as kube-proxy judges it (KEP-3836).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It is being deleted.
    Deleted,
    /// The cluster's autoscaler is about to remove it.
    Tainted,
}

impl fmt::Display for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deleted => f.write_str("metadata.deletionTimestamp is set"),
            Self::Tainted => write!(f, "spec.taints has {TO_BE_DELETED}"),
        }
    }
}

impl Node {
    /// Reads a Node of v1.
    ///
    /// # Errors
    /// When it is no Node or has no name.
    pub(crate) fn from_json(object: &Value) -> Result<Self, Problem> {
        let root = Field::root(object);
        root.expect_kind(Kind::Node)?;
        let name = cluster_name(&root)?;
        let mut skipped = Vec::new();
        let zone = or_none(&mut skipped, root.get("metadata").get("labels").get(ZONE).text());
        let pods = pods(&root.get("spec"), &mut skipped);
        let addresses = addresses(&root.get("status").get("addresses"), &mut skipped);
        let leaving = leaving(&root, &mut skipped);
        let zone = zone.filter(|zone| !zone.is_empty()).map(Arc::from);
        Ok(Self { name, zone, pods, addresses, leaving, skipped })
    }
}

/// The value; why it cannot be read is noted.
fn or_none<T>(skipped: &mut Vec<String>, value: Result<Option<T>, Problem>) -> Option<T> {
    value.unwrap_or_else(|problem| {
        skip(skipped, &problem);
        None
    })
}

/// The elements of a list; that it is none is noted.
fn items<'a>(field: &Field<'a>, skipped: &mut Vec<String>) -> Vec<Field<'a>> {
    or_none(skipped, field.items().map(Some)).unwrap_or_default()
}

/// The first of each family.
fn first<T: Copy>(found: &[T], family: impl Fn(&T) -> IpFamily) -> PerFamily<Option<T>> {
    PerFamily::from_fn(|wanted| found.iter().copied().find(|one| family(one) == wanted))
}

fn pods(spec: &Field<'_>, skipped: &mut Vec<String>) -> PerFamily<Option<Prefix>> {
    let mut found = Vec::new();
    // The older field has the first of them.
    let older = spec.get("podCIDR");
    let listed = items(&spec.get("podCIDRs"), skipped);
    let fields = if listed.is_empty() && !older.is_absent() { vec![older] } else { listed };
    for field in &fields {
        keep(&mut found, skipped, network(field));
    }
    first(&found, Prefix::family)
}

fn network(field: &Field<'_>) -> Result<Prefix, Problem> {
    field.text()?.and_then(parse_network).ok_or_else(|| field.problem("a network such as 172.7.21.0/24"))
}

fn addresses(field: &Field<'_>, skipped: &mut Vec<String>) -> PerFamily<Option<IpAddr>> {
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    for item in items(field, skipped) {
        match item.get("type").text() {
            Ok(Some("InternalIP")) => keep(&mut internal, skipped, address(&item.get("address"))),
            Ok(Some("ExternalIP")) => keep(&mut external, skipped, address(&item.get("address"))),
            // Names are DNS's.
            Ok(_) => {}
            Err(problem) => skip(skipped, &problem),
        }
    }
    internal.append(&mut external);
    first(&internal, |addr| IpFamily::of(*addr))
}

fn address(field: &Field<'_>) -> Result<IpAddr, Problem> {
    let accepted = "a unicast address that is no loopback, link-local or IPv4-mapped one";
    field.address()?.filter(|addr| !is_unusable(*addr)).ok_or_else(|| field.problem(accepted))
}

fn leaving(root: &Field<'_>, skipped: &mut Vec<String>) -> Option<Leaving> {
    if !root.get("metadata").get("deletionTimestamp").is_absent() {
        return Some(Leaving::Deleted);
    }
    for taint in items(&root.get("spec").get("taints"), skipped) {
        if or_none(skipped, taint.get("key").text()) == Some(TO_BE_DELETED) {
            return Some(Leaving::Tainted);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "hdss7-21.host.com", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDR": "172.7.21.0/24", "podCIDRs": ["172.7.21.0/24", "fd07:21::/64"]},
            "status": {
                "addresses": [
                    {"type": "ExternalIP", "address": "203.0.113.21"},
                    {"type": "Hostname", "address": "hdss7-21.host.com"},
                    {"type": "InternalIP", "address": "10.4.7.21"},
                    {"type": "InternalIP", "address": "10.4.7.121"},
                    {"type": "ExternalIP", "address": "fd04:7::21"},
                ],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-26T00:00:00Z"}],
            },
        })
    }

    fn with(change: impl FnOnce(&mut Value)) -> Node {
        let mut object = node();
        change(&mut object);
        Node::from_json(&object).unwrap()
    }

    #[test]
    fn a_node_is_its_zone_its_pod_networks_and_its_addresses() {
        let node = with(|_| {});
        assert_eq!((node.name.to_string().as_str(), node.zone.as_deref()), ("hdss7-21.host.com", Some("z1")));
        assert_eq!(node.pods, PerFamily::new("172.7.21.0/24".parse().ok(), "fd07:21::/64".parse().ok()));
        let addresses = PerFamily::new("10.4.7.21".parse().ok(), "fd04:7::21".parse().ok());
        assert_eq!(node.addresses, addresses, "an internal one before an external one");
        assert_eq!((node.leaving, node.skipped.len()), (None, 0));
        let older = with(|node| node["spec"] = json!({"podCIDR": "172.7.21.0/24"}));
        assert_eq!(older.pods, PerFamily::only(IpFamily::V4, "172.7.21.0/24".parse().unwrap()));
        let new = with(|node| *node = json!({"kind": "Node", "metadata": {"name": "hdss7-21.host.com"}}));
        assert_eq!((new.zone, new.pods, new.addresses), (None, PerFamily::default(), PerFamily::default()));
        assert!(new.skipped.is_empty(), "networks that are not given yet: {:?}", new.skipped);
    }

    #[test]
    fn a_heartbeat_makes_an_equal_value() {
        let beaten = with(|node| {
            node["metadata"]["resourceVersion"] = json!("7");
            node["metadata"]["annotations"] = json!({"a": "b"});
            node["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-11-26T00:05:00Z");
            node["status"]["images"] = json!([{"names": ["x"]}]);
        });
        assert_eq!(beaten, with(|_| {}));
    }

    /// KEP-3836; a label that keeps load balancers' controllers away, or a cordon, is none.
    #[test]
    fn a_node_that_is_being_deleted_or_that_the_autoscaler_removes_is_leaving() {
        let deleted = with(|node| node["metadata"]["deletionTimestamp"] = json!("2026-11-26T00:00:00Z"));
        assert_eq!(deleted.leaving, Some(Leaving::Deleted));
        let taints = |key: &str| with(|node| node["spec"]["taints"] = json!([{"key": "x"}, {"key": key}]));
        assert_eq!(taints("ToBeDeletedByClusterAutoscaler").leaving, Some(Leaving::Tainted));
        assert_eq!(taints("node.kubernetes.io/unschedulable").leaving, None);
        let excluded = with(|node| {
            node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] = json!("");
        });
        assert_eq!(excluded.leaving, None);
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_named() {
        for (pointer, value, field) in [
            ("/spec/podCIDRs", json!(["172.7.21.0", "fd07:21::/64"]), "spec.podCIDRs[0]"),
            ("/spec/podCIDRs", json!("172.7.21.0/24"), "spec.podCIDRs"),
            ("/spec/taints", json!([{"key": 7}]), "spec.taints[0].key"),
            ("/status/addresses", json!([{"type": "InternalIP", "address": "x"}]), "status.addresses[0].address"),
            ("/status/addresses", json!({}), "status.addresses"),
            (
                "/metadata/labels",
                json!({"topology.kubernetes.io/zone": 1}),
                "metadata.labels.topology.kubernetes.io/zone",
            ),
        ] {
            let node = with(|node| {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                node.pointer_mut(parent).unwrap()[key] = value.clone();
            });
            assert_eq!(node.skipped.len(), 1, "{pointer} {value}: {:?}", node.skipped);
            assert!(node.skipped[0].starts_with(&format!("{field}: ")), "{:?}", node.skipped);
        }
        let named = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name}});
        for junk in [named("Pod", "a"), json!({"kind": "Node"}), named("Node", "a/b")] {
            assert!(Node::from_json(&junk).is_err(), "{junk}");
        }
    }
}
