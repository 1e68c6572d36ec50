//! Nodes whose interface towards each other is in a VRF: the VXLAN tunnel carries, before and after the interface came into it,
//! and what a backend cannot do there is named with what helps.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, Pod, eventually};
use netd_node::tracing::{POD_TO_POD, expect, trace};
use netd_node::{HOST_GW, Net, SOON, VXLAN, pod};

const DIRECT: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

/// A cluster whose nodes reach etcd by an interface of its own, `eth1`, and have a VRF as the kernel's manual makes it
/// (Documentation/networking/vrf.rst): with a default route that refuses.
fn managed(config: &str) -> Result<Net> {
    let net = Net::start(config)?;
    net.host("hdss7-12")?.run(&["ip", "address", "add", "10.9.9.12/24", "dev", "eth0"])?;
    for node in NODES {
        net.cluster.attach(node, "eth1")?;
        let last = node.trim_start_matches("hdss7-");
        let script = format!(
            "ip link set eth1 up; ip address add 10.9.9.{last}/24 dev eth1; ip route add 10.4.7.12 dev eth1 src 10.9.9.{last}
             ip link add blue type vrf table 10; ip link set blue up
             ip route add unreachable default metric 4278198272 vrf blue"
        );
        net.host(node)?.run(&["sh", "-ec", &script])?;
    }
    Ok(net)
}

fn each_node(net: &Net, command: &[&str]) -> Result<()> {
    NODES.iter().try_for_each(|node| net.host(node)?.run(command).map(drop))
}

const ENSLAVE: &[&str] = &["ip", "link", "set", "eth0", "master", "blue"];
const RELEASE: &[&str] = &["ip", "link", "set", "eth0", "nomaster"];

fn pods_of(net: &Net) -> Result<(Pod, Pod)> {
    Ok((pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?))
}

fn eventually_arrives(web: &Pod) -> Result<()> {
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]).map(drop))
}

fn eventually_warns(net: &Net, wanted: Option<&str>) -> Result<()> {
    eventually(SOON, || {
        let warnings = net.status("hdss7-21")?["warnings"].to_string();
        let about = warnings.contains("VRF blue");
        ensure!(about == wanted.is_some() && warnings.contains(wanted.unwrap_or_default()), "{wanted:?}: {warnings}");
        Ok(())
    })
}

fn route_to_peer(host: &Host) -> Result<String> {
    Ok(host.run(&["ip", "route", "show", "172.7.22.0/24"])?.stdout)
}

fn tunnel_carries_inside_a_vrf_and_direct_routing_is_named() -> Result<()> {
    for (config, warning) in [(VXLAN, None), (DIRECT, Some("DirectRouting has no effect"))] {
        let net = managed(config)?;
        each_node(&net, ENSLAVE)?;
        let _netd = net.both()?;
        let (web, _server) = pods_of(&net)?;
        eventually_arrives(&web)?;
        let route = route_to_peer(net.host("hdss7-21")?)?;
        ensure!(route.contains("dev flannel.1"), "{route}");
        eventually_warns(&net, warning)?;
        // The tunnel's own packets meet the VRF's table, and the tools know it.
        let steps = eventually(SOON, || {
            let (steps, passes) = trace(net.host("hdss7-21")?, &POD_TO_POD)?;
            ensure!(passes, "{steps:#?}");
            Ok(steps)
        })?;
        expect(&steps, ["here", "outer route", "ok", "10.4.7.22 by 10.4.7.0/24 dev eth0"])?;
        expect(&steps, ["here", "outer route", "ok", " table 10, by a rule of `ip rule`"])?;
        let found = net.host("hdss7-21")?.command(lab::bin("netd")?).arg("doctor").limit(3 * SOON).output()?.stdout;
        ensure!(found.contains("ok       outer        tunnels have a route to every node"), "{found}");
    }
    Ok(())
}

fn interface_that_comes_into_a_vrf_and_leaves_it_takes_the_tunnel_along() -> Result<()> {
    for (config, warning) in [(VXLAN, None), (DIRECT, Some("DirectRouting has no effect"))] {
        let net = managed(config)?;
        let _netd = net.both()?;
        let (web, _server) = pods_of(&net)?;
        eventually_arrives(&web)?;
        each_node(&net, ENSLAVE)?;
        eventually_warns(&net, warning)?;
        // The kernel's socket says to what it is bound.
        let bound = |to: &str| {
            eventually(SOON, || {
                let sockets = net.host("hdss7-21")?.run(&["ss", "-lun"])?.stdout;
                ensure!(sockets.contains(to), "{sockets}");
                Ok(())
            })
        };
        bound("%blue:8472")?;
        eventually_arrives(&web)?;
        each_node(&net, RELEASE)?;
        bound("0.0.0.0:8472")?;
        eventually_warns(&net, None)?;
        eventually_arrives(&web)?;
    }
    Ok(())
}

fn backends_that_cannot_use_a_vrf_are_named_with_what_helps() -> Result<()> {
    let net = managed(HOST_GW)?;
    each_node(&net, ENSLAVE)?;
    let _netd = net.both()?;
    let (web, _server) = pods_of(&net)?;
    eventually_warns(&net, Some("use backend vxlan, or add a route to them"))?;
    ensure!(web.run(&["ping", "-c1", "-W1", "172.7.22.2"]).is_err(), "it carries, and is named all the same");
    for (node, subnet) in [("hdss7-21", "172.7.21.0/24"), ("hdss7-22", "172.7.22.0/24")] {
        net.host(node)?.run(&["ip", "route", "add", subnet, "dev", "cbr0", "vrf", "blue"])?;
    }
    eventually_arrives(&web)?;
    for (kind, device) in [("ipip", "flannel.ipip"), ("wireguard", "flannel-wg")] {
        let net = managed(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{kind}"}}}}"#))?;
        each_node(&net, ENSLAVE)?;
        let _netd = net.launch("hdss7-21", &[])?;
        eventually(SOON, || net.host("hdss7-21")?.run(&["ip", "link", "show", device]).map(drop))?;
        eventually_warns(&net, Some(&format!("{kind} takes the main routing table to the other nodes")))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables, Need::Vrf, Need::IpIp, Need::WireGuard],
        lab::tests![
            tunnel_carries_inside_a_vrf_and_direct_routing_is_named,
            interface_that_comes_into_a_vrf_and_leaves_it_takes_the_tunnel_along,
            backends_that_cannot_use_a_vrf_are_named_with_what_helps,
        ],
    )
}
