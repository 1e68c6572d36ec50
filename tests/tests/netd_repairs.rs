//! What somebody changes by hand of a node with both families, object by object and for each backend, is right again. How soon is
//! asked where one look at the kernel costs less (netd_vxlan.rs, netd_dual.rs).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need};
use netd_node::dual::{self, DUAL, DUAL_HOST_GW, SUBNETS, both};
use netd_node::each_is_repaired_at_last;

const WIREGUARD: &str = r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"wireguard","Mode":"separate"}}"#;

/// Everything that netd is responsible for in either family, as text that is equal when the state is.
fn state(host: &Host) -> Result<String> {
    let script = "for dev in $(ls /sys/class/net | grep flannel); do
          ip -o link show dev $dev | sed 's/^[0-9]*: //; s/qlen.*link/link/'; ip -o address show dev $dev scope global | sed 's/^[0-9]*: //'
          case $dev in *-v6*) cat /proc/sys/net/ipv6/conf/$dev/disable_ipv6;; *) cat /proc/sys/net/ipv4/conf/$dev/forwarding;; esac
          ip neigh show dev $dev nud permanent | sort; ip -6 neigh show dev $dev nud permanent | sort; bridge fdb show dev $dev | sort
        done
        ip -4 route show proto 121; ip -6 route show proto 121; nft -s list table ip netd; nft -s list table ip6 netd
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth0/forwarding /proc/sys/net/ipv6/conf/all/forwarding";
    Ok(host.run(&["sh", "-c", script])?.stdout)
}

/// Runs each of `changes` by itself and expects the state to be what it was; how long that took is printed.
fn each_is_repaired(host: &Host, changes: &[&str]) -> Result<()> {
    each_is_repaired_at_last(host, state, changes, |change, took| {
        eprintln!("{change}: {} ms", took.as_millis());
        Ok(())
    })
}

/// What stands beside every backend.
const RULES: &[&str] = &[
    "ip -4 route flush proto 121",
    "ip -6 route flush proto 121",
    "ip -4 route flush proto 121; ip -6 route flush proto 121; nft flush ruleset",
    "nft flush ruleset",
    "nft delete table ip6 netd",
    "nft delete table ip netd",
    "nft flush chain ip6 netd postrouting",
    "nft flush chain ip netd postrouting; nft delete chain ip netd postrouting",
    "nft insert rule ip6 netd postrouting accept",
    "nft add rule ip netd postrouting ip saddr 192.0.2.0/24 drop",
    "nft add chain ip netd theirs",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv6.conf.all.forwarding=0",
    "sysctl -qw net.ipv4.conf.all.forwarding=0",
];

fn vxlan_of_both_families_is_repaired() -> Result<()> {
    let net = dual::net(DUAL)?;
    let _netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    each_is_repaired(
        host,
        &[
            "ip -4 neigh flush dev flannel.1 nud permanent; ip -6 neigh flush dev flannel-v6.1 nud permanent",
            "for mac in $(bridge fdb show dev flannel-v6.1 | cut -d' ' -f1); do bridge fdb del $mac dev flannel-v6.1; done",
            "for mac in $(bridge fdb show dev flannel-v6.1 | cut -d' ' -f1); do bridge fdb replace $mac dev flannel-v6.1 dst fd00:10:4:7::99; done",
            "ip link del flannel-v6.1",
            "ip link del flannel.1; ip link del flannel-v6.1",
            "sysctl -qw net/ipv6/conf/flannel-v6.1/disable_ipv6=1",
            "sysctl -qw net/ipv6/conf/flannel-v6.1/disable_ipv6=1; ip link del flannel-v6.1",
            "sysctl -qw net/ipv4/conf/flannel.1/forwarding=0",
            "ip link set flannel-v6.1 down",
            "ip link set flannel-v6.1 mtu 1300",
            "ip link set flannel-v6.1 address 02:00:00:00:00:99",
            "ip -6 address flush dev flannel-v6.1 scope global",
            "ip -4 address flush dev flannel.1",
            "ip address add 192.0.2.7/32 dev flannel.1",
            "ip link set eth0 down; ip link set eth0 up; ip -6 address add fd00:10:4:7::21/64 dev eth0 nodad",
        ],
    )
}

fn direct_routes_of_both_families_are_repaired() -> Result<()> {
    let net = dual::net(DUAL_HOST_GW)?;
    let _netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    each_is_repaired(host, RULES)?;
    each_is_repaired(
        host,
        &[
            "sysctl -qw net/ipv4/conf/eth0/forwarding=0",
            "ip link set eth0 down; ip link set eth0 up; ip -6 address add fd00:10:4:7::21/64 dev eth0 nodad",
            "ip address del 10.4.7.21/24 dev eth0; ip address add 10.4.7.21/24 dev eth0",
        ],
    )
}

fn wireguard_of_both_families_is_repaired() -> Result<()> {
    let net = dual::net(WIREGUARD)?;
    let _netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    each_is_repaired(
        host,
        &[
            "ip link del flannel-wg-v6",
            "sysctl -qw net/ipv6/conf/flannel-wg-v6/disable_ipv6=1",
            "sysctl -qw net/ipv4/conf/flannel-wg/forwarding=0",
            "ip link set flannel-wg-v6 down",
            "ip link set flannel-wg-v6 mtu 1280",
            "ip -6 address flush dev flannel-wg-v6 scope global",
            "ip -4 address flush dev flannel-wg",
            "ip link set eth0 down; ip link set eth0 up; ip -6 address add fd00:10:4:7::21/64 dev eth0 nodad",
        ],
    )
}

/// Some distributions and hardening guides set what new links get.
fn devices_carry_where_new_links_are_to_have_no_ipv6_and_not_to_forward() -> Result<()> {
    let net = dual::net(DUAL)?;
    for node in ["hdss7-21", "hdss7-22"] {
        net.host(node)?.run(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])?;
    }
    let _netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    // netd's own `ip_forward` has set this one.
    host.run(&["sysctl", "-qw", "net.ipv4.conf.default.forwarding=0"])?;
    let parameters = ["net/ipv6/conf/flannel-v6.1/disable_ipv6", "net/ipv4/conf/flannel.1/forwarding"];
    let found = host.run(&[&["sysctl", "-n"][..], &parameters].concat())?.stdout;
    ensure!(found == "0\n1\n", "{found:?}");
    each_is_repaired(host, &["ip link del flannel-v6.1", "ip link del flannel.1"])
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables, Need::WireGuard],
        lab::tests![
            vxlan_of_both_families_is_repaired,
            devices_carry_where_new_links_are_to_have_no_ipv6_and_not_to_forward,
            direct_routes_of_both_families_are_repaired,
            wireguard_of_both_families_is_repaired,
        ],
    )
}
