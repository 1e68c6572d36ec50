//! Clients that stay at the Pod that they were given first.
//!
//! Invariant: a client that stays is seen by one Pod alone over many connections, one that does not by all of them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::eventually;
use serde_json::json;

use super::ask::{At, By, Tcp, Udp, answers, once, served};
use super::{Lab, SOON, lab};
use crate::kube_cluster::NODES;

const PODS: [&str; 3] = ["a1", "a2", "b1"];

/// Waits until the client is answered by one Pod alone, and gives it.
fn stays(from: At<'_>, by: By, to: SocketAddr) -> Result<String> {
    eventually(SOON, || {
        let found = answers(from, by, to)?;
        ensure!(found.len() == 1, "{by:?} {to} is answered by {found:?}");
        Ok::<_, anyhow::Error>(found.into_iter().next().unwrap_or_default())
    })
}

fn places(lab: &Lab, kind: &str, service: &super::service::Service<'_>) -> Result<Vec<SocketAddr>> {
    Ok(if kind == "NodePort" { lab.at_nodes(service.node_port(0)?)?.to_vec() } else { vec![service.at(80)?] })
}

fn works(name: &str, kind: &str, by: By) -> Result<()> {
    let lab = lab()?;
    let port =
        json!({"port": 80, "targetPort": super::server::PORT, "protocol": if by == Tcp { "TCP" } else { "UDP" }});
    let service = lab.service(name, json!({"type": kind, "sessionAffinity": "ClientIP", "ports": [port]}))?;
    service.select(&PODS)?;
    for to in places(&lab, kind, &service)? {
        let client = if kind == "NodePort" { lab.outside()? } else { lab.at("b2")? };
        let first = stays(client, by, to)?;
        ensure!(stays(client, by, to)? == first, "the client was moved");
    }
    Ok(())
}

pub(crate) fn should_have_session_affinity_work_for_service_with_type_clusterip() -> Result<()> {
    works("sticky-address", "ClusterIP", Tcp)
}

pub(crate) fn should_have_session_affinity_work_for_nodeport_service() -> Result<()> {
    works("sticky-port", "NodePort", Tcp)
}

pub(crate) fn should_function_for_client_ip_based_session_affinity_udp() -> Result<()> {
    works("sticky-datagrams", "ClusterIP", Udp)
}

/// The clients of a Service that the first node remembers, as the nft tool lists them.
fn remembered(lab: &Lab, service: &str) -> Result<Vec<String>> {
    let text = lab.cluster.host(NODES[0])?.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
    let of_service = format!("clients/default/{service}/");
    let sets = text.split("\n\tset ").filter(|set| set.starts_with(&of_service));
    Ok(sets.filter_map(|set| Some(set.split_once("elements = {")?.1.to_owned())).collect())
}

/// A client that was away for longer than the time is not remembered: after enough times it has met another Pod.
fn times_out(name: &str, kind: &str) -> Result<()> {
    let lab = lab()?;
    let time = json!({"clientIP": {"timeoutSeconds": 2}});
    let service =
        lab.service(name, json!({"type": kind, "sessionAffinity": "ClientIP", "sessionAffinityConfig": time}))?;
    service.select(&PODS)?;
    // Both are led by the first node.
    let client = if kind == "NodePort" { lab.outside()? } else { lab.at("a1")? };
    let to = places(&lab, kind, &service)?[0];
    let first = stays(client, Tcp, to)?;
    // Another Pod is met in two of three rounds.
    for _ in 0..12 {
        ensure!(!remembered(&lab, name)?.is_empty(), "nobody is remembered, although {first} was met just now");
        eventually(SOON, || {
            let left = remembered(&lab, name)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        if once(client, Tcp, to)?.name != first {
            return Ok(());
        }
    }
    anyhow::bail!("{first} each time, although the client was not remembered")
}

pub(crate) fn should_have_session_affinity_timeout_work_for_service_with_type_clusterip() -> Result<()> {
    times_out("timeout-address", "ClusterIP")
}

pub(crate) fn should_have_session_affinity_timeout_work_for_nodeport_service() -> Result<()> {
    times_out("timeout-port", "NodePort")
}

fn switches(name: &str, kind: &str) -> Result<()> {
    let lab = lab()?;
    let mut service = lab.service(name, json!({"type": kind}))?;
    service.select(&PODS)?;
    let client = if kind == "NodePort" { lab.outside()? } else { lab.at("a1")? };
    for round in ["None", "ClientIP", "None"] {
        service.change(json!({"sessionAffinity": round}))?;
        for to in places(&lab, kind, &service)? {
            if round == "None" { served(client, Tcp, to, &PODS) } else { stays(client, Tcp, to).map(drop) }?;
        }
    }
    Ok(())
}

pub(crate) fn should_be_able_to_switch_session_affinity_for_service_with_type_clusterip() -> Result<()> {
    switches("switch-address", "ClusterIP")
}

pub(crate) fn should_be_able_to_switch_session_affinity_for_nodeport_service() -> Result<()> {
    switches("switch-port", "NodePort")
}

fn of_balancers(name: &str, policy: &str, pods: &[&str]) -> Result<()> {
    let lab = lab()?;
    let balancer = if policy == "Local" { "203.0.113.91" } else { "203.0.113.90" };
    let to: SocketAddr = format!("{balancer}:80").parse()?;
    let mut service = lab.service(
        name,
        json!({"type": "LoadBalancer", "externalTrafficPolicy": policy, "sessionAffinity": "ClientIP"}),
    )?;
    service.balance_at(&[balancer])?;
    service.select(pods)?;
    // The balancer has chosen the first node.
    let client = super::balancers::outside_through(&lab, balancer)?;
    for round in ["ClientIP", "None", "ClientIP"] {
        service.change(json!({"sessionAffinity": round}))?;
        if round == "None" {
            let here: Vec<&str> =
                pods.iter().copied().filter(|pod| policy == "Cluster" || pod.starts_with('a')).collect();
            served(client, Tcp, to, &here)?;
        } else {
            stays(client, Tcp, to)?;
        }
    }
    Ok(())
}

pub(crate) fn should_have_session_affinity_work_for_loadbalancer_service_with_etp_on_and_off() -> Result<()> {
    of_balancers("sticky-balancer-local", "Local", &["a1", "a2", "b1"])
}

pub(crate) fn should_be_able_to_switch_session_affinity_for_loadbalancer_service_with_etp_off() -> Result<()> {
    of_balancers("sticky-balancer-cluster", "Cluster", &["a1", "b1"])
}
