//! From the rules of a kube-proxy of the mode nftables to ours and back, with packets.
//!
//! No program that makes them can be had here, so they are made by hand: every chain, map and set that kube-proxy 1.36 has, with its hooks, priorities and
//! marks, for two Services that both serve, one that is left, and one without endpoints.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;
mod takeover;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process, echo};
use proxy::{NODE_PORT_WEB, Nodes, SOON, WEB, dns, servers, slice};
use takeover::{Open, PODS, call, nodes, ours, under_load};

/// A Service that only its rules have.
const LEFT: &str = "192.168.0.77:80";
const NODE_PORT: &str = "10.4.7.21:30080";

/// What is the same whatever the Services are.
const BASE: &str = r#"table ip kube-proxy {
	comment "rules for kube-proxy"
	chain mark-for-masquerade { meta mark set meta mark | 0x4000; }
	chain masquerading {
		meta mark & 0x4000 == 0 return
		meta mark set meta mark ^ 0x4000
		masquerade fully-random
	}
	chain reject-chain { reject; }
	set cluster-ips { type ipv4_addr; comment "Active ClusterIPs"; }
	set nodeport-ips { type ipv4_addr; comment "IPs that accept NodePort traffic"; elements = { 10.4.7.21 }; }
	map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
	map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
	chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
	chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
	chain cluster-ips-check {
		ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
		ip daddr { 192.168.0.0/16 } drop comment "Drop traffic to unallocated ClusterIPs"
	}
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain filter-prerouting-pre-dnat { type filter hook prerouting priority -110; ct state new jump firewall-check; }
	chain filter-output-pre-dnat { type filter hook output priority -110; ct state new jump firewall-check; }
	chain filter-input {
		type filter hook input priority 0
		ct state new jump nodeport-endpoints-check
		ct state new jump service-endpoints-check
	}
	chain filter-forward {
		type filter hook forward priority 0
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}
	chain filter-output {
		type filter hook output priority 0
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}
	chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}
add element ip kube-proxy cluster-ips { 192.168.0.78 }
add element ip kube-proxy no-endpoint-services { 192.168.0.78 . tcp . 80 comment "default/empty:http" : goto reject-chain }
"#;

/// The rules of a port of a Service with the endpoints [`PODS`], as its first transaction has them.
fn of_service(name: &str, (addr, protocol, port): (&str, &str, u16), node_port: Option<u16>) -> Result<String> {
    let (mut text, mut choice) = (String::new(), String::new());
    for (index, pod) in PODS.iter().enumerate() {
        let chain = format!("endpoint-{name}__{pod}/80");
        writeln!(text, "add chain ip kube-proxy {chain}")?;
        writeln!(text, "add rule ip kube-proxy {chain} ip saddr {pod} jump mark-for-masquerade")?;
        writeln!(text, "add rule ip kube-proxy {chain} meta l4proto {protocol} dnat to {pod}:80")?;
        write!(choice, "{}{index} : goto {chain}", if index > 0 { ", " } else { "" })?;
    }
    let chain = format!("service-{name}");
    writeln!(text, "add chain ip kube-proxy {chain}")?;
    writeln!(
        text,
        "add rule ip kube-proxy {chain} ip daddr {addr} {protocol} dport {port} ip saddr != 172.7.0.0/16 jump mark-for-masquerade"
    )?;
    writeln!(text, "add rule ip kube-proxy {chain} numgen random mod {} vmap {{ {choice} }}", PODS.len())?;
    writeln!(text, "add element ip kube-proxy cluster-ips {{ {addr} }}")?;
    writeln!(text, "add element ip kube-proxy service-ips {{ {addr} . {protocol} . {port} : goto {chain} }}")?;
    if let Some(node_port) = node_port {
        writeln!(text, "add chain ip kube-proxy external-{name}")?;
        writeln!(text, "add rule ip kube-proxy external-{name} jump mark-for-masquerade")?;
        writeln!(text, "add rule ip kube-proxy external-{name} goto {chain}")?;
        writeln!(
            text,
            "add element ip kube-proxy service-nodeports {{ {protocol} . {node_port} : goto external-{name} }}"
        )?;
    }
    Ok(text)
}

/// Puts all of its rules into the kernel at once.
fn load(node: &Host) -> Result<()> {
    let mut text = BASE.to_owned();
    text += &of_service("ULMVA6XW-default/web/tcp/http", ("192.168.0.10", "tcp", 80), Some(30080))?;
    text += &of_service("MHHHYRWA-default/dns/udp/dns", ("192.168.0.53", "udp", 53), None)?;
    text += &of_service("4AT6LBPK-default/left/tcp/http", ("192.168.0.77", "tcp", 80), None)?;
    node.command("nft").args(["-f", "-"]).input(text).run().map(drop)
}

fn answers(nodes: &Nodes, at: &str, when: &str) -> Result<()> {
    let answer = echo::ask_tcp(nodes.outside()?, at.parse()?, SOON).with_context(|| format!("{at} {when}"))?;
    ensure!(PODS.contains(&answer.name.as_str()), "{at} {when}: {answer:?}");
    Ok(())
}

/// The nodes with its rules, and what is open through them.
fn carried_by_its_rules() -> Result<(Nodes, Open)> {
    let nodes = nodes()?;
    nodes.publish("web.yaml", &format!("{NODE_PORT_WEB}{}", slice(&PODS)))?;
    nodes.publish("dns.yaml", &dns(&PODS))?;
    load(nodes.node()?)?;
    nodes.node()?.run(&["nft", "add table ip others; add chain ip others services"])?;
    for at in [WEB, NODE_PORT, LEFT] {
        answers(&nodes, at, "by the rules of kube-proxy")?;
    }
    let open = Open::start(&nodes)?;
    Ok((nodes, open))
}

/// Starts ours in this mode and cleans up behind kube-proxy, of which nothing is left then.
fn take_over(nodes: &Nodes, open: &mut Open, mode: &str) -> Result<Process> {
    let proxy = ours(nodes, &[&format!("--proxy-mode={mode}"), "--nodeport-addresses=10.4.7.0/24"])?;
    open.goes_on("the start of ours")?;
    let said = call(nodes, "--cleanup-kube-proxy")?;
    ensure!(said.contains("removed nft table ip kube-proxy"), "{said}");
    open.goes_on("the clean-up behind kube-proxy")?;
    answers(nodes, NODE_PORT, "by ours")?;
    let left = echo::ask_tcp(nodes.outside()?, LEFT.parse()?, Duration::from_secs(2));
    ensure!(left.is_err(), "{LEFT} is nobody's any more, and answers: {left:?}");
    let tables = nodes.node()?.run(&["nft", "list", "tables"])?.stdout;
    ensure!(!tables.contains("table ip kube-proxy"), "{tables}");
    ensure!(tables.contains("table ip others") && tables.contains("table ip ipvs-proxy"), "{tables}");
    Ok(proxy)
}

fn rules_of_a_kube_proxy_of_nftables_are_taken_over_and_take_over_again_without_a_failed_connection() -> Result<()> {
    let (nodes, mut open) = carried_by_its_rules()?;
    let node = nodes.node()?;
    let connected = under_load(&nodes, || {
        let proxy = take_over(&nodes, &mut open, "nftables")?;
        load(node)?;
        open.goes_on("kube-proxy's return")?;
        ensure!(proxy.terminate(SOON)?.success());
        call(&nodes, "--cleanup")?;
        let tables = node.run(&["nft", "list", "tables"])?.stdout;
        ensure!(!tables.contains("ipvs-proxy") && tables.contains("table ip kube-proxy"), "{tables}");
        for at in [WEB, NODE_PORT, LEFT] {
            answers(&nodes, at, "by the rules of kube-proxy again")?;
        }
        open.goes_on("the way back")
    })?;
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    Ok(())
}

fn rules_of_a_kube_proxy_of_nftables_are_taken_over_by_ipvs_without_a_failed_connection() -> Result<()> {
    let (nodes, mut open) = carried_by_its_rules()?;
    let mut proxy = None;
    let connected = under_load(&nodes, || {
        proxy = Some(take_over(&nodes, &mut open, "ipvs")?);
        Ok(())
    })?;
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    let servers = servers(nodes.node()?)?;
    ensure!(servers.iter().any(|line| line.starts_with(&format!("-A -t {WEB} "))), "{servers:?}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            rules_of_a_kube_proxy_of_nftables_are_taken_over_and_take_over_again_without_a_failed_connection,
            rules_of_a_kube_proxy_of_nftables_are_taken_over_by_ipvs_without_a_failed_connection,
        ],
    )
}
