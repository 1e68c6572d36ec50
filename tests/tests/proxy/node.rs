//! The Node object of the node that the proxy runs on: what it says of zone, Pods, primary address and load balancers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Place, echo, eventually};

use super::{NODE_PORT_WEB, Nodes, SERVICES, SOON, WEB, exposed};

/// The Node with what is added to its metadata and its specification.
fn node(zone: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: hdss7-21.host.com, labels: {{topology.kubernetes.io/zone: {zone}}}{metadata}}}\n\
         spec: {{{spec}}}\nstatus: {{addresses: [{{type: Hostname, address: hdss7-21}}, {{type: InternalIP, address: 10.4.7.21}}]}}\n"
    )
}

const OWN_PODS: &str = "podCIDRs: [172.7.21.0/24]";

/// Two endpoints, each meant for one zone.
const ZONED: &str = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 80}]
endpoints:
- {addresses: [172.7.21.3], hints: {forZones: [{name: z1}]}}
- {addresses: [172.7.22.2], hints: {forZones: [{name: z2}]}}
";

/// Waits until all of 20 connections are answered by these, each with the client that it saw.
fn await_answers(from: &impl Place, server: &str, expected: &[(&str, &str)]) -> Result<()> {
    let expected: BTreeSet<_> = expected.iter().map(|(pod, seen)| ((*pod).to_owned(), (*seen).to_owned())).collect();
    let server: SocketAddr = server.parse()?;
    eventually(SOON, || {
        let one = |_| echo::ask_tcp(from, server, SOON).map(|answer| (answer.name, answer.client.ip().to_string()));
        let found: BTreeSet<_> = (0..20).map(one).collect::<Result<_>>()?;
        ensure!(found == expected, "{server}: {found:?}");
        Ok(())
    })
}

/// Zone, Pods and primary address are the Node's, as it changes, and the flags' when it is gone.
pub(crate) fn a_node_object_says_zone_pods_and_primary_address(mode: &str) -> Result<()> {
    let nodes = exposed::start()?;
    nodes.publish("web.yaml", &format!("{NODE_PORT_WEB}{ZONED}"))?;
    nodes.publish("node.yaml", &node("z1", "", OWN_PODS))?;
    let mode = format!("--proxy-mode={mode}");
    let _proxy = nodes.proxy_with(&[&mode, "--detect-local-mode=NodeCIDR", "--nodeport-addresses=primary"])?;
    await_answers(nodes.outside()?, WEB, &[("172.7.21.3", "172.7.21.1")]).context("the endpoint of z1")?;
    await_answers(nodes.outside()?, "10.4.7.21:30080", &[("172.7.21.3", "172.7.21.1")])?;
    let by_default_route = echo::ask_tcp(nodes.node()?, "10.9.9.21:30080".parse()?, SOON).err().context("answered")?;
    ensure!(format!("{by_default_route:#}").contains("refused"), "{by_default_route:#}");
    nodes.publish("node.yaml", &node("z2", "", OWN_PODS))?;
    let pod = nodes.pod("172.7.21.2")?;
    await_answers(pod, WEB, &[("172.7.22.2", "172.7.21.2")]).context("the endpoint of z2, by a Pod of the node")?;
    nodes.publish("node.yaml", &node("z2", "", "podCIDRs: [172.7.31.0/24]"))?;
    await_answers(pod, WEB, &[("172.7.22.2", "10.4.7.21")])
        .context("in another network nobody is a Pod of the node")?;
    let expected = serde_json::json!({"zone": "z2", "podNetworks": ["172.7.31.0/24"], "addresses": ["10.4.7.21"]});
    eventually(SOON, || {
        let object = nodes.status()?["nodeObject"].clone();
        ensure!(object == expected, "{object}");
        Ok(())
    })?;
    nodes.node()?.run(&["rm", &format!("{SERVICES}/node.yaml")])?;
    await_answers(pod, WEB, &[("172.7.21.3", "172.7.21.2"), ("172.7.22.2", "172.7.21.2")]).context("nobody says")
}

/// Node ports at the primary address follow the default route through the names of links, and when its link goes down to the next one.
/// Without IPv6, which would announce routes of its own as the link goes down.
pub(crate) fn the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link(mode: &str) -> Result<()> {
    let nodes = exposed::start()?;
    let node = nodes.node()?;
    node.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])?;
    node.run(&["ip", "route", "add", "default", "via", "10.4.7.1", "metric", "500"])?;
    nodes.publish("web.yaml", &format!("{NODE_PORT_WEB}{ZONED}"))?;
    let _proxy = nodes.proxy_with(&[&format!("--proxy-mode={mode}"), "--nodeport-addresses=primary"])?;
    let served = |at: &str, other: &str| {
        eventually(SOON, || {
            echo::ask_tcp(node, format!("{at}:30080").parse()?, SOON).with_context(|| at.to_owned())?;
            let refused = echo::ask_tcp(node, format!("{other}:30080").parse()?, SOON).err().context("answered")?;
            ensure!(format!("{refused:#}").contains("refused"), "{other}: {refused:#}");
            Ok(())
        })
    };
    served("10.9.9.21", "10.4.7.21")?;
    let swap = "link set up0 name other0\nlink set eth0 name up0\nlink set other0 name eth0\n";
    // Kernels before 6.2 rename no link that is up.
    let swapped = node.command("ip").args(["-batch", "-"]).input(swap).run().is_ok();
    let uplink = if swapped { "eth0" } else { "up0" };
    eventually(SOON, || {
        let rules = node.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
        ensure!(rules.contains(&format!("iifname \"{uplink}\" oifname \"{uplink}\"")), "{rules}");
        Ok(())
    })?;
    served("10.9.9.21", "10.4.7.21").context("renamed")?;
    // Its addresses stay; of its default route the kernel says nothing.
    node.run(&["ip", "link", "set", uplink, "down"])?;
    served("10.4.7.21", "10.9.9.21").context("down")
}

/// Asks a health server; status and body.
pub(crate) fn ask(host: &Host, path: &str) -> Result<(u16, serde_json::Value)> {
    let url = format!("http://127.0.0.1:10256/{path}");
    let text = host.run(&["curl", "-s", "--max-time", "20", "-w", "\n%{http_code}", &url])?.stdout;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, serde_json::from_str(body)?))
}

/// As by kube-proxy: what keeps load balancers away is no reason to start the proxy anew.
pub(crate) fn load_balancers_are_sent_elsewhere_while_the_node_leaves() -> Result<()> {
    let nodes = Nodes::start()?;
    let host = nodes.node()?;
    nodes.publish("node.yaml", &node("z1", "", OWN_PODS))?;
    let _proxy = nodes.proxy_with(&["--proxy-mode=nftables"])?;
    let tainted = "taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]";
    let deleted = ", deletionTimestamp: 2026-11-26T00:00:00Z";
    for (metadata, spec, eligible) in [
        ("", OWN_PODS, true),
        ("", tainted, false),
        ("", OWN_PODS, true),
        (deleted, OWN_PODS, false),
        ("", OWN_PODS, true),
    ] {
        nodes.publish("node.yaml", &node("z1", metadata, spec))?;
        eventually(SOON, || {
            let (status, body) = ask(host, "healthz")?;
            ensure!(status == if eligible { 200 } else { 503 }, "{metadata} {spec}: {status} {body}");
            ensure!(body["nodeEligible"] == eligible && body["healthy"] == eligible, "{body}");
            Ok(())
        })?;
        for path in ["livez", "readyz"] {
            let (status, body) = ask(host, path)?;
            ensure!(status == 200 && body["healthy"] == true, "{path}: {status} {body}");
        }
    }
    nodes.node()?.run(&["rm", &format!("{SERVICES}/node.yaml")])?;
    eventually(Duration::from_secs(30), || {
        let (status, body) = ask(host, "healthz")?;
        ensure!(status == 503, "the Node is gone: {status} {body}");
        let status = nodes.status()?;
        ensure!(
            status["ineligible"] == "Node hdss7-21.host.com is gone from the source" && status["ok"] == true,
            "{status}"
        );
        Ok(())
    })
}
