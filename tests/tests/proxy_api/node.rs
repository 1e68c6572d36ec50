//! The own Node through the API: its zone decides, and load balancers are sent elsewhere while it leaves.

use anyhow::{Result, ensure};
use lab::eventually;
use lab::kubernetes::{ApiServer, Faults, Release};
use serde_json::{Value, json};

use crate::proxy::node::ask;
use crate::proxy::{Nodes, SOON};
use crate::{answered_by, service, slice, start};

const NODE: &str = "/api/v1/nodes/hdss7-21.host.com";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Waits until this node may have clients of load balancers, or may not; in either case the program itself is well.
fn is_eligible(nodes: &Nodes, eligible: bool) -> Result<()> {
    let host = nodes.node()?;
    eventually(SOON, || {
        let (status, body) = ask(host, "healthz")?;
        ensure!(status == if eligible { 200 } else { 503 } && body["nodeEligible"] == eligible, "{status} {body}");
        Ok(())
    })?;
    for path in ["livez", "readyz"] {
        let (status, body) = ask(host, path)?;
        ensure!(status == 200 && body["healthy"] == true, "{path}: {status} {body}");
    }
    Ok(())
}

pub(crate) fn labels_taints_and_the_end_of_the_node_are_followed() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::Modern)?, Nodes::start()?);
    let own = json!({"apiVersion": "v1", "kind": "Node", "spec": {},
        "metadata": {"name": "hdss7-21.host.com", "labels": {ZONE: "z1"}, "finalizers": ["lab/held"]}});
    server.put(&own)?;
    server.put(&service("web", "192.168.0.10"))?;
    let mut zoned = slice(Release::Modern, &["172.7.21.2", "172.7.22.2"]);
    for (at, zone) in [(0, "z1"), (1, "z2")] {
        zoned["endpoints"][at]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    server.put(&zoned)?;
    let faults = Faults::start(&server, nodes.node()?)?;
    let _proxy = start(&nodes, &faults.kubeconfig())?;
    answered_by(&nodes, &["172.7.21.2"])?;
    let label = |zone: Value| server.patch(NODE, &json!({"metadata": {"labels": {ZONE: zone}}}));
    label(json!("z2"))?;
    answered_by(&nodes, &["172.7.22.2"])?;
    label(Value::Null)?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    is_eligible(&nodes, true)?;
    let taint = |key: &str| {
        let taints = json!([{"key": key, "effect": "NoSchedule"}]);
        server.patch(NODE, &json!({"spec": {"taints": taints}}))
    };
    taint("ToBeDeletedByClusterAutoscaler")?;
    is_eligible(&nodes, false)?;
    taint("node.kubernetes.io/not-ready")?;
    is_eligible(&nodes, true)?;
    // Deleted, and held by its finalizer.
    server.delete(NODE)?;
    is_eligible(&nodes, false)?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    server.patch(NODE, &json!({"metadata": {"finalizers": null}}))?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["ineligible"] == "Node hdss7-21.host.com is gone from the source", "{}", status["ineligible"]);
        Ok(())
    })?;
    is_eligible(&nodes, false)?;
    server.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hdss7-21.host.com"}}))?;
    is_eligible(&nodes, true)
}
