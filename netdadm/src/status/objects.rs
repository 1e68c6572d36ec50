//! What the API server knows of others: kubelets by their Nodes, managers by the Lease of the one that leads.
//!
//! Invariant: a Lease that is not renewed leads nowhere, whoever holds it.

use std::time::Duration;

use cluster::kubernetes::Client;
use serde::Deserialize;

use super::row::{Component, Place, Row, State};
use crate::topology::{Host, Role, Topology};

/// As far as clocks of a cluster may differ until a Lease says nothing any more.
const AHEAD: Duration = Duration::from_secs(60);

/// Where the Nodes are.
pub(super) const NODES: &str = "/api/v1/nodes";

/// Nodes, as far as they are asked.
#[derive(Debug, Deserialize)]
pub(super) struct Nodes {
    items: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    metadata: Named,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    conditions: Vec<Condition>,
    node_info: NodeInfo,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeInfo {
    kubelet_version: String,
    container_runtime_version: String,
}

#[derive(Debug, Deserialize)]
struct Lease {
    spec: Holding,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Holding {
    holder_identity: String,
    lease_duration_seconds: u64,
    renew_time: String,
}

/// Rows of the kubelets.
pub(super) fn kubelets(topology: &Topology, nodes: &Nodes) -> Vec<Row> {
    topology.of(Role::Node).map(|host| kubelet(topology, host, nodes)).collect()
}

fn kubelet(topology: &Topology, host: &Host, nodes: &Nodes) -> Row {
    let place = Place { host: host.name.value.clone(), component: Component::Kubelet };
    let long = topology.domain.as_ref().map(|domain| format!("{}.{}", host.name.value, domain.value));
    let named = |node: &&Node| node.metadata.name == host.name.value || Some(&node.metadata.name) == long.as_ref();
    let Some(node) = nodes.items.iter().find(named) else {
        return Row::new(place, State::Failed, "it has no Node: it never registered, or under another name");
    };
    let wanted = host.versions.or(&topology.versions).kubernetes.map(|wanted| wanted.value.to_string());
    let info = &node.status.node_info;
    let version = info.kubelet_version.trim_start_matches('v').to_owned();
    let ready = node.status.conditions.iter().find(|condition| condition.kind == "Ready");
    let (state, mut found) = match ready.map(|condition| (condition.status.as_str(), condition)) {
        Some(("True", _)) => (State::Ok, format!("Node Ready, {}", info.container_runtime_version)),
        Some(("False", condition)) => (State::Failed, format!("Node not Ready: {}", condition.message)),
        Some((_, condition)) => {
            (State::Failed, format!("Node unknown, the kubelet says nothing: {}", condition.message))
        }
        None => (State::Waiting, "Node without a condition yet".to_owned()),
    };
    let without = node
        .status
        .conditions
        .iter()
        .find(|condition| condition.kind == "NetworkUnavailable" && condition.status == "True");
    if let Some(condition) = without {
        found = format!("{found}; its network is not there: {}", condition.message);
    }
    if let Some(wanted) = wanted.filter(|wanted| *wanted != version) {
        found = format!("{found}, the topology has {wanted}");
    }
    Row::new(place, state, found).of_version(version)
}

/// The row of the manager `component`, at this time since 1970.
pub(super) async fn manager(client: &Client, component: Component, now: Duration) -> Row {
    let place = Place { host: "-".to_owned(), component };
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{}", component.name());
    match client.get::<Lease>(&path).await {
        Ok(lease) => leader(place, &lease.spec, now),
        Err(error) if error.status() == Some(404) => Row::new(place, State::Failed, "none has ever led: no Lease"),
        Err(error) => Row::new(place, State::Unknown, error.message),
    }
}

fn leader(place: Place, holding: &Holding, now: Duration) -> Row {
    // `<host>_<uuid>` (leaderelection/resourcelock).
    let host = holding.holder_identity.split('_').next().unwrap_or_default();
    if host.is_empty() {
        return Row::new(place, State::Failed, "none leads: the last one gave its Lease back");
    }
    // Texts of one form are in the order of their times.
    let limit = cluster::time::rfc3339(now.saturating_sub(Duration::from_secs(holding.lease_duration_seconds)));
    let renewed = holding.renew_time.get(..19).unwrap_or_default();
    if limit.get(..19).is_some_and(|limit| renewed < limit) {
        return Row::new(
            place,
            State::Failed,
            format!("none leads: {host} renewed its Lease last at {}", holding.renew_time),
        );
    }
    let ahead = cluster::time::rfc3339(now.saturating_add(AHEAD));
    if ahead.get(..19).is_some_and(|ahead| renewed > ahead) {
        let found = format!(
            "{host} renewed its Lease at {}, which is yet to come: its clock or this one is wrong, so that nothing is known of it",
            holding.renew_time
        );
        return Row::new(place, State::Unknown, found);
    }
    Row::new(place, State::Ok, format!("{host} leads"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        crate::check::text(include_str!("../../../configs/clusters/reference.yaml")).topology.unwrap()
    }

    #[test]
    fn a_kubelet_is_what_its_node_says() {
        let nodes: Nodes = serde_json::from_str(
            r#"{"items":[{"metadata":{"name":"hdss7-21.host.com"},"status":{"conditions":[{"type":"Ready","status":"True"},
            {"type":"NetworkUnavailable","status":"True","message":"no lease"}],"nodeInfo":{"kubeletVersion":"v1.20.4","containerRuntimeVersion":"containerd://1.6.20"}}}]}"#,
        )
        .unwrap();
        let rows = kubelets(&topology(), &nodes);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].state, State::Ok);
        assert_eq!(
            rows[0].found,
            "Node Ready, containerd://1.6.20; its network is not there: no lease, the topology has 1.20.2"
        );
        assert_eq!(rows[1].state, State::Failed);
        assert!(rows[1].found.contains("no Node"), "{rows:?}");
    }

    #[test]
    fn conditions_are_known_by_their_kind_and_their_status() {
        let of = |conditions: &str| {
            let node = format!(
                r#"{{"items":[{{"metadata":{{"name":"other"}}}},{{"metadata":{{"name":"hdss7-21"}},"status":{{"conditions":[{conditions}]}}}}]}}"#
            );
            let row = kubelets(&topology(), &serde_json::from_str(&node).unwrap()).remove(0);
            (row.state, row.found.split(", the topology").next().unwrap().to_owned())
        };
        let other = r#"{"type":"DiskPressure","status":"True"}"#;
        let condition =
            |kind: &str, status: &str| format!(r#"{other},{{"type":"{kind}","status":"{status}","message":"why"}}"#);
        assert_eq!(of(&condition("Ready", "False")), (State::Failed, "Node not Ready: why".to_owned()));
        let unknown = "Node unknown, the kubelet says nothing: why".to_owned();
        assert_eq!(of(&condition("Ready", "Unknown")), (State::Failed, unknown));
        assert_eq!(of(other), (State::Waiting, "Node without a condition yet".to_owned()));
        let without = condition("NetworkUnavailable", "False");
        assert_eq!(of(&without).1, "Node without a condition yet");
        assert!(of(&condition("NetworkUnavailable", "True")).1.ends_with("its network is not there: why"));
    }

    #[test]
    fn a_lease_that_is_not_renewed_leads_nowhere() {
        let now = Duration::from_secs(951_782_399);
        let held = |identity: &str, renewed: &str| {
            let holding =
                Holding { holder_identity: identity.into(), lease_duration_seconds: 15, renew_time: renewed.into() };
            leader(Place { host: "-".into(), component: Component::KubeScheduler }, &holding, now)
        };
        assert_eq!(held("hdss7-11_9f", "2000-02-28T23:59:50.123456Z").found, "hdss7-11 leads");
        let old = held("hdss7-11_9f", "2000-02-28T23:59:40.123456Z");
        assert!(old.state == State::Failed && old.found.starts_with("none leads: hdss7-11 renewed"), "{old:?}");
        assert_eq!(held("", "").state, State::Failed);
        for (second, state) in [(44, State::Ok), (43, State::Failed)] {
            let renewed = format!("2000-02-28T23:59:{second}.000000Z");
            assert_eq!(held("a", &renewed).state, state, "{renewed}");
        }
        for (second, state) in [(59, State::Ok), (60, State::Unknown)] {
            let renewed = format!("2000-02-29T00:00:{second}.000000Z");
            assert_eq!(held("a", &renewed).state, state, "{renewed}");
        }
        // A clock that is a little ahead is nobody's fault; renewed by one that is far ahead it stands whoever has died.
        assert_eq!(held("hdss7-11_9f", "2000-02-29T00:00:09.000000Z").state, State::Ok);
        let ahead = held("hdss7-11_9f", "2000-02-29T01:00:00.000000Z");
        assert_eq!(ahead.state, State::Unknown);
        assert!(
            ahead
                .found
                .starts_with("hdss7-11 renewed its Lease at 2000-02-29T01:00:00.000000Z, which is yet to come: ")
        );
    }
}
