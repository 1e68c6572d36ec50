//! The options of the vxlan backend: what the kernel's device becomes, what packets do, and what a change on a running
//! cluster costs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::traffic::{Counts, Traffic};
use netd_node::{Net, SOON, pod};

const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];
const CONFIG: &str = "/coreos.com/network/config";

/// net-conf with these members of `Backend`.
fn config(options: &str) -> String {
    let comma = if options.is_empty() { "" } else { "," };
    format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"vxlan"{comma}{options}}}}}"#)
}

fn device(host: &Host) -> Result<String> {
    Ok(host.run(&["ip", "-d", "link", "show", "type", "vxlan"])?.stdout)
}

/// Both nodes have a device with each of `parts`, and without each that begins with `!`.
fn eventually_devices(net: &Net, parts: &[&str]) -> Result<()> {
    // A device that is replaced by another one stays for ten seconds after the last node has moved.
    eventually(3 * SOON, || {
        for node in NODES {
            let (shown, status) = (device(net.host(node)?)?, net.status(node)?);
            let holds = |part: &&str| match part.strip_prefix('!') {
                Some(absent) => !shown.contains(absent),
                None => shown.contains(part),
            };
            ensure!(parts.iter().all(holds), "{node}: {parts:?} in {shown}");
            ensure!(status["node"]["in_sync"] == true, "{node}: {status}");
        }
        Ok(())
    })
}

fn each_option_is_in_the_kernel_and_packets_pass() -> Result<()> {
    for (options, parts) in [
        (r#""VNI":77,"Port":4789"#, &["flannel.77", "vxlan id 77", "dstport 4789"][..]),
        (r#""GBP":true,"Learning":true"#, &["flannel.1", "! nolearning ", " gbp "][..]),
        (r#""MTU":1400"#, &["mtu 1350", " nolearning "][..]),
        // An option of flannel's on Windows.
        (r#""MacPrefix":"0E-2A","Port":0,"MTU":0"#, &["mtu 1450", "dstport 8472"][..]),
    ] {
        let net = Net::start(&config(options))?;
        let host = net.host(NODES[0])?;
        let port = if options.contains("4789") { 4789 } else { 8472 };
        let count = format!(
            "nft add table inet count; nft add chain inet count in '{{ type filter hook input priority 0; }}'; \
             nft add rule inet count in udp dport {port} counter"
        );
        host.run(&["sh", "-ec", &count])?;
        let _netd = net.both()?;
        eventually_devices(&net, parts)?;
        let (web, _server) = (pod(host, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
        web.run(&["ping", "-c3", "-i0.1", "-W5", "172.7.22.2"])?;
        let counted = host.run(&["nft", "list", "table", "inet", "count"])?.stdout;
        ensure!(!counted.contains("counter packets 0 "), "{options}: no packet at port {port}: {counted}");
        let address = host.run(&["sh", "-c", "cat /sys/class/net/flannel.*/address"])?.stdout;
        ensure!(!address.starts_with("0e:2a"), "{address}");
    }
    Ok(())
}

/// What a change from one to another costs Pods that talk all the while. The connection survives each.
fn cost(from: &str, to: &str, parts: &[&str]) -> Result<Counts> {
    let net = Net::start(&config(from))?;
    let _netd = net.both()?;
    let (web, server) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    net.etcd.put(CONFIG, &config(to))?;
    eventually_devices(&net, parts)?;
    traffic.flows()?;
    let counts = traffic.stop()?;
    eprintln!("{from} -> {to}: {counts:?}");
    Ok(counts)
}

fn learning_and_mtu_change_without_a_lost_packet() -> Result<()> {
    for (from, to, parts) in [
        ("", r#""Learning":true"#, &["! nolearning "][..]),
        (r#""Learning":true"#, "", &[" nolearning "][..]),
        ("", r#""MTU":1400"#, &["mtu 1350"][..]),
    ] {
        let counts = cost(from, to, parts)?;
        ensure!(counts.lost == 0, "{from} -> {to}: {counts:?}");
    }
    Ok(())
}

/// With another VNI it is another device, and leases say which of the two a node has.
fn port_and_gbp_change_with_the_vni_without_a_lost_packet() -> Result<()> {
    for (to, parts) in [
        (r#""VNI":2,"Port":4789"#, &["flannel.2", "dstport 4789", "!flannel.1:"][..]),
        (r#""VNI":2,"Port":4789,"GBP":true"#, &["flannel.2", " gbp ", "!flannel.1:"][..]),
    ] {
        let counts = cost("", to, parts)?;
        ensure!(counts.lost == 0, "{to}: {counts:?}");
    }
    Ok(())
}

/// Two devices of one VNI cannot tell whether a node has moved: its lease says neither port nor GBP.
fn port_and_gbp_change_under_the_connection_with_few_lost_packets() -> Result<()> {
    for (from, to, parts) in [
        ("", r#""Port":4789"#, &["dstport 4789"][..]),
        ("", r#""GBP":true"#, &[" gbp "][..]),
        (r#""GBP":true"#, "", &["! gbp "][..]),
    ] {
        let counts = cost(from, to, parts)?;
        ensure!(counts.lost <= 20, "{from} -> {to}: {counts:?}");
    }
    Ok(())
}

fn change_that_costs_packets_is_said_in_the_log() -> Result<()> {
    let net = Net::start(&config(""))?;
    let [netd, _other] = net.both()?;
    net.etcd.put(CONFIG, &config(r#""Port":4789"#))?;
    let line = netd.wait_for_line("until the other nodes have changed", SOON)?;
    ensure!(line.contains("Port") && line.contains("WARN"), "{line}");
    eventually_devices(&net, &["dstport 4789"])
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            each_option_is_in_the_kernel_and_packets_pass,
            learning_and_mtu_change_without_a_lost_packet,
            port_and_gbp_change_with_the_vni_without_a_lost_packet,
            port_and_gbp_change_under_the_connection_with_few_lost_packets,
            change_that_costs_packets_is_said_in_the_log,
        ],
    )
}
