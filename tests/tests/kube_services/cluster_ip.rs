//! Services at their ClusterIP: who is reached, by which ports and protocols, with which source, and who refuses.
//!
//! Invariant: each case waits until exactly the Pods of the Service answer, not only until one does.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, eventually};
use serde_json::json;

use super::ask::{Tcp, Udp, once, refused, served, unanswered};
use super::server::{self, PORT, SECOND, Wanted};
use super::{SHARED, SOON, lab};
use crate::kube_cluster::NODES;

/// Longest time for one connection.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn should_provide_secure_master_service() -> Result<()> {
    let lab = lab()?;
    let service = lab.cluster.server.get("/api/v1/namespaces/default/services/kubernetes")?;
    let port = &service["spec"]["ports"][0];
    ensure!(port["name"] == "https" && port["port"] == 443, "{port}");
    let server: SocketAddr = "192.168.0.1:443".parse()?;
    for client in SHARED {
        let at = lab.at(client)?;
        let connect = || std::net::TcpStream::connect_timeout(&server, PATIENCE).map(drop);
        eventually(SOON, || Ok::<_, anyhow::Error>(at.within(connect)??))
            .with_context(|| format!("{server} from {client}"))?;
    }
    Ok(())
}

pub(crate) fn should_serve_a_basic_endpoint_from_pods() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("basic", json!({}))?;
    for pods in [&[][..], &["a1"], &["a1", "b1"], &["b1"], &[]] {
        service.select(pods)?;
        for client in ["a2", "b2", NODES[0], NODES[1]] {
            let (at, to) = (lab.at(client)?, service.at(80)?);
            if pods.is_empty() { refused(at, to) } else { served(at, Tcp, to, pods) }?;
        }
    }
    Ok(())
}

/// The named port is another number in the Pods of each node.
pub(crate) fn should_serve_multiport_endpoints_from_pods() -> Result<()> {
    let lab = lab()?;
    let ports = json!([{"name": "portname1", "port": 81, "targetPort": "here"}, {"name": "portname2", "port": 82, "targetPort": SECOND}]);
    let service = lab.service("multiport", json!({"ports": ports}))?;
    let client = lab.at("a2")?;
    for pods in [&["a1"][..], &["a1", "b1"], &["b1"]] {
        service.select(pods)?;
        served(client, Tcp, service.at(81)?, pods)?;
        served(client, Tcp, service.at(82)?, pods)?;
    }
    service.select(&[])?;
    refused(client, service.at(81)?)?;
    refused(client, service.at(82)?)
}

fn each_protocol_by_itself(name: &str, kind: &str) -> Result<()> {
    let lab = lab()?;
    let tcp = json!({"name": "tcp", "port": 80, "targetPort": PORT, "protocol": "TCP"});
    let udp = json!({"name": "udp", "port": 80, "targetPort": PORT, "protocol": "UDP"});
    let mut service = lab.service(name, json!({"type": kind, "ports": [tcp, udp]}))?;
    service.select(&["a1"])?;
    let (client, to) = (lab.at("b1")?, service.at(80)?);
    served(client, Tcp, to, &["a1"])?;
    served(client, Udp, to, &["a1"])?;
    service.change(json!({"ports": [tcp]}))?;
    unanswered(client, Udp, to)?;
    served(client, Tcp, to, &["a1"])?;
    service.change(json!({"ports": [udp]}))?;
    unanswered(client, Tcp, to)?;
    served(client, Udp, to, &["a1"])
}

pub(crate) fn should_serve_endpoints_on_same_port_and_different_protocols() -> Result<()> {
    each_protocol_by_itself("protocols", "ClusterIP")
}

pub(crate) fn should_serve_endpoints_on_same_port_and_different_protocol_for_internal_traffic_on_type_loadbalancer()
-> Result<()> {
    each_protocol_by_itself("balanced-protocols", "LoadBalancer")
}

pub(crate) fn should_be_updated_after_adding_or_deleting_ports() -> Result<()> {
    let lab = lab()?;
    let (first, second) = (
        json!({"name": "first", "port": 80, "targetPort": PORT}),
        json!({"name": "second", "port": 8000, "targetPort": SECOND}),
    );
    let mut service = lab.service("ports", json!({"ports": [first]}))?;
    service.select(&["b1"])?;
    let client = lab.at("a1")?;
    served(client, Tcp, service.at(80)?, &["b1"])?;
    unanswered(client, Tcp, service.at(8000)?)?;
    service.change(json!({"ports": [first, second]}))?;
    served(client, Tcp, service.at(8000)?, &["b1"])?;
    served(client, Tcp, service.at(80)?, &["b1"])?;
    service.change(json!({"ports": [second]}))?;
    unanswered(client, Tcp, service.at(80)?)?;
    served(client, Tcp, service.at(8000)?, &["b1"])
}

pub(crate) fn should_preserve_source_pod_ip_for_traffic_thru_service_cluster_ip() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("source", json!({}))?;
    service.select(&["a1"])?;
    for name in ["a2", "b1", "b2"] {
        let client = lab.server(name)?;
        served(client.at(), Tcp, service.at(80)?, &["a1"])?;
        let seen = once(client.at(), Tcp, service.at(80)?)?.client.ip();
        ensure!(seen == client.address, "{name} at {} was seen as {seen}", client.address);
    }
    Ok(())
}

pub(crate) fn should_allow_pods_to_hairpin_back_to_themselves_through_services() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("hairpin", json!({}))?;
    service.select(&["b2"])?;
    served(lab.at("b2")?, Tcp, service.at(80)?, &["b2"])
}

pub(crate) fn should_be_able_to_up_and_down_services() -> Result<()> {
    let lab = lab()?;
    let (clients, pods) = ([lab.at("a1")?, lab.at(NODES[1])?], ["a2", "b2"]);
    let up = |name: &str| -> Result<_> {
        let service = lab.service(name, json!({}))?;
        service.select(&pods)?;
        clients.iter().try_for_each(|client| served(*client, Tcp, service.at(80)?, &pods))?;
        Ok(service)
    };
    let (first, second) = (up("up-down-1")?, up("up-down-2")?);
    let gone = second.at(80)?;
    second.delete()?;
    clients.iter().try_for_each(|client| unanswered(*client, Tcp, gone))?;
    let third = up("up-down-3")?;
    for service in [&first, &third] {
        clients.iter().try_for_each(|client| served(*client, Tcp, service.at(80)?, &pods))?;
    }
    Ok(())
}

pub(crate) fn should_work_after_the_service_has_been_recreated() -> Result<()> {
    let lab = lab()?;
    let client = lab.at("a1")?;
    let service = lab.service("recreated", json!({}))?;
    service.select(&["a2", "b1"])?;
    let before = service.at(80)?;
    served(client, Tcp, before, &["a2", "b1"])?;
    drop(service);
    unanswered(client, Tcp, before)?;
    let service = lab.service("recreated", json!({}))?;
    service.select(&["a2", "b1"])?;
    ensure!(service.at(80)? != before, "the server gave {before} again at once");
    served(client, Tcp, service.at(80)?, &["a2", "b1"])?;
    unanswered(client, Tcp, before)
}

pub(crate) fn should_be_rejected_when_no_endpoints_exist() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("nobody", json!({"type": "NodePort"}))?;
    for client in ["a1", "b1", NODES[0], NODES[1]] {
        refused(lab.at(client)?, service.at(80)?)?;
    }
    for to in service.at_nodes()? {
        refused(lab.outside()?, to)?;
        refused(lab.at("a1")?, to)?;
    }
    Ok(())
}

/// A Pod whose time is over has failed as an evicted one has: its kubelet ends it, it stays in the API, and is no endpoint.
pub(crate) fn should_be_rejected_for_evicted_pods() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("evicted", json!({}))?;
    let pod = lab.run(&Wanted::pod("evicted-pod", NODES[1]).of("evicted"))?;
    served(lab.at("a1")?, Tcp, service.at(80)?, &["evicted-pod"])?;
    lab.cluster.server.patch(&server::path("evicted-pod"), &json!({"spec": {"activeDeadlineSeconds": 1}}))?;
    for client in ["a1", "b1", NODES[0]] {
        refused(lab.at(client)?, service.at(80)?)?;
    }
    let failed = lab.cluster.server.get(&server::path("evicted-pod"))?;
    ensure!(failed["status"]["phase"] == "Failed", "{}", failed["status"]);
    pod.end(&lab)
}
