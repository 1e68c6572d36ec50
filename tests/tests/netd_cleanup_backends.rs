//! `netd cleanup` after each backend and option: what goes, and what stays because it is somebody else's.

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Need, Process, eventually};
use netd_node::cleanup::{cleanup, files, others_have, state};
use netd_node::{Net, SOON, dual};

const WIREGUARD: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"wireguard"}}"#;
const IPIP: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"ipip"}}"#;
const AUTO: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"auto","Tunnel":"ipip"}}"#;
const FLOWTABLE: &str = r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"},"Flowtable":true}"#;
const EXTENSION: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"extension"}}"#;
const READY: &str = "ready: every lease is in the kernel";
const KEY: &str = "/var/lib/netd/wgkey";

/// Tunnels of an administrator: of each kind, one with flannel's name, and a route that looks nearly like netd's.
const TUNNELS: &str = "
ip link show tunl0 || ip link add tunl0 type ipip
ip link add wg9 type wireguard
wg genkey > /run/wg9.key
wg set wg9 listen-port 51999 private-key /run/wg9.key peer hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo= allowed-ips 172.7.202.0/24
ip link set wg9 up
ip route add 172.7.202.0/24 dev wg9 proto 121
ip link add ipip9 type ipip local 10.4.7.21 remote 10.4.7.99
ip link set ipip9 up
ip route add 172.7.203.0/24 dev ipip9
ip link add flannel.9 type vxlan id 9 dstport 8472 local 10.4.7.21 nolearning
ip link set flannel.9 up
nft add flowtable inet theirs pods '{ hook ingress priority 0; devices = { lo }; }'
ip route add blackhole 172.7.204.0/24
";

/// netd on both nodes, the first with `flags`.
fn start(net: &Net, flags: &[&str]) -> Result<[Process; 2]> {
    let both = [net.launch("hdss7-21", flags)?, net.launch("hdss7-22", &[])?];
    for netd in &both {
        netd.wait_for_line(READY, SOON)?;
    }
    Ok(both)
}

/// A network, and what the verb lists of it.
struct Case {
    config: &'static str,
    flags: &'static [&'static str],
    rows: &'static [&'static str],
}

fn everything_of_it_goes_and_what_others_have_stays(case: &Case) -> Result<()> {
    let net = dual::net(case.config)?;
    let host = net.host("hdss7-21")?;
    let _pod = dual::pod(host, "21")?;
    others_have(host)?;
    host.run(&["sh", "-ec", TUNNELS])?;
    let before = state(host)?;
    let [netd, _other] = start(&net, case.flags)?;
    let routes = case.rows.iter().filter_map(|row| row.strip_prefix("route "));
    for subnet in routes {
        dual::routes(&net, "21", subnet)?;
    }
    netd.terminate(SOON)?;
    let list = cleanup(host, &[])?;
    for row in case.rows {
        ensure!(list.stdout.contains(row), "{row}: {}", list.stdout);
    }
    for theirs in ["172.7.20", "wg9", "ipip9", "tunl0", "flannel.9", "theirs"] {
        ensure!(!list.stdout.contains(theirs), "{theirs}: {}", list.stdout);
    }
    let done = cleanup(host, &["--yes", "--files"])?;
    ensure!(done.status.success() && done.stdout.ends_with("removed\n"), "{done:?}");
    let after = state(host)?;
    ensure!(after == before, "{done:?}\nbefore:\n{before}\nafter:\n{after}");
    let left = files(host)?;
    ensure!(left == ["/run/netd/claims"], "{left:?}");
    let again = cleanup(host, &["--yes", "--files"])?;
    ensure!(again.status.success() && again.stdout == "nothing of this program's is here\n", "{again:?}");
    Ok(())
}

fn wireguard_goes_with_its_key() -> Result<()> {
    let rows =
        &["route 172.7.22.0/24", "route fd00:7:0:22::/64", "link flannel-wg ", "link flannel-wg-v6 ", "nft ", "rule "];
    everything_of_it_goes_and_what_others_have_stays(&Case { config: WIREGUARD, flags: &[], rows })
}

fn ipip_and_direct_routes_go() -> Result<()> {
    for config in [IPIP, AUTO] {
        let rows = &["route 172.7.22.0/24", "link flannel.ipip ", "nft ", "rule "];
        everything_of_it_goes_and_what_others_have_stays(&Case { config, flags: &[], rows })?;
    }
    Ok(())
}

fn flowtable_untracked_tunnel_and_blackhole_routes_go() -> Result<()> {
    everything_of_it_goes_and_what_others_have_stays(&Case {
        config: FLOWTABLE,
        flags: &["--ip-blackhole-route", "--untracked-tunnel"],
        rows: &[
            "route 172.7.22.0/24",
            "route 172.7.21.0/24",
            "route fd00:7:0:21::/64",
            "flowtable",
            "inet netd",
            "netdev netd",
            "link flannel-v6.1 ",
        ],
    })
}

/// What the operator's program has set up and says stays, and so does its folder.
fn files_of_the_extension_go_and_those_of_its_program_stay() -> Result<()> {
    let net = Net::start(EXTENSION)?;
    let host = net.host("hdss7-21")?;
    let data = "/run/netd/extension/backend-data";
    host.write(data, "of the program\n")?;
    host.write("/run/netd/extension/program.pid", "7\n")?;
    others_have(host)?;
    host.run(&["ip", "route", "add", "172.7.22.0/24", "via", "10.4.7.22", "proto", "200"])?;
    let before = state(host)?;
    let [netd, _other] = start(&net, &[])?;
    let peer = "/run/netd/extension/subnets/172.7.22.0-24";
    eventually(SOON, || {
        ensure!(host.path(peer).exists(), "no {peer}");
        Ok(())
    })?;
    netd.terminate(SOON)?;
    let list = cleanup(host, &["--files"])?;
    for row in ["nft ", "rule ", "file /run/netd/extension/node.env", &format!("file {peer}")] {
        ensure!(list.stdout.contains(row), "{row}: {list:?}");
    }
    ensure!(!list.stdout.contains("backend-data") && !list.stdout.contains("program.pid"), "{list:?}");
    let done = cleanup(host, &["--yes", "--files"])?;
    ensure!(done.status.success() && done.stdout.ends_with("removed\n"), "{done:?}");
    let after = state(host)?;
    ensure!(after == before, "{done:?}\nbefore:\n{before}\nafter:\n{after}");
    let left = files(host)?;
    ensure!(left == ["/run/netd/claims", data, "/run/netd/extension/program.pid"], "{left:?}");
    Ok(())
}

/// Without `--files` the key stays, and with it what the other nodes know of this one.
fn key_stays_unless_files_are_asked_for_and_while_another_network_uses_it() -> Result<()> {
    let net = dual::net(WIREGUARD)?;
    let host = net.host("hdss7-21")?;
    let [netd, _other] = start(&net, &[])?;
    let key = host.read(KEY)?;
    netd.terminate(SOON)?;
    let done = cleanup(host, &["--yes"])?;
    ensure!(done.status.success() && done.stdout.contains("link flannel-wg "), "{done:?}");
    ensure!(host.read(KEY)? == key && host.read("/run/flannel/subnet.env")?.contains("172.7.21.1"));
    let again = net.netd("hdss7-21")?;
    // A network of another backend goes, and this one's key is none of its files.
    net.etcd.put("/blue/config", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#)?;
    let words = ["--subnet-file=/run/flannel/blue.env", "--etcd-prefix=/blue", "--metrics-bind-address="];
    let blue = net.launch("hdss7-21", &words)?;
    blue.wait_for_line(READY, SOON)?;
    blue.terminate(SOON)?;
    let running = host.run(&["wg", "show", "flannel-wg", "peers"])?.stdout;
    let done = cleanup(host, &["--subnet-file=/run/flannel/blue.env", "--yes", "--files", "--flannel"])?;
    ensure!(done.status.success() && done.stdout.contains("link flannel.2 "), "{done:?}");
    ensure!(!done.stdout.contains("wg") && host.read(KEY)? == key, "{done:?}");
    ensure!(host.run(&["wg", "show", "flannel-wg", "peers"])?.stdout == running);
    ensure!(again.is_running());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan, Need::Dummy, Need::WireGuard, Need::IpIp, Need::Flowtable],
        lab::tests![
            wireguard_goes_with_its_key,
            ipip_and_direct_routes_go,
            flowtable_untracked_tunnel_and_blackhole_routes_go,
            files_of_the_extension_go_and_those_of_its_program_stay,
            key_stays_unless_files_are_asked_for_and_while_another_network_uses_it,
        ],
    )
}
