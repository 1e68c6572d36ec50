//! Host ports of Pods.
//!
//! Invariant: asked from a machine that is no node, at the node's own address.

use anyhow::{Result, ensure};
use lab::eventually;
use serde_json::json;

use super::step;
use crate::cni_node::{ask, image};
use crate::kube_cluster::pods::{self, PORT};
use crate::kube_cluster::{LIMIT, NODES, OUTSIDE};

pub(crate) fn a_host_port_leads_to_its_pod_and_ends_with_it() -> Result<()> {
    step(|cluster| {
        let outside = cluster.host(OUTSIDE)?;
        let urls = NODES.map(|name| cluster.host(name).and_then(lab::Host::address).map(|at| format!("{at}:8088")));
        for (number, name) in NODES.iter().enumerate() {
            let container = json!({"name": "web", "image": image::NAME, "imagePullPolicy": "Never",
                "command": pods::command(),
                "ports": [{"containerPort": PORT, "hostPort": 8088}]});
            cluster.apply(&json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("port-{number}"), "labels": {"app": "port"}},
                "spec": {"nodeName": cluster.host(name)?.name(), "terminationGracePeriodSeconds": 1, "containers": [container]}}))?;
        }
        cluster.pods_of("app=port", NODES.len())?;
        let own = outside.address()?.to_string();
        for (number, url) in urls.iter().enumerate() {
            let url = url.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let said = eventually(LIMIT, || ask(outside, url))?;
            ensure!(said == format!("{own} port-{number}"), "{url}: {said}");
        }
        for number in 0..NODES.len() {
            cluster.server.delete(&format!("/api/v1/namespaces/default/pods/port-{number}"))?;
        }
        cluster.pods_of("app=port", 0)?;
        for (name, url) in NODES.iter().zip(&urls) {
            let url = url.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            eventually(LIMIT, || {
                ensure!(ask(outside, url).is_err(), "{url} is answered");
                let table = cluster.host(name)?.run(&["nft", "list", "table", "inet", "netd-ports"])?.stdout;
                ensure!(!table.contains("8088"), "{table}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
