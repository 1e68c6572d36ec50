//! The wireguard backend where the way between nodes is not a plain IPv4 link: IPv6 alone, a node behind NAT; and devices
//! that somebody renamed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, echo, eventually, throughout};
use netd_node::traffic::Traffic;
use netd_node::{Net, SOON, pod};

const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

fn wg(host: &Host, device: &str, what: &str) -> Result<String> {
    Ok(host.run(&["wg", "show", device, what])?.stdout)
}

/// Where a node with one peer sends what is for it.
fn endpoint(host: &Host) -> Result<String> {
    let line = wg(host, "flannel-wg", "endpoints")?;
    Ok(line.split_whitespace().nth(1).context("no peer")?.to_owned())
}

fn ipv6_alone_has_a_device_of_its_own() -> Result<()> {
    let net = Net::start(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"wireguard"}}"#,
    )?;
    for n in ["21", "22"] {
        let address = format!("fd00:10:4:7::{n}/64");
        net.host(&format!("hdss7-{n}"))?.run(&["ip", "address", "add", &address, "dev", "eth0", "nodad"])?;
    }
    let netd = NODES.iter().map(|node| net.launch(node, &[])).collect::<Result<Vec<_>>>()?;
    let mut pods = Vec::new();
    for (n, other) in [("21", "22"), ("22", "21")] {
        let host = net.host(&format!("hdss7-{n}"))?;
        eventually(SOON, || {
            let routes = host.run(&["ip", "-6", "route", "show", "proto", "121"])?.stdout;
            ensure!(routes.contains(&format!("fd00:7:0:{other}::/64 dev flannel-wg-v6")), "{routes}");
            Ok(())
        })?;
        ensure!(host.run(&["ip", "link", "show", "flannel-wg"]).is_err(), "nobody needs a device of IPv4");
        let pod = pod(host, &format!("172.7.{n}"))?;
        host.run(&["ip", "address", "add", &format!("fd00:7:0:{n}::1/64"), "dev", "cbr0", "nodad"])?;
        pod.run(&["ip", "address", "add", &format!("fd00:7:0:{n}::2/64"), "dev", "eth0", "nodad"])?;
        pod.run(&["ip", "route", "add", "default", "via", &format!("fd00:7:0:{n}::1")])?;
        pods.push(pod);
    }
    for daemon in &netd {
        daemon.wait_for_line("ready: every lease is in the kernel", SOON)?;
    }
    // 1420 - 40 (IPv6) - 8 (ICMP)
    pods[0].run(&["ping", "-6", "-c1", "-W5", "-M", "do", "-s", "1372", "fd00:7:0:22::2"])?;
    let _server = echo::serve(&pods[1], "web", 80)?;
    let answer = echo::ask_tcp(&pods[0], "[fd00:7:0:22::2]:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "fd00:7:0:21::2", "the server saw {}", answer.client);
    let text = wg(net.host(NODES[0])?, "flannel-wg-v6", "endpoints")?;
    ensure!(text.contains("[fd00:10:4:7::22]:51821"), "{text}");
    let keys = net.etcd.keys("/coreos.com/network/subnets/")?;
    let key = keys.iter().find(|key| key.contains("fd00:7:0:21::")).context("no lease")?;
    let value = net.etcd.get(key)?.context("no lease")?;
    ensure!(value.contains(r#""BackendV6Data":{"PublicKey":""#) && value.contains(r#""Port":51821"#), "{value}");
    Ok(())
}

/// NAT in front of a node: what it sends leaves from one of `ports`, and what nobody asked for does not come in.
fn put_behind_nat(host: &Host, ports: &str) -> Result<()> {
    let rules = format!(
        "add table ip nat22\ndelete table ip nat22\ntable ip nat22 {{\n\
           chain post {{ type nat hook postrouting priority srcnat; oifname eth0 udp sport 51820 masquerade to :{ports}; }}\n\
           chain in {{ type filter hook input priority filter; iifname eth0 udp dport 51820 ct state new drop; }}\n}}\n"
    );
    host.command("nft").args(["-f", "-"]).input(rules).run()?;
    host.run(&["conntrack", "-F"]).map(drop)
}

fn node_behind_nat_is_reached_where_its_packets_come_from() -> Result<()> {
    let backend = r#"{"Type":"wireguard","PersistentKeepaliveInterval":1}"#;
    let net = Net::start(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#))?;
    let (here, there) = (net.host(NODES[0])?, net.host(NODES[1])?);
    put_behind_nat(there, "40000-40999")?;
    let _netd = net.both()?;
    let (web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    let comes_from = |range: &'static str| {
        move || {
            let found = endpoint(here)?;
            ensure!(found.starts_with(range), "{found}, not {range}...");
            Ok(())
        }
    };
    // Nothing is asked of it: its keep-alives open the way.
    eventually(SOON, comes_from("10.4.7.22:40"))?;
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]))?;
    // Its lease says 51820, where nobody comes in: netd does not call it back.
    throughout(Duration::from_secs(3), comes_from("10.4.7.22:40"))?;
    // The NAT forgets, and gives other ports.
    put_behind_nat(there, "42000-42999")?;
    eventually(SOON, comes_from("10.4.7.22:42"))?;
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]))?;
    throughout(Duration::from_secs(3), comes_from("10.4.7.22:42"))?;
    let status = net.status(NODES[0])?;
    ensure!(status["tables"]["wireguard"]["desired"] == status["tables"]["wireguard"]["done"], "{status}");
    Ok(())
}

fn renamed_device_gets_its_name_back(backend: &str, device: &str) -> Result<()> {
    let net = Net::start(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#))?;
    let _netd = net.both()?;
    let host = net.host(NODES[0])?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let index = host.read(format!("/sys/class/net/{device}/ifindex"))?;
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    for up in ["", "up"] {
        // Together, and again: netd may have it up between the two.
        let lines = format!("link set {device} down\\nlink set {device} name renamed {up}\\n");
        host.run(&["sh", "-c", &format!("until printf '{lines}' | ip -batch -; do true; done")])?;
        eventually(SOON, || {
            let links = host.run(&["ip", "-br", "link"])?.stdout;
            ensure!(links.contains(device) && !links.contains("renamed"), "{links}");
            let routes = host.run(&["ip", "route"])?.stdout;
            ensure!(routes.contains(&format!("dev {device} ")), "{routes}");
            Ok(())
        })?;
        traffic.flows()?;
    }
    traffic.stop()?;
    ensure!(host.read(format!("/sys/class/net/{device}/ifindex"))? == index, "the device was made anew");
    Ok(())
}

fn renamed_wireguard_device_gets_its_name_back() -> Result<()> {
    renamed_device_gets_its_name_back("wireguard", "flannel-wg")
}

fn renamed_ipip_device_gets_its_name_back() -> Result<()> {
    renamed_device_gets_its_name_back("ipip", "flannel.ipip")
}

fn device_renamed_while_stopped_gets_its_name_back(backend: &str, device: &str) -> Result<()> {
    let net = Net::start(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#))?;
    let [netd, _other] = net.both()?;
    let host = net.host(NODES[0])?;
    let (web, _server) = (pod(host, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    web.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    let index = host.read(format!("/sys/class/net/{device}/ifindex"))?;
    netd.terminate(SOON)?;
    // Beside one of the same kind that is nobody's.
    let kind = if backend == "ipip" { "ipip local 10.4.7.21 remote 10.4.7.99" } else { backend };
    let lines = format!("link set {device} down\nlink set {device} name renamed up\nlink add other type {kind}\n");
    host.command("ip").args(["-batch", "-"]).input(lines).run()?;
    let _again = net.netd(NODES[0])?;
    eventually(SOON, || {
        let links = host.run(&["ip", "-br", "link"])?.stdout;
        ensure!(links.contains(device) && !links.contains("renamed") && links.contains("other"), "{links}");
        Ok(())
    })?;
    ensure!(host.read(format!("/sys/class/net/{device}/ifindex"))? == index, "the device was made anew");
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]))?;
    Ok(())
}

fn wireguard_device_renamed_while_netd_is_stopped_gets_its_name_back() -> Result<()> {
    device_renamed_while_stopped_gets_its_name_back("wireguard", "flannel-wg")
}

fn ipip_device_renamed_while_netd_is_stopped_gets_its_name_back() -> Result<()> {
    device_renamed_while_stopped_gets_its_name_back("ipip", "flannel.ipip")
}

/// Nodes that read the new key at different moments refuse each other's next handshake until all have it.
fn changed_preshared_key_is_taken_over_with_a_warning() -> Result<()> {
    let config = |psk: &str| format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"wireguard","PSK":"{psk}"}}}}"#);
    let (old, new) = ("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=");
    let net = Net::start(&config(old))?;
    let netd = net.both()?;
    let (web, _server) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    web.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    net.etcd.put("/coreos.com/network/config", &config(new))?;
    for (daemon, node) in netd.iter().zip(NODES) {
        let text =
            "PSK differs: packets are lost between this node and the others until the other nodes have changed as well";
        daemon.wait_for_line(text, SOON)?;
        eventually(SOON, || {
            let keys = wg(net.host(node)?, "flannel-wg", "preshared-keys")?;
            ensure!(keys.contains(new) && !keys.contains(old), "{keys}");
            Ok(())
        })?;
        ensure!(!daemon.log().contains(old) && !daemon.log().contains(new), "a key is in the log");
    }
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]))?;
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::WireGuard, Need::IpIp, Need::Nftables],
        lab::tests![
            ipv6_alone_has_a_device_of_its_own,
            node_behind_nat_is_reached_where_its_packets_come_from,
            renamed_wireguard_device_gets_its_name_back,
            renamed_ipip_device_gets_its_name_back,
            wireguard_device_renamed_while_netd_is_stopped_gets_its_name_back,
            ipip_device_renamed_while_netd_is_stopped_gets_its_name_back,
            changed_preshared_key_is_taken_over_with_a_warning,
        ],
    )
}
