//! Flows of datagrams that outlive the Pod that answered them.
//!
//! Invariant: a client keeps one socket, so that each of its datagrams is of the flow that the node remembers.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, eventually};
use serde_json::{Value, json};

use super::ask::At;
use super::server::{PORT, Wanted};
use super::{SOON, lab};
use crate::kube_cluster::NODES;

/// How long an answer is waited for before the next datagram.
const PATIENCE: Duration = Duration::from_millis(500);

/// A client that keeps its socket.
pub(crate) struct Client(UdpSocket);

impl Client {
    pub(crate) fn new(at: At<'_>, to: SocketAddr) -> Result<Self> {
        let socket = at.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok::<_, std::io::Error>(socket)
        })??;
        // Not connected: a port that nobody has yet is refused, and the next datagram is sent all the same.
        ensure!(socket.send_to(b"first\n", to).is_ok(), "send to {to}");
        Ok(Self(socket))
    }

    /// Waits until this server answers.
    pub(crate) fn answered_by(&self, to: SocketAddr, server: &str) -> Result<()> {
        eventually(SOON, || {
            self.0.send_to(b"who are you?\n", to)?;
            let mut bytes = [0; 512];
            let length = self.0.recv(&mut bytes).with_context(|| format!("{to} is silent"))?;
            let answer: Value = serde_json::from_slice(&bytes[..length])?;
            ensure!(answer["name"] == server, "{answer}");
            Ok::<_, anyhow::Error>(())
        })
        .with_context(|| format!("datagrams to {to} are not answered by {server}"))
    }
}

fn ports() -> Value {
    json!([{"port": 80, "targetPort": PORT, "protocol": "UDP"}])
}

/// The Pod that answers is deleted once another one of the other node is there.
fn goes_on(name: &str, kind: &str, client: &str) -> Result<()> {
    let lab = lab()?;
    let service = lab.service(name, json!({"type": kind, "ports": ports()}))?;
    let first = format!("{name}-1");
    let pod = lab.run(&Wanted::pod(&first, NODES[0]).of(name))?;
    let to = if kind == "NodePort" { service.at_nodes()?[1] } else { service.at(80)? };
    let client = Client::new(lab.at(client)?, to)?;
    client.answered_by(to, &first)?;
    service.select(&["b1"])?;
    pod.end(&lab)?;
    client.answered_by(to, "b1")
}

pub(crate) fn should_preserve_udp_traffic_when_server_pod_cycles_for_a_nodeport_service() -> Result<()> {
    goes_on("flow-port", "NodePort", crate::kube_cluster::OUTSIDE)
}

pub(crate) fn should_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service() -> Result<()> {
    goes_on("flow-address", "ClusterIP", "b2")
}

pub(crate) fn should_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service_and_client_is_hostnetwork()
-> Result<()> {
    goes_on("flow-of-host", "ClusterIP", "host-b")
}

/// What is sent before anybody is ready is remembered as a flow to nobody.
pub(crate) fn should_preserve_udp_traffic_when_initial_unready_endpoints_get_ready() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("flow-early", json!({"type": "NodePort", "ports": ports()}))?;
    let pod = lab.run(&Wanted::pod("flow-early-1", NODES[0]).of("flow-early").gated())?;
    let places = [service.at(80)?, service.at_nodes()?[0]];
    let clients = [Client::new(lab.at("b1")?, places[0])?, Client::new(lab.outside()?, places[1])?];
    for (client, to) in clients.iter().zip(places) {
        ensure!(client.0.recv(&mut [0; 512]).is_err(), "{to} answers although nobody is ready");
    }
    pod.set_ready(&lab, true)?;
    for (client, to) in clients.iter().zip(places) {
        client.answered_by(to, "flow-early-1")?;
    }
    pod.end(&lab)
}
