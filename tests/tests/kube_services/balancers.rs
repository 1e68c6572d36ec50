//! Services of load balancers, to which a router leads through one node, and Services that keep the client's address (ESIPP).
//!
//! Invariant: an outside client reaches an address of a balancer through the first node, as a balancer that has chosen it sends.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lab::{Place, echo, eventually};
use serde_json::json;

use super::ask::{At, Tcp, once, served, served_at, unanswered};
use super::{Lab, SOON, lab};
use crate::kube_cluster::{NODES, OUTSIDE};

const BOTH: [&str; 2] = ["a1", "b1"];

/// The outside machine, with a way to this address through the first node.
pub(crate) fn outside_through<'a>(lab: &'a Lab, balancer: &str) -> Result<At<'a>> {
    let outside = lab.outside()?;
    let [first, _] = lab.node_addresses()?;
    outside.run(&["ip", "route", "replace", balancer, "via", &first.to_string()])?;
    Ok(outside)
}

fn outside_address(lab: &Lab) -> Result<IpAddr> {
    Ok(lab.cluster.host(OUTSIDE)?.address()?.into())
}

pub(crate) fn should_only_allow_access_from_service_loadbalancer_source_ranges() -> Result<()> {
    let lab = lab()?;
    let balancer = "203.0.113.60";
    let to: SocketAddr = format!("{balancer}:80").parse()?;
    let own = lab.server("a1")?.address;
    let mut service =
        lab.service("ranges", json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [format!("{own}/32")]}))?;
    service.balance_at(&[balancer])?;
    service.select(&["b1"])?;
    let outside = outside_through(&lab, balancer)?;
    let allowed =
        |client: At<'_>, is: bool| if is { served(client, Tcp, to, &["b1"]) } else { unanswered(client, Tcp, to) };
    allowed(lab.at("a1")?, true)?;
    allowed(lab.at("a2")?, false)?;
    allowed(outside, false)?;
    service.change(json!({"loadBalancerSourceRanges": ["10.4.7.200/32"]}))?;
    allowed(outside, true)?;
    allowed(lab.at("a1")?, false)?;
    service.change(json!({"loadBalancerSourceRanges": null}))?;
    allowed(lab.at("a1")?, true)?;
    allowed(lab.at("a2")?, true)?;
    allowed(outside, true)
}

pub(crate) fn should_be_able_to_create_loadbalancer_service_without_nodeport_and_change_it() -> Result<()> {
    let lab = lab()?;
    let balancer = "203.0.113.61";
    let mut service =
        lab.service("no-node-port", json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}))?;
    ensure!(service.node_port(0).is_err(), "{}", service.spec());
    service.balance_at(&[balancer])?;
    service.select(&BOTH)?;
    let outside = outside_through(&lab, balancer)?;
    served(outside, Tcp, format!("{balancer}:80").parse()?, &BOTH)?;
    service.change(json!({"allocateLoadBalancerNodePorts": true}))?;
    served_at(outside, Tcp, &service.at_nodes()?, &BOTH)?;
    served(outside, Tcp, format!("{balancer}:80").parse()?, &BOTH)
}

pub(crate) fn esipp_should_work_for_type_loadbalancer() -> Result<()> {
    let lab = lab()?;
    let balancer = "203.0.113.62";
    let to: SocketAddr = format!("{balancer}:80").parse()?;
    let service = lab.service("esipp", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))?;
    service.balance_at(&[balancer])?;
    service.select(&BOTH)?;
    let outside = outside_through(&lab, balancer)?;
    served(outside, Tcp, to, &["a1"])?;
    let seen = once(outside, Tcp, to)?.client.ip();
    ensure!(seen == outside_address(&lab)?, "the client was seen as {seen}");
    // The balancer asks the nodes: only those with a Pod are healthy.
    let check = u16::try_from(service.spec()["healthCheckNodePort"].as_u64().unwrap_or_default())?;
    let healthy = |wanted: [bool; 2]| {
        eventually(SOON, || {
            let found = lab.at_nodes(check)?.map(|node| echo::fetch(&outside, node, "/healthz", SOON).is_ok());
            ensure!(found == wanted, "healthy: {found:?}, not {wanted:?}");
            Ok::<_, anyhow::Error>(())
        })
    };
    healthy([true, true])?;
    service.select(&["a1"])?;
    healthy([true, false])?;
    service.select(&["b1"])?;
    healthy([false, true])
}

pub(crate) fn esipp_should_work_for_type_nodeport() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("esipp-port", json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    service.select(&BOTH)?;
    let outside = lab.outside()?;
    for (to, pod) in service.at_nodes()?.into_iter().zip(BOTH) {
        served(outside, Tcp, to, &[pod])?;
        let seen = once(outside, Tcp, to)?.client.ip();
        ensure!(seen == outside_address(&lab)?, "the client was seen as {seen}");
    }
    Ok(())
}

pub(crate) fn esipp_should_only_target_nodes_with_endpoints() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("esipp-target", json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    let [first, second] = service.at_nodes()?;
    let outside = lab.outside()?;
    for (pod, with, without) in [("a2", first, second), ("b2", second, first)] {
        service.select(&[pod])?;
        served(outside, Tcp, with, &[pod])?;
        unanswered(outside, Tcp, without)?;
    }
    Ok(())
}

/// What leaves a Pod for the balancer is led by its own node to every Pod of the Service.
pub(crate) fn esipp_should_work_from_pods() -> Result<()> {
    let lab = lab()?;
    let balancer = "203.0.113.63";
    let service = lab.service("esipp-pods", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))?;
    service.balance_at(&[balancer])?;
    service.select(&["b1"])?;
    for client in ["a1", "b2", "b1"] {
        served(lab.at(client)?, Tcp, format!("{balancer}:80").parse()?, &["b1"])?;
    }
    Ok(())
}

pub(crate) fn esipp_should_handle_updates_to_external_traffic_policy_field() -> Result<()> {
    let lab = lab()?;
    let mut service = lab.service("esipp-updates", json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    service.select(&["b1"])?;
    let outside = lab.outside()?;
    let [without, with] = service.at_nodes()?;
    served(outside, Tcp, with, &["b1"])?;
    unanswered(outside, Tcp, without)?;
    service.change(json!({"externalTrafficPolicy": "Cluster"}))?;
    served_at(outside, Tcp, &[without, with], &["b1"])?;
    let (seen, node) = (once(outside, Tcp, without)?.client.ip(), lab.node_addresses()?[0]);
    ensure!(seen != outside_address(&lab)?, "through {node} of {NODES:?} the client was seen as itself");
    service.change(json!({"externalTrafficPolicy": "Local"}))?;
    unanswered(outside, Tcp, without)?;
    served(outside, Tcp, with, &["b1"])?;
    let seen = once(outside, Tcp, with)?.client.ip();
    ensure!(seen == outside_address(&lab)?, "the client was seen as {seen}");
    Ok(())
}
