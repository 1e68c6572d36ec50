//! What 1.20 has no field for, from a current API server: the same nodes and Pods, whose proxies read Services and slices there meanwhile.
//!
//! Invariant: these cases are alone, write the slices that controllers of a current release would write for the shared Pods, and leave the
//! proxies on the cluster's own server.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::ApiServer;
use lab::kubernetes::Release;
use serde_json::{Value, json};

use super::ask::{At, By, Tcp, Udp, served, unanswered};
use super::datagrams::Client;
use super::server::{self, PORT, Wanted};
use super::{Lab, OF_HOST, SHARED, alone};
use crate::kube_cluster::NODES;

const KUBECONFIG: &str = "/run/kubernetes/current";
/// Until a program has ended that was asked to.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server, beside the cluster whose proxies follow it.
struct Current<'a> {
    server: &'a ApiServer,
    lab: &'a Lab,
}

/// Runs a case while both proxies follow a current server.
fn meanwhile(case: impl FnOnce(&Current<'_>) -> Result<()>) -> Result<()> {
    let mut lab = alone()?;
    if lab.current.is_none() {
        let server = ApiServer::start_with(lab.cluster.host("hdss7-12")?, Release::Modern, &[])?;
        for (node, zone) in NODES.iter().zip(["zone-a", "zone-b"]) {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            let metadata = json!({"name": format!("{node}.host.com"), "labels": labels});
            server.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))?;
            lab.cluster.host(node)?.write(KUBECONFIG, server.kubeconfig().to_string())?;
        }
        service_cidr(&server, "kubernetes", "192.168.0.0/16")?;
        lab.current = Some(server);
    }
    for node in &mut lab.cluster.nodes {
        node.daemons[1].terminate(PATIENCE)?;
        node.start_proxy_from(KUBECONFIG)?;
    }
    let shown = case(&Current { server: lab.current.as_ref().context("a current server")?, lab: &lab });
    for node in &mut lab.cluster.nodes {
        node.daemons[1].terminate(PATIENCE)?;
        node.start_proxy()?;
    }
    shown
}

fn service_cidr(server: &ApiServer, name: &str, network: &str) -> Result<()> {
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [network]}});
    server.put(&object).map(drop)
}

/// A ready endpoint: the shared Pod of this name.
fn endpoint(lab: &Lab, name: &str) -> Result<Value> {
    let pod = lab.server(name)?;
    Ok(json!({"addresses": [pod.address.to_string()], "nodeName": pod.node(), "conditions": {"ready": true}}))
}

impl Current<'_> {
    /// A Service of these fields at this address, port 80 for both protocols.
    fn service(&self, name: &str, address: &str, more: Value) -> Result<SocketAddr> {
        let ports = json!([{"name": "tcp", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]);
        let mut spec = json!({"clusterIP": address, "clusterIPs": [address], "ports": ports});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.server.put(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}))?;
        Ok(SocketAddr::new(address.parse()?, 80))
    }

    /// The slice of a Service, with endpoints that serve at this port.
    fn slice(&self, service: &str, port: u16, endpoints: &[Value]) -> Result<()> {
        let ports =
            json!([{"name": "tcp", "port": port, "protocol": "TCP"}, {"name": "udp", "port": port, "protocol": "UDP"}]);
        let metadata = json!({"name": service, "labels": {"kubernetes.io/service-name": service}});
        let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": metadata, "ports": ports, "endpoints": endpoints});
        self.server.put(&object).map(drop)
    }

    fn at(&self, client: &str) -> Result<At<'_>> {
        self.lab.at(client)
    }

    /// Clients of the first node are served by this server of it, those of the other by nobody.
    fn local_alone(&self, to: SocketAddr, server: &str, here: &[&str], there: &[&str]) -> Result<()> {
        here.iter().try_for_each(|client| served(self.at(client)?, Tcp, to, &[server]))?;
        there.iter().try_for_each(|client| unanswered(self.at(client)?, Tcp, to))
    }
}

fn local() -> Value {
    json!({"internalTrafficPolicy": "Local"})
}

pub(crate) fn should_respect_internal_traffic_policy_local_pod_to_pod() -> Result<()> {
    meanwhile(|current| {
        let to = current.service("local-1", "192.168.200.1", local())?;
        current.slice("local-1", PORT, &[endpoint(current.lab, "a1")?])?;
        current.local_alone(to, "a1", &["a2", "a1"], &["b1", "b2"])
    })
}

pub(crate) fn should_respect_internal_traffic_policy_local_pod_of_hostnetwork_to_pod() -> Result<()> {
    meanwhile(|current| {
        let to = current.service("local-2", "192.168.200.2", local())?;
        current.slice("local-2", PORT, &[endpoint(current.lab, "a1")?])?;
        current.local_alone(to, "a1", &[OF_HOST[0]], &[OF_HOST[1]])
    })
}

pub(crate) fn should_respect_internal_traffic_policy_local_pod_and_node_to_pod_of_hostnetwork() -> Result<()> {
    meanwhile(|current| {
        let to = current.service("local-3", "192.168.200.3", local())?;
        current.slice("local-3", server::OF_HOST, &[endpoint(current.lab, OF_HOST[0])?])?;
        current.local_alone(to, OF_HOST[0], &["a1", NODES[0]], &["b1", NODES[1]])
    })
}

pub(crate) fn should_fallback_to_local_terminating_endpoints_with_internal_traffic_policy_local() -> Result<()> {
    meanwhile(|current| {
        let to = current.service("local-4", "192.168.200.4", local())?;
        let mut ending = endpoint(current.lab, "a1")?;
        ending["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        // One that is ready elsewhere changes nothing.
        for others in [vec![], vec![endpoint(current.lab, "b1")?]] {
            current.slice("local-4", PORT, &[vec![ending.clone()], others.clone()].concat())?;
            served(current.at("a2")?, Tcp, to, &["a1"])?;
            let there = current.at("b2")?;
            if others.is_empty() { unanswered(there, Tcp, to) } else { served(there, Tcp, to, &["b1"]) }?;
        }
        Ok(())
    })
}

/// The Pod of the client's node is made again, while one of the other node is there all the time.
pub(crate) fn should_preserve_udp_traffic_for_a_clusterip_service_with_internal_traffic_policy_local() -> Result<()> {
    meanwhile(|current| {
        let lab = current.lab;
        let to = current.service("local-5", "192.168.200.5", local())?;
        let remote = endpoint(lab, "b1")?;
        let wanted = ["local-flow-1", "local-flow-2"].map(|name| Wanted::pod(name, NODES[0]));
        let with = |pod: &server::Server| {
            let own =
                json!({"addresses": [pod.address.to_string()], "nodeName": pod.node(), "conditions": {"ready": true}});
            current.slice("local-5", PORT, &[own, remote.clone()])
        };
        let first = lab.run(&wanted[0])?;
        with(&first)?;
        served(current.at("a2")?, Udp, to, &["local-flow-1"])?;
        let client = Client::new(current.at("a2")?, to)?;
        client.answered_by(to, "local-flow-1")?;
        current.slice("local-5", PORT, std::slice::from_ref(&remote))?;
        first.end(lab)?;
        let second = lab.run(&wanted[1])?;
        with(&second)?;
        client.answered_by(to, "local-flow-2")?;
        second.end(lab)
    })
}

/// The shared Pods, each hinted for what `hint` says of it.
fn hinted(lab: &Lab, hint: impl Fn(&str) -> Value) -> Result<Vec<Value>> {
    let one = |name: &&str| {
        let mut endpoint = endpoint(lab, name)?;
        endpoint["hints"] = hint(name);
        Ok(endpoint)
    };
    SHARED.iter().map(one).collect()
}

fn zone_of(name: &str) -> Value {
    json!({"forZones": [{"name": if name.starts_with('a') { "zone-a" } else { "zone-b" }}]})
}

/// Clients in Pods and on nodes are served by the servers whose name begins as theirs.
fn near(current: &Current<'_>, by: By, to: SocketAddr) -> Result<()> {
    for (client, servers) in
        [("a1", ["a1", "a2"]), (NODES[0], ["a1", "a2"]), ("b1", ["b1", "b2"]), (NODES[1], ["b1", "b2"])]
    {
        served(current.at(client)?, by, to, &servers)?;
    }
    Ok(())
}

pub(crate) fn should_route_traffic_to_an_endpoint_in_the_same_zone_when_it_is_preferred() -> Result<()> {
    meanwhile(|current| {
        for (address, distribution) in [("192.168.200.6", "PreferClose"), ("192.168.200.7", "PreferSameZone")] {
            let name = distribution.to_lowercase();
            let to = current.service(&name, address, json!({"trafficDistribution": distribution}))?;
            current.slice(&name, PORT, &hinted(current.lab, zone_of)?)?;
            near(current, Tcp, to)?;
            near(current, Udp, to)?;
        }
        Ok(())
    })
}

/// The zone has two nodes' Pods, and the node has one of its own; then it has none.
pub(crate) fn should_route_traffic_to_an_endpoint_on_the_same_node_when_it_is_preferred() -> Result<()> {
    meanwhile(|current| {
        let to = current.service("node", "192.168.200.8", json!({"trafficDistribution": "PreferSameNode"}))?;
        let both_zones = json!([{"name": "zone-a"}, {"name": "zone-b"}]);
        let of_node = |name: &str| {
            let node = if name.starts_with('a') { NODES[0] } else { NODES[1] };
            json!({"forNodes": [{"name": format!("{node}.host.com")}], "forZones": both_zones})
        };
        let all = hinted(current.lab, of_node)?;
        current.slice("node", PORT, &all)?;
        near(current, Tcp, to)?;
        // Without one of its own the other node goes to the zone's.
        current.slice("node", PORT, &all[..2])?;
        served(current.at("b1")?, Tcp, to, &["a1", "a2"])?;
        served(current.at("a1")?, Tcp, to, &["a1", "a2"])
    })
}

pub(crate) fn should_distribute_endpoints_evenly_and_follow_zone_hints() -> Result<()> {
    meanwhile(|current| {
        let to = current.service("hints", "192.168.200.9", json!({}))?;
        let mut endpoints = hinted(current.lab, zone_of)?;
        current.slice("hints", PORT, &endpoints)?;
        near(current, Tcp, to)?;
        // Hints count when every endpoint has one.
        endpoints[3].as_object_mut().context("an endpoint")?.remove("hints");
        current.slice("hints", PORT, &endpoints)?;
        served(current.at("a1")?, Tcp, to, &SHARED)
    })
}

pub(crate) fn should_serve_an_address_of_a_new_servicecidr() -> Result<()> {
    meanwhile(|current| {
        service_cidr(current.server, "new", "10.222.0.0/24")?;
        let to = current.service("other-range", "10.222.0.7", json!({}))?;
        current.slice("other-range", PORT, &[endpoint(current.lab, "b1")?])?;
        for client in ["a1", "b2", NODES[0]] {
            served(current.at(client)?, Tcp, to, &["b1"])?;
        }
        Ok(())
    })
}
