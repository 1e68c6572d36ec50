//! Both families on real kubelets: Nodes with two podCIDRs, Pods with two addresses, a Service of two ClusterIPs, and what clients see while its
//! Pods change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod netd_node;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use cni_node::{ask, image};
use kube_cluster::pods::{PORT, Pod, deployment};
use kube_cluster::{Cluster, LIMIT, NODES, OUTSIDE, load, of_ipv6};
use lab::{Host, eventually};
use serde_json::{Value, json};

const SERVICE: [&str; 2] = ["192.168.0.10", "fd00:192:168::10"];
const NODE_PORT: u16 = 30080;

/// The addresses of the Pod, of IPv4 and IPv6.
fn addresses(cluster: &Cluster, pod: &Pod) -> Result<[IpAddr; 2]> {
    let found = cluster.server.get(&format!("/api/v1/namespaces/default/pods/{}", pod.name))?;
    let all =
        found["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|one| one["ip"].as_str()?.parse().ok());
    let all: Vec<IpAddr> = all.collect();
    let [one, other] = all[..] else { anyhow::bail!("{} has {all:?}", pod.name) };
    ensure!(one.is_ipv4() && other.is_ipv6(), "{} has {all:?}", pod.name);
    Ok([one, other])
}

/// A server at an address, as clients are given it.
fn at(address: impl ToString, port: u16) -> String {
    let address = address.to_string();
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Each Node has a subnet of each family.
fn nodes_have_both(cluster: &Cluster) -> Result<()> {
    for node in cluster.items("/api/v1/nodes")? {
        let cidrs: Vec<_> =
            node["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let is_so = cidrs.len() == 2 && cidrs[0].starts_with("172.7.") && cidrs[1].starts_with("fd00:7:");
        ensure!(is_so, "{}: {cidrs:?}", node["metadata"]["name"]);
    }
    Ok(())
}

/// Each Pod is reached from the other node and from a Pod there, at both addresses, and sees the Pod's own.
fn pods_reach_each_other(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    for from in pods {
        let own = addresses(cluster, from)?;
        for to in pods.iter().filter(|to| to.node != from.node) {
            for (address, own) in addresses(cluster, to)?.into_iter().zip(own) {
                let url = at(address, PORT);
                let said = ask(cluster.host(&from.node)?, &url)?;
                ensure!(said.ends_with(&to.name), "{url} from {}: {said}", from.node);
                let seen = request_from(cluster, from, address)?;
                ensure!(seen.starts_with(&format!("{own} ")), "{url} saw {seen}, not {own}");
            }
        }
    }
    Ok(())
}

/// The answer of the server at an address to a Pod.
fn request_from(cluster: &Cluster, from: &Pod, address: IpAddr) -> Result<String> {
    let place = cluster.host(&from.node)?.pod_with_address(&from.name, from.address.parse()?)?;
    let question = ["curl", "-sS", "--max-time", "20", &format!("http://{}/cgi-bin/who", at(address, PORT))];
    image::answer(&place.run(&question)?.stdout)
}

fn a_service_of_both_families_answers_at_both_addresses_while_its_pods_change() -> Result<()> {
    let cluster = Cluster::start_dual()?;
    nodes_have_both(&cluster)?;
    cluster.apply(&deployment("web", 4))?;
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort",
        "ipFamilyPolicy": "RequireDualStack", "clusterIP": SERVICE[0], "clusterIPs": SERVICE, "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT}]}}))?;
    let pods = cluster.pods_of("app=web", 4)?;
    let used: BTreeSet<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(used.len() == NODES.len(), "both nodes have Pods: {pods:?}");
    pods_reach_each_other(&cluster, &pods)?;
    let known = pods.iter().map(|pod| addresses(&cluster, pod)).collect::<Result<Vec<_>>>()?;
    let outside = cluster.host(OUTSIDE)?;
    let mut urls = Vec::new();
    for name in NODES {
        let host = cluster.host(name)?;
        urls.extend(SERVICE.map(|address| (host, at(address, 80))));
        urls.extend([host.address()?.to_string(), of_ipv6(name)].map(|address| (outside, at(address, NODE_PORT))));
    }
    let clients: Vec<_> = urls.iter().map(|(host, url)| (*host, url.as_str())).collect();
    let (served, ()) = load::without_a_failure(&clients, || {
        cluster.scale("web", 8)?;
        cluster.pods_of("app=web", 8)?;
        cluster.scale("web", 2)?;
        cluster.pods_of("app=web", 2).map(drop)
    })?;
    println!("both families: {served:?} requests of nodes and from outside were answered");
    let left = cluster.pods_of("app=web", 2)?;
    let (mut alive, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for (pod, both) in pods.iter().zip(known) {
        if left.contains(pod) { alive.extend(both) } else { gone.extend(both) }
    }
    NODES.iter().try_for_each(|name| leads_to(cluster.host(name)?, &alive, &gone))
}

/// Waits until a node's rules lead to some addresses and to none of others.
fn leads_to(host: &Host, alive: &BTreeSet<IpAddr>, gone: &BTreeSet<IpAddr>) -> Result<()> {
    eventually(LIMIT, || {
        let rules = host.run(&["nft", "list", "ruleset"])?.stdout;
        let words = rules.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '.' && letter != ':');
        let named: BTreeSet<IpAddr> = words.filter_map(|word| word.parse().ok()).collect();
        ensure!(named.is_superset(alive) && named.is_disjoint(gone), "{alive:?} and not {gone:?} in {named:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    kube_cluster::suite().run(lab::tests![a_service_of_both_families_answers_at_both_addresses_while_its_pods_change])
}
