//! What our programs ask the API server for on a cluster, and what their roles allow.
//!
//! Invariant: the audit log is that of the whole life of the cluster, the roles are those that were applied.

use anyhow::{Result, ensure};
use lab::eventually;
use serde_json::json;

use super::step;
use crate::kube_cluster::manifests::{SETS, objects, rights};
use crate::kube_cluster::{LIMIT, NODES};

pub(crate) fn rights_of_our_accounts_are_exactly_the_calls_of_the_whole_run() -> Result<()> {
    step(|cluster| {
        // What an operator must act on, so that netd reports it.
        let path = format!("/api/v1/nodes/{}", cluster.host(NODES[0])?.name());
        let overwrite =
            |value| json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip-overwrite": value}}});
        cluster.server.patch(&path, &overwrite(json!("here")))?;
        eventually(LIMIT, || {
            let events = cluster.items("/api/v1/namespaces/default/events")?;
            ensure!(events.iter().any(|event| event["reason"] == "InvalidAnnotation"), "{events:?}");
            Ok(())
        })?;
        cluster.server.patch(&path, &overwrite(json!(null)))?;
        let objects = objects("reference")?;
        for name in SETS {
            eventually(LIMIT, || {
                let used = rights::used(&cluster.audit()?, name)?;
                let allowed = rights::served_by_1_20(rights::allowed(&objects, name));
                ensure!(used == allowed, "{name} used {used:?} and may {allowed:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
