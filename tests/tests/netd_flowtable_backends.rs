//! `Flowtable: true` by every backend and in both families: established flows take the short way, whole.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Need, echo, eventually};
use netd_node::dual::{SUBNETS, both, net, pod};
use netd_node::flowtable::eventually_links;
use netd_node::{SOON, transfer};

const V4: &str = "172.7.22.2";
const V6: &str = "fd00:7:0:22::2";

/// Counts packets to the server of the test that meet the forward hook.
const PROBE: &str =
    "table inet probe {\nchain forward { type filter hook forward priority 10;\ntcp dport 80 counter\n}\n}\n";

/// net-conf with a flowtable; IPv6 beside IPv4 where `dual`.
fn config(backend: &str, dual: bool) -> String {
    let v6 = if dual { r#""EnableIPv6":true,"IPv6Network":"fd00:7::/48","# } else { "" };
    format!(r#"{{"Network":"172.7.0.0/16",{v6}"Backend":{backend},"Flowtable":true}}"#)
}

fn forwarded(host: &Host) -> Result<u64> {
    let text = host.run(&["nft", "list", "table", "inet", "probe"])?.stdout;
    let after = text.split("packets ").nth(1).with_context(|| text.clone())?;
    Ok(after.split_whitespace().next().context("no number")?.parse()?)
}

/// True when a connection to the server's port is offloaded in the family of `server`.
fn is_offloaded(host: &Host, server: SocketAddr) -> Result<bool> {
    let family = if server.is_ipv6() { "ipv6" } else { "ipv4" };
    let listed = host.run(&["conntrack", "-L", "-f", family, "-p", "tcp"])?.stdout;
    Ok(listed.lines().any(|line| line.contains("dport=80 ") && line.contains("[OFFLOAD]")))
}

/// On both nodes a connection from Pod to Pod leaves the rules of the forward hook behind, and large packets arrive.
fn takes_the_short_way(config: &str, servers: &[&str], links: &[&str]) -> Result<()> {
    let net = net(config)?;
    let only_v4: [&[&str]; 2] = [&SUBNETS[0][..1], &SUBNETS[1][..1]];
    let _netd = both(&net, if servers.len() > 1 { SUBNETS } else { only_v4 })?;
    let hosts = [net.host("hdss7-21")?, net.host("hdss7-22")?];
    let pods = [pod(hosts[0], "21")?, pod(hosts[1], "22")?];
    for host in hosts {
        eventually_links(host, links)?;
        host.command("nft").args(["-f", "-"]).input(PROBE).run()?;
    }
    let _server = echo::serve(&pods[1], "web", 80)?;
    for server in servers {
        let server = SocketAddr::new(server.parse()?, 80);
        let mut connection = echo::Connection::open(&pods[0], server, SOON)?;
        for host in hosts {
            eventually(SOON, || {
                connection.ask()?;
                ensure!(is_offloaded(host, server)?, "{server} is not offloaded");
                let before = forwarded(host)?;
                (0..10).try_for_each(|_| connection.ask().map(drop))?;
                let met = forwarded(host)? - before;
                ensure!(met == 0, "{met} packets to {server} met the forward hook");
                Ok(())
            })?;
        }
        transfer::transfer(&pods[0], &pods[1], SocketAddr::new(server.ip(), 5001), 8 << 20)
            .with_context(|| format!("8 MiB to {server}"))?;
    }
    Ok(())
}

fn vxlan_of_both_families() -> Result<()> {
    takes_the_short_way(&config(r#"{"Type":"vxlan"}"#, true), &[V4, V6], &["cbr0", "eth0", "flannel-v6.1", "flannel.1"])
}

fn host_gw_of_both_families() -> Result<()> {
    takes_the_short_way(&config(r#"{"Type":"host-gw"}"#, true), &[V4, V6], &["cbr0", "eth0"])
}

fn wireguard_with_a_device_for_each_family() -> Result<()> {
    let config = config(r#"{"Type":"wireguard","Mode":"separate"}"#, true);
    takes_the_short_way(&config, &[V4, V6], &["cbr0", "eth0", "flannel-wg", "flannel-wg-v6"])
}

fn wireguard_with_one_device_over_ipv6() -> Result<()> {
    let config = config(r#"{"Type":"wireguard","Mode":"ipv6"}"#, true);
    takes_the_short_way(&config, &[V4, V6], &["cbr0", "eth0", "flannel-wg"])
}

fn ipip() -> Result<()> {
    takes_the_short_way(&config(r#"{"Type":"ipip"}"#, false), &[V4], &["cbr0", "eth0", "flannel.ipip"])
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Flowtable, Need::Vxlan, Need::WireGuard, Need::IpIp, Need::Nftables],
        lab::tests![
            vxlan_of_both_families,
            host_gw_of_both_families,
            wireguard_with_a_device_for_each_family,
            wireguard_with_one_device_over_ipv6,
            ipip,
        ],
    )
}
