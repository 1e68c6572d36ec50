//! Services all of whose Pods are being deleted: they serve until they have ended, where kube-proxy lets them.
//!
//! Invariant: the Pods say of themselves that they are ready until their end, and have a grace period longer than the case.

use anyhow::{Result, ensure};
use lab::{echo, eventually};
use serde_json::json;

use super::ask::{Tcp, served, served_at, unanswered};
use super::server::{Server, Wanted};
use super::{Lab, SOON, lab};
use crate::kube_cluster::NODES;

/// Pods `NAME-a` and `NAME-b`, on these nodes.
fn pods(lab: &Lab, service: &str, nodes: &[&'static str]) -> Result<Vec<Server>> {
    let letter = |node: &str| if node == NODES[0] { "a" } else { "b" };
    let named: Vec<_> = nodes.iter().map(|node| (format!("{service}-{}", letter(node)), *node)).collect();
    named.iter().map(|(name, node)| lab.run(&Wanted::pod(name, node).of(service).lasting())).collect()
}

/// Deletes them, and waits until the slices of the Service call each of them terminating.
fn terminate(lab: &Lab, service: &str, pods: &[Server]) -> Result<()> {
    pods.iter().try_for_each(|pod| pod.terminate(lab))?;
    eventually(SOON, || {
        let path = format!(
            "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name={service}"
        );
        let slices = lab.cluster.items(&path)?;
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let terminating =
            endpoints.filter(|one| one["conditions"]["terminating"] == true && one["conditions"]["serving"] == true);
        let count = terminating.count();
        ensure!(count == pods.len(), "{count} endpoints are terminating and serve: {slices:?}");
        Ok(())
    })
}

pub(crate) fn should_fail_health_check_node_port_if_there_are_only_terminating_endpoints() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("checked", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))?;
    let pods = pods(&lab, "checked", &[NODES[0]])?;
    let outside = lab.outside()?;
    let check = service.spec()["healthCheckNodePort"].as_u64().unwrap_or_default();
    let [here, _] = lab.at_nodes(u16::try_from(check)?)?;
    let healthy = || echo::fetch(&outside, here, "/healthz", SOON);
    let page = eventually(SOON, healthy)?;
    ensure!(page.contains("\"localEndpoints\": 1"), "{page}");
    let [to, _] = service.at_nodes()?;
    served(outside, Tcp, to, &["checked-a"])?;
    terminate(&lab, "checked", &pods)?;
    eventually(SOON, || {
        let said = healthy().err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("503"), "{said:?}");
        Ok(())
    })?;
    served(outside, Tcp, to, &["checked-a"])?;
    pods.iter().try_for_each(|pod| pod.end(&lab))
}

pub(crate) fn should_fallback_to_terminating_endpoints_with_internal_traffic_policy_cluster() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("fallback", json!({}))?;
    let pods = pods(&lab, "fallback", &NODES)?;
    let both = ["fallback-a", "fallback-b"];
    let clients = [lab.at("a1")?, lab.at("b1")?, lab.at(NODES[0])?];
    let to = service.at(80)?;
    clients.iter().try_for_each(|client| served(*client, Tcp, to, &both))?;
    terminate(&lab, "fallback", &pods)?;
    clients.iter().try_for_each(|client| served(*client, Tcp, to, &both))?;
    // One that is ready is preferred to those.
    service.select(&["b2"])?;
    clients.iter().try_for_each(|client| served(*client, Tcp, to, &["b2"]))?;
    pods.iter().try_for_each(|pod| pod.end(&lab))
}

pub(crate) fn should_fallback_to_terminating_endpoints_with_external_traffic_policy_cluster() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("fallback-out", json!({"type": "NodePort"}))?;
    let pods = pods(&lab, "fallback-out", &NODES)?;
    let both = ["fallback-out-a", "fallback-out-b"];
    terminate(&lab, "fallback-out", &pods)?;
    for client in [lab.at("a1")?, lab.outside()?] {
        served_at(client, Tcp, &service.at_nodes()?, &both)?;
    }
    pods.iter().try_for_each(|pod| pod.end(&lab))
}

pub(crate) fn should_fallback_to_local_terminating_endpoints_with_external_traffic_policy_local() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("fallback-local", json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    let pods = pods(&lab, "fallback-local", &[NODES[0]])?;
    let [here, there] = service.at_nodes()?;
    for round in ["ready", "terminating"] {
        if round == "terminating" {
            terminate(&lab, "fallback-local", &pods)?;
        }
        for client in [lab.at("a1")?, lab.at("b1")?, lab.outside()?] {
            served(client, Tcp, here, &["fallback-local-a"])?;
        }
        // The node without an endpoint answers nobody from elsewhere.
        for client in [lab.outside()?, lab.at("a1")?] {
            unanswered(client, Tcp, there)?;
        }
    }
    pods.iter().try_for_each(|pod| pod.end(&lab))
}
