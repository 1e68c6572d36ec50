//! Nodes with both families, Pods with an address of each, and whom a server sees.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Host, Pod, Process, echo, eventually};

use super::{Net, SOON};

/// The Pod network of the reference cluster in both families.
pub(crate) const DUAL: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"}}"#;

/// The same without a tunnel.
pub(crate) const DUAL_HOST_GW: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"host-gw"}}"#;

/// The other node's subnets, as seen from the first node and from the second.
pub(crate) const SUBNETS: [&[&str]; 2] =
    [&["172.7.22.0/24", "fd00:7:0:22::/64"], &["172.7.21.0/24", "fd00:7:0:21::/64"]];

const READY: &str = "ready: every lease is in the kernel";
const NODES: [&str; 2] = ["21", "22"];

/// The reference cluster with an IPv6 address on each node.
pub(crate) fn net(config: &str) -> Result<Net> {
    let net = Net::start(config)?;
    for n in ["21", "22", "200"] {
        give_ipv6(&net, n)?;
    }
    Ok(net)
}

pub(crate) fn name(n: &str) -> String {
    format!("hdss7-{n}")
}

pub(crate) fn give_ipv6(net: &Net, n: &str) -> Result<()> {
    let address = format!("fd00:10:4:7::{n}/64");
    net.host(&name(n))?.run(&["ip", "-6", "address", "add", &address, "dev", "eth0", "nodad"])?;
    Ok(())
}

/// netd on both nodes, each with routes to these subnets of the other.
pub(crate) fn both(net: &Net, subnets: [&[&str]; 2]) -> Result<Vec<Process>> {
    let all = NODES.iter().map(|n| net.launch(&name(n), &[])).collect::<Result<Vec<_>>>()?;
    for (n, subnets) in NODES.iter().zip(subnets) {
        subnets.iter().try_for_each(|subnet| routes(net, n, subnet))?;
    }
    all.iter().try_for_each(|netd| netd.wait_for_line(READY, SOON).map(drop))?;
    Ok(all)
}

/// Waits until node `n` has a route of netd to `subnet`.
pub(crate) fn routes(net: &Net, n: &str, subnet: &str) -> Result<()> {
    let host = net.host(&name(n))?;
    let family = if subnet.contains(':') { "-6" } else { "-4" };
    eventually(SOON, || {
        let route = host.run(&["ip", family, "route", "show", "proto", "121", subnet])?.stdout;
        ensure!(!route.trim().is_empty(), "{n} has no route to {subnet}");
        Ok(())
    })
}

/// A Pod on a bridge with the node's subnets, joined by hand: the second address of `172.7.N` and `fd00:7:0:N`.
pub(crate) fn pod(host: &Host, n: &str) -> Result<Pod> {
    let pod = host.pod("web")?;
    let netns = pod.netns().file_name().and_then(|name| name.to_str()).context("name of the Pod's namespace")?;
    let batch = format!(
        "link add cbr0 type bridge\naddress add 172.7.{n}.1/24 dev cbr0\naddress add fd00:7:0:{n}::1/64 dev cbr0 nodad\n\
         link set cbr0 up\nlink add pod0 type veth peer name eth0 netns {netns}\nlink set pod0 master cbr0 up\n"
    );
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    let batch = format!(
        "link set lo up\naddress add 172.7.{n}.2/24 dev eth0\naddress add fd00:7:0:{n}::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 172.7.{n}.1\nroute add default via fd00:7:0:{n}::1\n"
    );
    pod.command("ip").args(["-batch", "-"]).input(batch).run()?;
    Ok(pod)
}

/// The address that a server on `to` sees of a client on `from`, by TCP and by UDP.
pub(crate) fn seen(from: &impl lab::Place, to: &str) -> Result<String> {
    let server: SocketAddr = to.parse()?;
    let tcp = echo::ask_tcp(from, server, SOON)?.client.ip();
    let udp = echo::ask_udp(from, server, SOON)?.client.ip();
    ensure!(tcp == udp, "{tcp} by TCP, {udp} by UDP");
    Ok(tcp.to_string())
}
