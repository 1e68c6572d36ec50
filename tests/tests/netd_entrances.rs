//! Nodes whose firewall closes their tunnel: `netd doctor` names the rule for each backend, and what it says is to be done
//! opens the tunnel.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result};
use lab::{Need, eventually};
use netd_node::entrance::open_as_doctor_says;
use netd_node::{Net, SOON, VXLAN, pod};

/// Everything but what was asked for and what is the node's own is denied.
const CLOSED_CONF: &str = "flush ruleset
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state vmap { established : accept, related : accept, invalid : drop }
		iifname { \"lo\", \"cbr0\", \"flannel.1\", \"flannel.ipip\", \"flannel-wg\" } accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		tcp dport { 22, 2379 } accept
	}
}
";

/// What a node with this firewall denies is found although this node's own questions are answered, and what is said is to be done
/// opens it: a packet that the other node sends first arrives.
fn is_found_and_opened(config: &str, close: &[&str], says: &str) -> Result<()> {
    let net = Net::start(config)?;
    let host = net.host("hdss7-21")?;
    host.write("/etc/nftables.conf", CLOSED_CONF)?;
    host.run(close)?;
    let _netd = net.both()?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    open_as_doctor_says(host, says)?;
    // No memory of what this node has sent helps.
    host.run(&["conntrack", "-F"])?;
    server.run(&["ping", "-c1", "-W5", "172.7.21.2"])?;
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]).map(drop))
}

const NFTABLES: &[&str] = &["nft", "-f", "/etc/nftables.conf"];
const IPTABLES: &[&str] = &[
    "sh",
    "-ec",
    "iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -A INPUT -i lo -j ACCEPT; \
     iptables -A INPUT -p tcp -j ACCEPT; iptables -A INPUT -i cbr0 -j ACCEPT; iptables -A INPUT -i flannel+ -j ACCEPT; \
     iptables -A INPUT -j REJECT",
];
const LEGACY: &[&str] = &[
    "sh",
    "-ec",
    "iptables-legacy -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-legacy -A INPUT -i lo -j ACCEPT; \
     iptables-legacy -A INPUT -p tcp -j ACCEPT; iptables-legacy -A INPUT -i cbr0 -j ACCEPT; \
     iptables-legacy -A INPUT -i flannel+ -j ACCEPT; iptables-legacy -P INPUT DROP",
];

fn ports_and_protocols_of_each_tunnel_are_found_closed_and_opened_in_each_firewall() -> Result<()> {
    let wireguard = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"wireguard"}}"#;
    let ipip = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"ipip"}}"#;
    let [vxlan, wg, proto] = ["to UDP port 8472", "to UDP port 51820", "of IP protocol 4"]
        .map(|what| format!("the tunnel's packets {what} from 10.4.7.22"));
    for (config, close, says) in [
        (VXLAN, NFTABLES, &vxlan),
        (wireguard, NFTABLES, &wg),
        (ipip, NFTABLES, &proto),
        (wireguard, IPTABLES, &wg),
        (ipip, IPTABLES, &proto),
        (VXLAN, LEGACY, &vxlan),
        (wireguard, LEGACY, &wg),
        (ipip, LEGACY, &proto),
    ] {
        is_found_and_opened(config, close, says).with_context(|| format!("{config} {close:?}"))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables, Need::WireGuard, Need::IpIp],
        lab::tests![ports_and_protocols_of_each_tunnel_are_found_closed_and_opened_in_each_firewall],
    )
}
