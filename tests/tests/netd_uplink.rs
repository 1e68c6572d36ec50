//! The interface towards the other nodes while it comes, moves, is replaced and goes: the node keeps its subnet, and its
//! Pods their connections.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, Process, eventually};
use netd_node::traffic::Traffic;
use netd_node::{Net, SOON, VXLAN, both_keep_their_subnets, pod};

/// Starts netd without a word about the interface.
fn open_choice(net: &Net, node: &str, extra: &[&str]) -> Result<Process> {
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let command = net.host(node)?.command(lab::bin("netd")?);
    command.args([endpoints.as_str(), "--ip-masq"]).args(extra).start("netd")
}

/// netd on .21 by its default route and on .22, ready.
fn two_nodes(net: &Net) -> Result<[Process; 2]> {
    net.host("hdss7-21")?.run(&["ip", "route", "add", "default", "via", "10.4.7.1", "dev", "eth0"])?;
    let both = [open_choice(net, "hdss7-21", &[])?, net.launch("hdss7-22", &[])?];
    for netd in &both {
        netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    }
    for (node, other) in [("hdss7-21", "172.7.22.0/24"), ("hdss7-22", "172.7.21.0/24")] {
        net.eventually_routes(node, other)?;
    }
    Ok(both)
}

/// The tunnel of .21 begins at `address` on `interface`, the store and the other node know, and the subnet is what it was.
fn eventually_at(net: &Net, address: &str, interface: &str) -> Result<()> {
    eventually(3 * SOON, || {
        let value = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?.unwrap_or_default();
        ensure!(value.contains(&format!(r#""PublicIP":"{address}""#)), "{value}");
        let fdb = net.host("hdss7-22")?.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?.stdout;
        ensure!(fdb.contains(&format!("dst {address} ")) && fdb.matches("dst 10.4.7.").count() == 1, "{fdb}");
        let link = net.host("hdss7-21")?.run(&["ip", "-d", "link", "show", "flannel.1"])?.stdout;
        ensure!(link.contains(&format!("local {address} dev {interface} ")) && link.contains(",UP"), "{link}");
        let status = net.status("hdss7-21")?;
        ensure!(status["node"]["interface"] == interface && status["node"]["in_sync"] == true, "{status}");
        Ok(())
    })?;
    both_keep_their_subnets(net)
}

fn sh(host: &Host, script: &str) -> Result<()> {
    host.run(&["sh", "-ec", script]).map(drop)
}

fn host_without_a_default_route_waits_and_says_for_what() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    sh(host, "ip route add default via 10.4.7.1 dev eth0 table 77")?;
    let netd = open_choice(&net, "hdss7-21", &[])?;
    let line = netd.wait_for_line("waiting: ", SOON)?;
    ensure!(line.contains("default route that names the interface") && line.contains("table 77 by eth0"), "{line}");
    eventually(SOON, || {
        let page =
            host.command("curl").args(["-s", "--unix-socket", "/run/netd/http.sock", "http://netd/readyz"]).run()?;
        ensure!(page.stdout.contains("waits for leases: an interface: "), "{}", page.stdout);
        Ok(())
    })?;
    sh(host, "ip route add default via 10.4.7.1 dev eth0")?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    ensure!(net.subnets()? == ["172.7.21.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

fn interface_that_comes_late_or_gets_its_address_late_is_waited_for() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let netd = open_choice(&net, "hdss7-21", &["--iface=ens5"])?;
    let line = netd.wait_for_line("waiting: ", SOON)?;
    ensure!(line.contains(r#""ens5" names no interface"#), "{line}");
    net.cluster.attach("hdss7-21", "ens5")?;
    netd.wait_for_line("interface ens5 has no IPv4", SOON)?;
    sh(host, "ip link set ens5 up; ip address add 10.4.7.121/24 dev ens5")?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    ensure!(net.subnets()? == ["172.7.121.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

fn default_route_that_moves_takes_the_node_along_and_pods_keep_their_connections() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = two_nodes(&net)?;
    let host = net.host("hdss7-21")?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    let index = host.read("/sys/class/net/flannel.1/ifindex")?;
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    net.cluster.attach("hdss7-21", "ens5")?;
    sh(host, "ip link set ens5 up; ip address add 10.4.7.121/24 dev ens5")?;
    sh(host, "ip route add default via 10.4.7.1 dev ens5 metric 100")?;
    sh(host, "ip route del default via 10.4.7.1 dev eth0")?;
    eventually_at(&net, "10.4.7.121", "ens5")?;
    traffic.flows()?;
    // And back, by a better metric, with several next hops.
    sh(host, "ip route add default metric 50 nexthop via 10.4.7.1 dev eth0 nexthop via 10.4.7.2 dev eth0")?;
    eventually_at(&net, "10.4.7.21", "eth0")?;
    traffic.stop()?;
    ensure!(host.read("/sys/class/net/flannel.1/ifindex")? == index, "the device was made anew");
    Ok(())
}

fn replaced_interface_costs_no_subnet_and_no_connection() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = two_nodes(&net)?;
    let host = net.host("hdss7-21")?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    let mut before = "eth0";
    for (name, address) in
        [("ens5", "10.4.7.21"), ("ens6", "10.4.7.121"), ("ens6", "10.4.7.121"), ("eth0", "10.4.7.21")]
    {
        sh(host, &format!("ip link del {before}"))?;
        net.cluster.attach("hdss7-21", name)?;
        sh(host, &format!("ip link set {name} mtu 1400 up; ip address add {address}/24 dev {name}"))?;
        sh(host, &format!("ip route add default via 10.4.7.1 dev {name}"))?;
        eventually_at(&net, address, name)?;
        traffic.flows()?;
        let mtu = host.read("/sys/class/net/flannel.1/mtu")?;
        ensure!(mtu.trim() == "1350", "{mtu}");
        before = name;
    }
    traffic.stop()?;
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            host_without_a_default_route_waits_and_says_for_what,
            interface_that_comes_late_or_gets_its_address_late_is_waited_for,
            default_route_that_moves_takes_the_node_along_and_pods_keep_their_connections,
            replaced_interface_costs_no_subnet_and_no_connection,
        ],
    )
}
