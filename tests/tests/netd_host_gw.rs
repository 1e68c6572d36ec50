//! The host-gw backend on a real kernel.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Need, allowing_for_load, echo, eventually};
use netd_node::{A_SECOND, HOST_GW, Net, SOON, kernel_state, pod};

/// Plain routes to nodes on the link.
const DIRECT: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

fn pods_on_two_nodes_talk_with_their_own_addresses() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let _netd = net.both()?;
    let (first, second) = (pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    first.run(&["ping", "-c1", "-W5", "-M", "do", "-s", "1472", "172.7.22.2"])?;
    let _server = echo::serve(&second, "web", 80)?;
    let answer = echo::ask_tcp(&first, "172.7.22.2:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.2", "the server saw {}", answer.client);
    let links = net.host("hdss7-21")?.run(&["ip", "-br", "link"])?.stdout;
    ensure!(!links.contains("flannel"), "{links}");
    Ok(())
}

/// As some hardening guides set it, and as an interface has it that was made after `net.ipv4.conf.default.forwarding=0`.
fn pods_talk_over_an_interface_that_was_not_to_forward() -> Result<()> {
    for config in [HOST_GW, DIRECT] {
        let net = Net::start(config)?;
        let host = net.host("hdss7-21")?;
        host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        host.run(&["sysctl", "-qw", "net/ipv4/conf/eth0/forwarding=0"])?;
        let _netd = net.both()?;
        let (first, _second) = (pod(host, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
        first.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    }
    Ok(())
}

fn routes_come_back_after_the_interface_was_down() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    let before = kernel_state(host)?;
    ensure!(before.contains("172.7.22.0/24 via 10.4.7.22 dev eth0"), "{before}");
    host.run(&["ip", "link", "set", "eth0", "down"])?;
    eventually(SOON, || {
        ensure!(!kernel_state(host)?.contains("172.7.22.0/24"), "a route through a link that is down");
        Ok(())
    })?;
    host.run(&["ip", "link", "set", "eth0", "up"])?;
    let up = Instant::now();
    eventually(SOON, || {
        let now = kernel_state(host)?;
        ensure!(now == before, "{now}\n--- instead of\n{before}");
        Ok(())
    })?;
    ensure!(up.elapsed() < allowing_for_load(2 * A_SECOND), "took {:?}", up.elapsed());
    host.run(&["ip", "route", "del", "172.7.22.0/24"])?;
    let deleted = Instant::now();
    eventually(SOON, || {
        ensure!(kernel_state(host)? == before);
        Ok(())
    })?;
    ensure!(deleted.elapsed() < allowing_for_load(A_SECOND), "took {:?}", deleted.elapsed());
    Ok(())
}

fn routes_of_flannel_are_replaced_without_a_gap_and_leftovers_go() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let host = net.host("hdss7-21")?;
    let batch = "route add 172.7.22.0/24 via 10.4.7.22\nroute add 172.7.44.0/24 via 10.4.7.44\n\
        route add 172.7.55.0/24 via 10.4.7.200 proto static\n";
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    let monitor = host.command("ip").args(["-o", "monitor", "route"]).start("monitor")?;
    let _netd = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let routes = host.run(&["ip", "route"])?.stdout;
        ensure!(routes.matches("172.7.22.0/24").count() == 1 && routes.contains("proto 121"), "{routes}");
        ensure!(!routes.contains("172.7.44.0/24") && routes.contains("172.7.55.0/24"), "{routes}");
        Ok(())
    })?;
    // The monitor may be behind.
    eventually(SOON, || {
        let log = monitor.log();
        let at = |part: &str| log.lines().position(|line| line.contains("172.7.22.0/24") && line.contains(part));
        ensure!(at("proto 121").is_some() && at("proto 121") < at("Deleted"), "{log}");
        Ok(())
    })
}

fn public_address_behind_nat_is_refused_with_the_reason() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let netd = net.launch("hdss7-21", &["--public-ip=203.0.113.9"])?;
    ensure!(netd.wait(SOON)?.code() == Some(1));
    ensure!(netd.log().contains("203.0.113.9 differs from 10.4.7.21 of interface eth0"), "{}", netd.log());
    ensure!(net.subnets()?.is_empty(), "a lease was taken all the same");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            pods_on_two_nodes_talk_with_their_own_addresses,
            pods_talk_over_an_interface_that_was_not_to_forward,
            routes_come_back_after_the_interface_was_down,
            routes_of_flannel_are_replaced_without_a_gap_and_leftovers_go,
            public_address_behind_nat_is_refused_with_the_reason,
        ],
    )
}
