//! `netd trace` through WireGuard and ipip: the peer that the kernel chooses, the way of the outer packets, and the other end.
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::Need;
use netd_node::tracing::{POD_TO_POD, expect, passes_and_is_watched, trace};
use netd_node::{Net, pod};

const WIREGUARD: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"wireguard"}}"#;
const IPIP: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"ipip"}}"#;

fn wireguard_is_followed_to_the_peer_of_the_destination_and_from_there_back() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let [netd, _other] = net.both()?;
    let (_web, _pod) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    passes_and_is_watched(here)?;
    let (steps, _) = trace(here, &POD_TO_POD)?;
    let key = there.run(&["wg", "show", "flannel-wg", "public-key"])?.stdout;
    for step in [
        ["here", "route", "ok", "172.7.22.0/24 dev flannel-wg"],
        ["here", "peer", "ok", &format!("{} at 10.4.7.22:51820, last handshake ", key.trim())],
        ["here", "outer route", "ok", "10.4.7.22 by 10.4.7.0/24 dev eth0"],
        ["here", "last seen", "ok", "left by flannel-wg"],
        ["10.4.7.22", "peer", "ok", " at 10.4.7.21:51820, last handshake "],
        ["10.4.7.22", "last seen", "ok", "left by cbr0"],
    ] {
        expect(&steps, step)?;
    }
    // A rule that only WireGuard's own packets meet.
    let rule = "ip route add unreachable default table 77; ip rule add pref 100 ipproto udp dport 51820 lookup 77";
    here.run(&["sh", "-ec", rule])?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes);
    expect(&steps, ["here", "outer route", "missing", "no route for the tunnel's packets to the node 10.4.7.22"])?;
    here.run(&["ip", "rule", "del", "pref", "100"])?;
    // A peer without the destination; the daemon would put it right.
    netd.kill()?;
    here.run(&["wg", "set", "flannel-wg", "peer", key.trim(), "allowed-ips", "172.7.99.0/24"])?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes);
    expect(&steps, ["here", "peer", "missing", "no peer of flannel-wg has 172.7.22.2 among its allowed IPs"])?;
    // A peer that has never answered.
    here.run(&["wg", "set", "flannel-wg", "peer", key.trim(), "remove"])?;
    there.run(&["iptables", "-A", "INPUT", "-p", "udp", "--dport", "51820", "-j", "DROP"])?;
    let peer =
        ["wg", "set", "flannel-wg", "peer", key.trim(), "endpoint", "10.4.7.22:51820", "allowed-ips", "172.7.22.0/24"];
    here.run(&peer)?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes);
    expect(&steps, ["here", "peer", "note", " at 10.4.7.22:51820, no handshake yet, 0 bytes received"])
}

fn ipip_is_followed_inside_its_outer_packets() -> Result<()> {
    let net = Net::start(IPIP)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _pod) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    passes_and_is_watched(here)?;
    let (steps, _) = trace(here, &POD_TO_POD)?;
    for step in [
        ["here", "route", "ok", "172.7.22.0/24 via 10.4.7.22 dev flannel.ipip onlink"],
        ["here", "outer route", "ok", "10.4.7.22 by 10.4.7.0/24 dev eth0"],
        ["here", "last seen", "ok", "left by eth0, wrapped from 10.4.7.21 to 10.4.7.22"],
        ["10.4.7.22", "last seen", "ok", "left by cbr0"],
        ["10.4.7.22", "answer", "ok", "left by eth0, wrapped from 10.4.7.22 to 10.4.7.21"],
    ] {
        expect(&steps, step).context("ipip")?;
    }
    there.run(&["iptables", "-A", "INPUT", "-p", "4", "-m", "comment", "--comment", "closed", "-j", "DROP"])?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes);
    expect(&steps, ["10.4.7.22", "rule", "wrong", "of ip filter INPUT (\"closed\") dropped the probe"])
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan, Need::WireGuard, Need::IpIp],
        lab::tests![
            wireguard_is_followed_to_the_peer_of_the_destination_and_from_there_back,
            ipip_is_followed_inside_its_outer_packets,
        ],
    )
}
