//! Granular checks: Pods, nodes and endpoints as clients of Services over HTTP and UDP, Pods of the host's network, and Pods without a Service.
//!
//! Invariant: a client that is an endpoint itself is answered by all endpoints, itself among them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, eventually};
use serde_json::{Value, json};

use super::ask::{At, By, Tcp, Udp, once, served, served_at, unanswered};
use super::server::{self, PORT, Wanted};
use super::{OF_HOST, SHARED, SOON, lab};
use crate::kube_cluster::NODES;

/// Longest time for one connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// A Service of all shared Pods for both protocols, asked by these clients at its ClusterIP and at both nodes' ports.
fn all_reach(name: &str, clients: &[&str], by: By) -> Result<()> {
    let lab = lab()?;
    let ports = json!([{"name": "http", "port": 80, "targetPort": PORT}, {"name": "udp", "port": 90, "targetPort": PORT, "protocol": "UDP"}]);
    let service = lab.service(name, json!({"type": "NodePort", "ports": ports}))?;
    service.select(&SHARED)?;
    let (port, index) = if by == Tcp { (80, 0) } else { (90, 1) };
    for client in clients {
        served(lab.at(client)?, by, service.at(port)?, &SHARED)?;
        served_at(lab.at(client)?, by, &lab.at_nodes(service.node_port(index)?)?, &SHARED)?;
    }
    Ok(())
}

pub(crate) fn should_function_for_pod_service_http() -> Result<()> {
    all_reach("pod-http", &["a1", "b1"], Tcp)
}

pub(crate) fn should_function_for_pod_service_udp() -> Result<()> {
    all_reach("pod-udp", &["a1", "b1"], Udp)
}

pub(crate) fn should_function_for_node_service_http() -> Result<()> {
    all_reach("node-http", &NODES, Tcp)
}

pub(crate) fn should_function_for_node_service_udp() -> Result<()> {
    all_reach("node-udp", &NODES, Udp)
}

pub(crate) fn should_function_for_endpoint_service_http() -> Result<()> {
    all_reach("endpoint-http", &SHARED, Tcp)
}

pub(crate) fn should_function_for_endpoint_service_udp() -> Result<()> {
    all_reach("endpoint-udp", &SHARED, Udp)
}

pub(crate) fn should_function_for_multiple_endpoint_services_with_same_selector() -> Result<()> {
    let lab = lab()?;
    let first = lab.service("same-1", json!({}))?;
    let second = lab.service("same-2", json!({"selector": {"same-1": "yes"}}))?;
    first.select(&SHARED)?;
    for client in ["a1", "b1"] {
        served(lab.at(client)?, Tcp, first.at(80)?, &SHARED)?;
        served(lab.at(client)?, Tcp, second.at(80)?, &SHARED)?;
    }
    second.delete()?;
    unanswered(lab.at("a1")?, Tcp, second.at(80)?)?;
    served(lab.at("a1")?, Tcp, first.at(80)?, &SHARED)
}

pub(crate) fn should_function_for_service_endpoints_using_hostnetwork() -> Result<()> {
    let lab = lab()?;
    let ports = json!([{"name": "http", "port": 80, "targetPort": server::OF_HOST}, {"name": "udp", "port": 90, "targetPort": server::OF_HOST, "protocol": "UDP"}]);
    let service = lab.service("of-host", json!({"type": "NodePort", "ports": ports}))?;
    service.select(&OF_HOST)?;
    for client in ["a1", "b1", OF_HOST[0], OF_HOST[1]] {
        served(lab.at(client)?, Tcp, service.at(80)?, &OF_HOST)?;
        served(lab.at(client)?, Udp, service.at(90)?, &OF_HOST)?;
    }
    served_at(lab.outside()?, Tcp, &service.at_nodes()?, &OF_HOST)
}

fn node_port_moves(name: &str, by: By) -> Result<()> {
    let lab = lab()?;
    let protocol = if by == Tcp { "TCP" } else { "UDP" };
    let ports = |more: Value| {
        let mut port = json!({"port": 80, "targetPort": PORT, "protocol": protocol});
        port["nodePort"] = more;
        json!([port])
    };
    let mut service = lab.service(name, json!({"type": "NodePort", "ports": ports(Value::Null)}))?;
    service.select(&["a1", "b1"])?;
    let before = service.at_nodes()?;
    served_at(lab.outside()?, by, &before, &["a1", "b1"])?;
    let after = service.move_node_port(|port| json!({"ports": ports(port.into())}))?;
    served_at(lab.outside()?, by, &lab.at_nodes(after)?, &["a1", "b1"])?;
    before.iter().try_for_each(|to| unanswered(lab.outside()?, by, *to))
}

pub(crate) fn should_update_nodeport_http() -> Result<()> {
    node_port_moves("moved-http", Tcp)
}

pub(crate) fn should_update_nodeport_udp() -> Result<()> {
    node_port_moves("moved-udp", Udp)
}

/// Pods of one node and of both, over HTTP and UDP.
pub(crate) fn should_function_for_intra_pod_communication() -> Result<()> {
    let lab = lab()?;
    for client in SHARED {
        for name in SHARED {
            let to = SocketAddr::new(lab.server(name)?.address, PORT);
            for by in [Tcp, Udp] {
                served(lab.at(client)?, by, to, &[name])?;
            }
        }
    }
    Ok(())
}

/// Every Pod sees every other with that one's own address, and a node's processes reach every Pod.
pub(crate) fn should_be_able_to_send_traffic_between_pods_without_snat() -> Result<()> {
    let lab = lab()?;
    for client in SHARED {
        let own = lab.server(client)?.address;
        for name in SHARED {
            let seen = once(lab.at(client)?, Tcp, (lab.server(name)?.address, PORT).into())?;
            ensure!(seen.name == name && seen.client.ip() == own, "{client} at {own} was seen as {seen:?}");
        }
    }
    for node in NODES {
        for name in SHARED {
            served(lab.at(node)?, Tcp, (lab.server(name)?.address, PORT).into(), &[name])?;
        }
    }
    Ok(())
}

/// The server never closes its side, so that the node keeps the connection as long as it is told.
pub(crate) fn should_set_tcp_close_wait_timeout() -> Result<()> {
    let lab = lab()?;
    let node = lab.cluster.host(NODES[0])?;
    let address = lab.server("b1")?.address;
    let listener = lab.at("b1")?.within(|| std::net::TcpListener::bind((address, 0)))??;
    let to = listener.local_addr()?;
    let client = lab.at(NODES[0])?.within(|| std::net::TcpStream::connect_timeout(&to, PATIENCE))??;
    let (_kept, _) = listener.accept()?;
    client.shutdown(std::net::Shutdown::Write)?;
    let port = to.port().to_string();
    let left = eventually(SOON, || {
        let listed = node.run(&["conntrack", "-L", "-p", "tcp", "--dport", &port, "--state", "CLOSE_WAIT"])?.stdout;
        let seconds = listed.split_whitespace().nth(2).context("no connection in CLOSE_WAIT")?;
        Ok::<u64, anyhow::Error>(seconds.parse()?)
    })?;
    ensure!((3540..=3660).contains(&left), "CLOSE_WAIT is kept for {left} s");
    Ok(())
}

/// Three Pods of one node at the same port of it: at loopback, at its address, and for datagrams.
pub(crate) fn no_conflict_between_pods_with_same_hostport_but_different_hostip_and_protocol() -> Result<()> {
    const SHARED_PORT: u16 = 54_323;
    let lab = lab()?;
    let node = lab.cluster.host(NODES[0])?;
    let address = node.address()?;
    let own = address.to_string();
    let wanted =
        [("port-loopback", "127.0.0.1", "TCP"), ("port-node", own.as_str(), "TCP"), ("port-udp", own.as_str(), "UDP")];
    let mut pods = Vec::new();
    for (name, at, protocol) in wanted {
        pods.push(lab.run(&Wanted::pod(name, NODES[0]).at_node(SHARED_PORT, at, protocol))?);
    }
    let at = SocketAddr::from((address, SHARED_PORT));
    served(At::Machine(node), Tcp, SocketAddr::from(([127, 0, 0, 1], SHARED_PORT)), &["port-loopback"])?;
    for client in [lab.outside()?, lab.at(NODES[1])?, At::Machine(node), lab.at("b1")?] {
        served(client, Tcp, at, &["port-node"])?;
        served(client, Udp, at, &["port-udp"])?;
    }
    pods.iter().try_for_each(|pod| pod.end(&lab))?;
    unanswered(lab.outside()?, Tcp, at)
}

/// The Service is made, its slices have the Pod, the nodes' tables have the port, and no kernel has loaded the protocol for it.
pub(crate) fn should_allow_creating_a_basic_sctp_service_with_pod_and_endpoints() -> Result<()> {
    let lab = lab()?;
    let is_there = || std::fs::exists("/proc/net/sctp");
    let before = is_there()?;
    let service =
        lab.service("associations", json!({"ports": [{"port": 5060, "targetPort": 5060, "protocol": "SCTP"}]}))?;
    service.select(&["a1"])?;
    let path = "/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=associations";
    eventually(SOON, || {
        let slices = lab.cluster.items(path)?;
        ensure!(slices.len() == 1 && slices[0]["ports"][0]["protocol"] == "SCTP", "{slices:?}");
        ensure!(slices[0]["endpoints"][0]["addresses"][0] == lab.server("a1")?.address.to_string(), "{slices:?}");
        for node in &lab.cluster.nodes {
            let table = node.host.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
            let address = service.address()?;
            ensure!(
                table.contains(&format!("{address} . sctp . 5060")),
                "no {address} for SCTP on {}",
                node.host.name()
            );
        }
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(is_there()? == before, "the protocol was loaded");
    Ok(())
}
