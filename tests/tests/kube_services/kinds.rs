//! Services that change what they are: ports of nodes, addresses of others, names of others.
//!
//! Invariant: what a Service was before is not answered any more.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::ask::{Tcp, Udp, refused, served, served_at, unanswered};
use super::server::{PORT, SECOND};
use super::{Lab, lab};
use crate::kube_cluster::NODES;

const PODS: [&str; 2] = ["a1", "b1"];
const ELSEWHERE: &str = "elsewhere.example.org";

pub(crate) fn should_be_able_to_create_a_functioning_nodeport_service() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("node-port", json!({"type": "NodePort"}))?;
    service.select(&PODS)?;
    for client in ["a2", "b1", NODES[0], NODES[1]] {
        served(lab.at(client)?, Tcp, service.at(80)?, &PODS)?;
        served_at(lab.at(client)?, Tcp, &service.at_nodes()?, &PODS)?;
    }
    served_at(lab.outside()?, Tcp, &service.at_nodes()?, &PODS)
}

pub(crate) fn should_be_possible_to_connect_to_a_service_via_external_ip_when_it_is_not_assigned_to_a_node()
-> Result<()> {
    let lab = lab()?;
    let service = lab.service("external", json!({"externalIPs": ["203.0.113.250"]}))?;
    service.select(&PODS)?;
    for client in ["a1", "a2", "b2"] {
        served(lab.at(client)?, Tcp, "203.0.113.250:80".parse()?, &PODS)?;
    }
    Ok(())
}

pub(crate) fn should_be_able_to_update_service_type_to_nodeport_listening_on_same_port_number_but_different_protocols()
-> Result<()> {
    let lab = lab()?;
    let tcp = json!({"name": "tcp", "port": 80, "targetPort": PORT, "protocol": "TCP"});
    let udp = json!({"name": "udp", "port": 80, "targetPort": PORT, "protocol": "UDP"});
    let mut service = lab.service("same-number", json!({"ports": [tcp]}))?;
    service.select(&PODS)?;
    served(lab.at("a2")?, Tcp, service.at(80)?, &PODS)?;
    service.change(json!({"type": "NodePort", "ports": [tcp, udp]}))?;
    let (of_tcp, of_udp) = (lab.at_nodes(service.node_port(0)?)?, lab.at_nodes(service.node_port(1)?)?);
    served_at(lab.outside()?, Tcp, &of_tcp, &PODS)?;
    served_at(lab.outside()?, Udp, &of_udp, &PODS)
}

fn external_name() -> Value {
    json!({"type": "ExternalName", "externalName": ELSEWHERE, "ports": null, "clusterIP": "", "clusterIPs": null})
}

fn from_external_name(name: &str, kind: &str) -> Result<()> {
    let lab = lab()?;
    let mut service = lab.service(name, json!({"type": "ExternalName", "externalName": ELSEWHERE, "ports": null}))?;
    service.select(&PODS)?;
    service.change(
        json!({"type": kind, "externalName": null, "ports": [{"port": 80, "targetPort": PORT, "protocol": "TCP"}]}),
    )?;
    served(lab.at("a2")?, Tcp, service.at(80)?, &PODS)?;
    if kind == "NodePort" {
        served_at(lab.outside()?, Tcp, &service.at_nodes()?, &PODS)?;
    }
    Ok(())
}

pub(crate) fn should_be_able_to_change_the_type_from_externalname_to_clusterip() -> Result<()> {
    from_external_name("from-name-to-address", "ClusterIP")
}

pub(crate) fn should_be_able_to_change_the_type_from_externalname_to_nodeport() -> Result<()> {
    from_external_name("from-name-to-port", "NodePort")
}

pub(crate) fn should_be_able_to_change_the_type_from_clusterip_to_externalname() -> Result<()> {
    let lab = lab()?;
    let mut service = lab.service("from-address-to-name", json!({}))?;
    service.select(&PODS)?;
    let before = service.at(80)?;
    served(lab.at("a2")?, Tcp, before, &PODS)?;
    service.change(external_name())?;
    unanswered(lab.at("a2")?, Tcp, before)
}

pub(crate) fn should_be_able_to_change_the_type_from_nodeport_to_externalname() -> Result<()> {
    let lab = lab()?;
    let mut service = lab.service("from-port-to-name", json!({"type": "NodePort"}))?;
    service.select(&PODS)?;
    let (before, at_nodes) = (service.at(80)?, service.at_nodes()?);
    served_at(lab.outside()?, Tcp, &at_nodes, &PODS)?;
    service.change(external_name())?;
    unanswered(lab.at("a2")?, Tcp, before)?;
    at_nodes.iter().try_for_each(|to| unanswered(lab.outside()?, Tcp, *to))
}

fn refusal(lab: &Lab, name: &str, spec: &Value) -> Result<String> {
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let body = Some(("application/json", &object));
    let answer = lab.cluster.server.ask("POST", "/api/v1/namespaces/default/services", body)?;
    ensure!(answer.code == 422, "{} {}", answer.code, answer.body);
    Ok(answer.body["message"].as_str().unwrap_or_default().to_owned())
}

fn node_port(port: u64) -> Value {
    json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": PORT, "nodePort": port}]})
}

pub(crate) fn should_prevent_nodeport_collisions() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("collision-1", json!({"type": "NodePort"}))?;
    service.select(&["a1"])?;
    let message = refusal(&lab, "collision-2", &node_port(service.node_port(0)?.into()))?;
    ensure!(message.contains("provided port is already allocated"), "{message}");
    served_at(lab.outside()?, Tcp, &service.at_nodes()?, &["a1"])
}

pub(crate) fn should_check_nodeport_out_of_range() -> Result<()> {
    let lab = lab()?;
    let message = refusal(&lab, "out-of-range", &node_port(22))?;
    ensure!(message.contains("not in the valid range"), "{message}");
    Ok(())
}

pub(crate) fn should_release_nodeports_on_delete() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("released", json!({"type": "NodePort"}))?;
    service.select(&["b1"])?;
    let (port, places) = (service.node_port(0)?, service.at_nodes()?);
    served_at(lab.outside()?, Tcp, &places, &["b1"])?;
    drop(service);
    places.iter().try_for_each(|to| refused(lab.outside()?, *to))?;
    let again = lab.service("released", node_port(port.into()))?;
    again.select(&["a1"])?;
    served_at(lab.outside()?, Tcp, &places, &["a1"])
}

/// The kinds and ports of a Service in the order of the test of load balancers.
fn kinds_and_ports(name: &str, by: super::ask::By) -> Result<()> {
    let lab = lab()?;
    let protocol = if by == Tcp { "TCP" } else { "UDP" };
    let port = |port: u16, target: u16| json!({"port": port, "targetPort": target, "protocol": protocol});
    let mut service = lab.service(name, json!({"ports": [port(80, PORT)]}))?;
    service.select(&PODS)?;
    let client = lab.at("a2")?;
    served(client, by, service.at(80)?, &PODS)?;
    service.change(json!({"type": "NodePort"}))?;
    let first = service.node_port(0)?;
    served_at(lab.outside()?, by, &lab.at_nodes(first)?, &PODS)?;
    service.change(json!({"type": "LoadBalancer"}))?;
    let balancer = if by == Tcp { "203.0.113.80" } else { "203.0.113.81" };
    service.balance_at(&[balancer])?;
    served(client, by, format!("{balancer}:80").parse()?, &PODS)?;
    // Another node port, then another port.
    let mut moved = port(80, SECOND);
    let second = service.move_node_port(|second| {
        moved["nodePort"] = second.into();
        json!({"ports": [moved]})
    })?;
    served_at(lab.outside()?, by, &lab.at_nodes(second)?, &PODS)?;
    lab.at_nodes(first)?.iter().try_for_each(|to| unanswered(lab.outside()?, by, *to))?;
    moved["port"] = 81.into();
    service.change(json!({"ports": [moved]}))?;
    served(client, by, format!("{balancer}:81").parse()?, &PODS)?;
    unanswered(client, by, format!("{balancer}:80").parse()?)?;
    served_at(lab.outside()?, by, &lab.at_nodes(second)?, &PODS)?;
    service.change(json!({"type": "ClusterIP", "ports": [port(81, PORT)]}))?;
    // The cloud's controller takes the addresses away when it has deleted its balancer.
    service.balance_at(&[])?;
    lab.at_nodes(second)?.iter().try_for_each(|to| unanswered(lab.outside()?, by, *to))?;
    served(client, by, service.at(81)?, &PODS)?;
    unanswered(client, by, format!("{balancer}:81").parse()?)
}

pub(crate) fn should_be_able_to_change_the_type_and_ports_of_a_tcp_service() -> Result<()> {
    kinds_and_ports("kinds-of-tcp", Tcp)
}

pub(crate) fn should_be_able_to_change_the_type_and_ports_of_a_udp_service() -> Result<()> {
    kinds_and_ports("kinds-of-udp", Udp)
}
