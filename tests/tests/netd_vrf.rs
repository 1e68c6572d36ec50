//! Nodes whose interface towards each other is in a VRF: the VXLAN tunnel carries, before and after the interface came into it,
//! and what a backend cannot do there is named with what helps.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Need, Pod, echo, eventually};
use netd_node::dual::{self, DUAL, SUBNETS, both, give_ipv6, seen};
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

fn doctor(host: &Host) -> Result<String> {
    Ok(host.command(lab::bin("netd")?).arg("doctor").limit(3 * SOON).output()?.stdout)
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
        expect(&steps, ["10.4.7.22", "last seen", "ok", "left by cbr0"])?;
        let found = doctor(net.host("hdss7-21")?)?;
        ensure!(found.contains("ok       outer        tunnels have a route to every node"), "{found}");
        ensure!(!found.contains("PROBLEM"), "{found}");
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
        bound(net.host("hdss7-21")?, "%blue:8472")?;
        eventually_arrives(&web)?;
        each_node(&net, RELEASE)?;
        bound(net.host("hdss7-21")?, "0.0.0.0:8472")?;
        eventually_warns(&net, None)?;
        eventually_arrives(&web)?;
    }
    Ok(())
}

/// The socket that the kernel has for the tunnel's port.
fn bound(host: &Host, to: &str) -> Result<()> {
    eventually(SOON, || {
        let sockets = host.run(&["ss", "-lun"])?.stdout;
        ensure!(sockets.contains(to), "{sockets}");
        Ok(())
    })
}

fn interface_that_changes_its_vrf_while_netd_is_stopped_takes_the_tunnel_along() -> Result<()> {
    let net = managed(VXLAN)?;
    let mut netd = Vec::from(net.both()?);
    let (web, _server) = pods_of(&net)?;
    eventually_arrives(&web)?;
    for (change, to) in [(ENSLAVE, "%blue:8472"), (RELEASE, "0.0.0.0:8472")] {
        netd.drain(..).try_for_each(|daemon| daemon.terminate(SOON).map(drop))?;
        let mac = net.host("hdss7-21")?.read("/sys/class/net/flannel.1/address")?;
        each_node(&net, change)?;
        netd.extend(net.both()?);
        bound(net.host("hdss7-21")?, to)?;
        bound(net.host("hdss7-22")?, to)?;
        eventually_arrives(&web)?;
        ensure!(net.host("hdss7-21")?.read("/sys/class/net/flannel.1/address")? == mac);
    }
    // One that is as it was is left alone.
    let index = net.host("hdss7-21")?.read("/sys/class/net/flannel.1/ifindex")?;
    netd.drain(..).try_for_each(|daemon| daemon.terminate(SOON).map(drop))?;
    netd.extend(net.both()?);
    ensure!(net.host("hdss7-21")?.read("/sys/class/net/flannel.1/ifindex")? == index, "it was made anew");
    Ok(())
}

/// As docs/vxlan.md says: a route that leads into the VRF, and connections that may come from there.
fn etcd_is_reached_through_the_vrf_that_the_tunnel_uses() -> Result<()> {
    let net = Net::start(VXLAN)?;
    for node in NODES {
        let script = "ip link add blue type vrf table 10; ip link set blue up; ip link set eth0 master blue
                      ip route add unreachable default metric 4278198272 vrf blue
                      ip route add 10.4.7.12/32 dev eth0; sysctl -qw net.ipv4.tcp_l3mdev_accept=1";
        net.host(node)?.run(&["sh", "-ec", script])?;
    }
    let _netd = net.both()?;
    let (web, _server) = pods_of(&net)?;
    eventually_arrives(&web)?;
    let found = doctor(net.host("hdss7-21")?)?;
    ensure!(!found.contains("PROBLEM"), "{found}");
    Ok(())
}

fn ipv6_tunnel_carries_inside_a_vrf() -> Result<()> {
    let net = managed(DUAL)?;
    each_node(&net, ENSLAVE)?;
    for n in ["21", "22"] {
        give_ipv6(&net, n)?;
    }
    let _netd = both(&net, SUBNETS)?;
    let (web, server) = (dual::pod(net.host("hdss7-21")?, "21")?, dual::pod(net.host("hdss7-22")?, "22")?);
    let _server = echo::serve(&server, "web", 80)?;
    for (to, from) in [("172.7.22.2:80", "172.7.21.2"), ("[fd00:7:0:22::2]:80", "fd00:7:0:21::2")] {
        eventually(SOON, || {
            ensure!(seen(&web, to)? == from);
            Ok(())
        })?;
    }
    bound(net.host("hdss7-21")?, "[fd00:10:4:7::21]%blue:8472")
        .or_else(|_| bound(net.host("hdss7-21")?, "[::]%blue:8472"))?;
    let found = doctor(net.host("hdss7-21")?)?;
    ensure!(!found.contains("PROBLEM"), "{found}");
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
    for kind in ["ipip", "wireguard"] {
        let net = managed(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{kind}"}}}}"#))?;
        each_node(&net, ENSLAVE)?;
        let _netd = net.both()?;
        let (web, _server) = pods_of(&net)?;
        eventually_warns(&net, Some(&format!("{kind} takes the main routing table to the other nodes")))?;
        ensure!(web.run(&["ping", "-c1", "-W1", "172.7.22.2"]).is_err(), "it carries, and is named all the same");
        // What the warning says.
        each_node(&net, &["ip", "route", "add", "10.4.7.0/24", "dev", "eth0"])?;
        if kind == "wireguard" {
            each_node(&net, &["sysctl", "-qw", "net.ipv4.udp_l3mdev_accept=1"])?;
        }
        eventually_arrives(&web).with_context(|| kind.to_owned())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables, Need::Vrf, Need::IpIp, Need::WireGuard],
        lab::tests![
            tunnel_carries_inside_a_vrf_and_direct_routing_is_named,
            interface_that_comes_into_a_vrf_and_leaves_it_takes_the_tunnel_along,
            interface_that_changes_its_vrf_while_netd_is_stopped_takes_the_tunnel_along,
            etcd_is_reached_through_the_vrf_that_the_tunnel_uses,
            ipv6_tunnel_carries_inside_a_vrf,
            backends_that_cannot_use_a_vrf_are_named_with_what_helps,
        ],
    )
}
