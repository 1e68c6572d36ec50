//! flannel's end-to-end tests: Pods of two nodes reach each other, and Services by name.
//!
//! Invariant: what changes a backend or restarts netd is alone, and leaves VXLAN behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, eventually};
use serde_json::{Value, json};

use super::ask::{At, Tcp, once, served};
use super::server::{PORT, Wanted};
use super::{Lab, SOON, alone, lab};
use crate::kube_cluster::NODES;

const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";
/// Until a program has ended that was asked to.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pings from a Pod of each node to one of the other.
fn pinged(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "a1")] {
        let address = lab.server(to)?.address.to_string();
        eventually(SOON, || lab.at(from)?.run(&["ping", "-c5", "-i0.2", "-W2", &address]).map(drop))
            .with_context(|| format!("{from} pings {to}"))?;
    }
    Ok(())
}

fn subnet_file(lab: &Lab, node: &str) -> Result<String> {
    lab.cluster.host(node)?.read("/run/flannel/subnet.env")
}

fn value<'a>(file: &'a str, key: &str) -> Result<&'a str> {
    file.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .with_context(|| format!("no {key} in {file}"))
}

pub(crate) fn vxlan_provides_pod_to_pod_connectivity() -> Result<()> {
    let lab = lab()?;
    for node in NODES {
        let file = subnet_file(&lab, node)?;
        ensure!(value(&file, "FLANNEL_NETWORK")? == "172.7.0.0/16" && value(&file, "FLANNEL_MTU")? == "1450", "{file}");
        let route = lab.cluster.host(node)?.run(&["ip", "route", "show", "dev", "flannel.1"])?.stdout;
        ensure!(route.contains("172.7."), "{route}");
    }
    lab.cluster.ready()?;
    pinged(&lab)
}

/// Has both nodes use this backend, and waits until neither is led through the other one's device.
fn change_backend(lab: &mut Lab, backend: &str, device: &str) -> Result<()> {
    let text = format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
    for node in &mut lab.cluster.nodes {
        node.host.write(NET_CONF, &text)?;
        node.daemons[0].terminate(PATIENCE)?;
        node.start_netd()?;
    }
    for node in &lab.cluster.nodes {
        eventually(SOON, || {
            let routes = node.host.run(&["ip", "route", "show", "proto", "121"])?.stdout;
            ensure!(routes.lines().any(|line| line.contains(device)), "{routes}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    Ok(())
}

pub(crate) fn host_gw_provides_pod_to_pod_connectivity() -> Result<()> {
    let mut lab = alone()?;
    change_backend(&mut lab, "host-gw", "dev eth0")?;
    let shown = pinged(&lab).and_then(|()| throughput(&lab));
    change_backend(&mut lab, "vxlan", "dev flannel.1")?;
    shown?;
    pinged(&lab)
}

/// iperf3 between Pods of both nodes, as long as it takes to move some megabytes; the figure is no promise.
fn throughput(lab: &Lab) -> Result<()> {
    let address = lab.server("b1")?.address.to_string();
    let server = lab.at("b1")?.command("iperf3".as_ref()).args(["-s", "-B", &address]).start("iperf3")?;
    eventually(SOON, || {
        let asked = lab.at("a1")?.run(&["iperf3", "-J", "-c", &address, "-n", "50M", "-b", "2G"])?.stdout;
        let report: Value = serde_json::from_str(&asked)?;
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
        // The client ends when it has sent all, and what is on its way then is not counted.
        ensure!(received >= 25_000_000, "{received} bytes came: {}", report["error"]);
        Ok::<_, anyhow::Error>(())
    })?;
    server.kill().map(drop)
}

pub(crate) fn vxlan_passes_iperf3_throughput_test() -> Result<()> {
    throughput(&*lab()?)
}

/// Every Pod is deleted in turn and made again under its name, with another address.
pub(crate) fn recovers_pod_connectivity_after_a_pod_is_deleted_and_recreated() -> Result<()> {
    let lab = lab()?;
    let wanted = Wanted::pod("again", NODES[1]);
    let mut before = None;
    for _ in 0..2 {
        let pod = lab.run(&wanted)?;
        ensure!(before != Some(pod.address), "the address of the Pod before it");
        before = Some(pod.address);
        let own = lab.server("a1")?;
        for (from, to) in [(own.at(), pod.address), (pod.at(), own.address)] {
            eventually(SOON, || from.run(&["ping", "-c3", "-i0.2", "-W2", &to.to_string()]).map(drop))?;
        }
        let seen = once(pod.at(), Tcp, (own.address, PORT).into())?;
        ensure!(seen.client.ip() == pod.address, "{seen:?}");
        pod.end(&lab)?;
        gone(&lab, "again")?;
    }
    Ok(())
}

/// Waits until the API has no Pod of this name.
fn gone(lab: &Lab, name: &str) -> Result<()> {
    eventually(SOON, || {
        let answer = lab.cluster.server.ask("GET", &super::server::path(name), None)?;
        ensure!(answer.code == 404, "{}", answer.body["status"]);
        Ok(())
    })
}

/// What goes on while netd is away is asked for all the time.
pub(crate) fn preserves_connectivity_and_subnet_leases_across_a_flannel_daemonset_restart() -> Result<()> {
    let mut lab = alone()?;
    let before = NODES.iter().map(|node| subnet_file(&lab, node)).collect::<Result<Vec<_>>>()?;
    for node in &lab.cluster.nodes {
        node.daemons[0].terminate(PATIENCE)?;
    }
    pinged(&lab).context("while netd is away")?;
    for node in &mut lab.cluster.nodes {
        node.start_netd()?;
    }
    for node in &lab.cluster.nodes {
        node.daemons[0].wait_for_line("ready: every lease is in the kernel", SOON)?;
    }
    pinged(&lab)?;
    for (node, before) in NODES.iter().zip(before) {
        let after = subnet_file(&lab, node)?;
        ensure!(value(&after, "FLANNEL_SUBNET")? == value(&before, "FLANNEL_SUBNET")?, "{before}, then {after}");
    }
    lab.cluster.ready()
}

/// A name server in a Pod on one node, which says of each Service what the API says; a client with its own resolv.conf in a Pod of the other.
pub(crate) fn resolves_and_reaches_a_clusterip_service_across_nodes() -> Result<()> {
    let lab = lab()?;
    let web = lab.service("named", json!({}))?;
    web.select(&["b1"])?;
    let names = format!("{}/named.default.svc.cluster.local", web.address()?);
    let server = lab.run(
        &Wanted::pod("names", NODES[0])
            .of("names")
            .serving_names(&["192.168.0.1/kubernetes.default.svc.cluster.local".to_owned(), names]),
    )?;
    let dns = json!({"ports": [{"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "targetPort": 53}]});
    let dns = lab.service("names", dns)?;
    let client = lab.run(&Wanted::pod("resolver", NODES[1]).resolving(&dns.address()?.to_string()))?;
    let says = |words: &[&str], part: &str| {
        eventually(SOON, || {
            let said = lab.cluster.node(NODES[1])?.exec(&client.container(&lab)?, words)?;
            ensure!(said.contains(part), "{words:?} says {said:?}, not {part:?}");
            Ok::<_, anyhow::Error>(())
        })
    };
    says(&["/usr/bin/nslookup", "kubernetes.default"], "192.168.0.1")?;
    says(&["/usr/bin/nslookup", "named.default.svc.cluster.local"], &web.address()?.to_string())?;
    says(&["/usr/bin/curl", "-sS", "--max-time", "5", "http://named/"], "\"name\":\"b1\"")?;
    says(&["/usr/bin/curl", "-sS", "--max-time", "5", &format!("http://{}/", web.address()?)], "\"name\":\"b1\"")?;
    served(At::Machine(lab.cluster.host(NODES[1])?), Tcp, web.at(80)?, &["b1"])?;
    client.end(&lab)?;
    server.end(&lab)
}
