//! Nodes that come from flannel and go back to it, with Pods that talk all the while.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use kernel::offload::TxChecksums;
use lab::{Host, Need, Process, allowing_for_load, eventually, throughout};
use netd_node::traffic::{Counts, Traffic};
use netd_node::{A_SECOND, Net, SOON, VXLAN, lease, pod};
use netstate::{IfName, TxChecksum};
use reconcile::{Step, Target as _};

const ONE: &str = "hdss7-21";
const OTHER: &str = "hdss7-22";
const MAC: &str = "02:00:00:00:00:21";
const KEY: &str = "/coreos.com/network/subnets/172.7.21.0-24";

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The rules of flannel's iptables mode on a node with 172.7.21.0/24, in its order (pkg/trafficmngr/iptables).
const RULES: &str = r#"
iptables -t nat -N FLANNEL-POSTRTG
iptables -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 172.7.21.0/24 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
iptables -t nat -A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
iptables -t nat -A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
iptables -N FLANNEL-FWD
iptables -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
iptables -A FLANNEL-FWD -s 172.7.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
iptables -A FLANNEL-FWD -d 172.7.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
"#;

/// What flannel does for one lease of another node: neighbour, forwarding entry, route, each created or replaced.
fn flannel_adds(host: &Host, subnet: &str, mac: &str, public_ip: &str) -> Result<()> {
    let script = format!(
        "ip neigh replace {subnet} lladdr {mac} dev flannel.1 nud permanent
         bridge fdb replace {mac} dev flannel.1 dst {public_ip} self permanent
         ip route replace {subnet}/24 via {subnet} dev flannel.1 onlink"
    );
    host.run(&["sh", "-ec", &script]).map(drop)
}

/// What flannel does at its start on a node that holds 172.7.21.0/24: it keeps a device that is as it would make it, sets
/// address and state, and writes its rules and the subnet file.
fn flannel_starts(host: &Host, options: &str) -> Result<()> {
    let script = format!(
        "ip link show flannel.1 >/dev/null 2>&1 || ip link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 \
           local 10.4.7.21 dev eth0 dstport 8472 {options}
         ip address replace 172.7.21.0/32 dev flannel.1; ip link set flannel.1 up; sysctl -qw net.ipv4.ip_forward=1
         iptables -t nat -S FLANNEL-POSTRTG >/dev/null 2>&1 || {{ {RULES} }}
         mkdir -p /run/flannel; printf '{}' > /run/flannel/subnet.env",
        SUBNET_ENV.replace('\n', "\\n")
    );
    host.run(&["sh", "-ec", &script]).map(drop)
}

/// The hardware address in the lease of a node.
fn mac_of(net: &Net, node: &str) -> Result<String> {
    let value = net.etcd.get(&format!("/coreos.com/network/subnets/172.7.{node}.0-24"))?.context("no lease")?;
    let value: serde_json::Value = serde_json::from_str(&value)?;
    Ok(value["BackendData"]["VtepMAC"].as_str().context("no hardware address")?.to_owned())
}

/// A cluster of a flannel node and a netd node whose Pods talk.
fn mixed(options: &str) -> Result<(Net, Process, Traffic)> {
    let net = Net::start(VXLAN)?;
    net.etcd.put(KEY, &lease("10.4.7.21", MAC))?;
    let netd = net.netd(OTHER)?;
    net.eventually_routes(OTHER, "172.7.21.0/24")?;
    let host = net.host(ONE)?;
    flannel_starts(host, options)?;
    flannel_adds(host, "172.7.22.0", &mac_of(&net, "22")?, "10.4.7.22")?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host(OTHER)?, "172.7.22")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    Ok((net, netd, traffic))
}

fn index(host: &Host) -> Result<String> {
    host.read("/sys/class/net/flannel.1/ifindex")
}

fn rules(host: &Host) -> Result<String> {
    Ok(host.run(&["sh", "-c", "iptables -t nat -S; iptables -S FLANNEL-FWD"])?.stdout)
}

/// netd takes over a device that flannel or somebody else made with `options` under the traffic; says whether it is the
/// same device after it, and what was lost.
fn taken_over(options: &str) -> Result<(bool, Counts)> {
    let (net, _other, traffic) = mixed(options)?;
    let host = net.host(ONE)?;
    let before = index(host)?;
    let _netd = net.netd(ONE)?;
    net.eventually_routes(ONE, "172.7.22.0/24")?;
    let device = host.run(&["ip", "-d", "link", "show", "flannel.1"])?.stdout;
    // Newer tools have another order, and leave out what is as the kernel makes it of itself.
    let has =
        ["id 1", "local 10.4.7.21", "dev eth0", "srcport 0 0", "dstport 8472", "nolearning", "ttl auto", "ageing 300"];
    let has_not = ["noudpcsum", "l2miss", "l3miss", "tos"];
    let says = |part: &&str| device.contains(&format!(" {part} "));
    ensure!(has.iter().all(says) && !has_not.iter().any(says), "{device}");
    ensure!(device.contains(MAC), "{device}");
    Ok((index(host)? == before, traffic.stop()?))
}

fn device_as_flannel_makes_it_is_taken_over_without_a_lost_packet() -> Result<()> {
    let (same, counts) = taken_over("nolearning")?;
    ensure!(same && counts.lost == 0, "{same} {counts:?}");
    Ok(())
}

fn options_that_the_kernel_changes_in_place_cost_no_packet() -> Result<()> {
    for options in ["learning", "nolearning ttl 3", "nolearning tos inherit"] {
        let (same, counts) = taken_over(options)?;
        ensure!(same && counts.lost == 0, "{options}: {same} {counts:?}");
    }
    Ok(())
}

fn options_that_only_birth_sets_make_a_new_device_under_the_connection() -> Result<()> {
    for options in ["nolearning l2miss l3miss", "nolearning srcport 20000 20100 noudpcsum"] {
        let (same, counts) = taken_over(options)?;
        // Between the two devices nothing is carried; TCP sends it again.
        ensure!(!same && counts.lost <= 20, "{options}: {same} {counts:?}");
    }
    Ok(())
}

/// Over to netd and back to flannel, each time with nothing but a stop and a start.
fn way_over_and_back_loses_nothing() -> Result<()> {
    let (net, _other, traffic) = mixed("nolearning")?;
    let host = net.host(ONE)?;
    let (device, before) = (index(host)?, rules(host)?);
    let netd = net.netd(ONE)?;
    net.eventually_routes(ONE, "172.7.22.0/24")?;
    ensure!(rules(host)? == before, "flannel's rules are not netd's to change");
    traffic.flows()?;
    ensure!(netd.terminate(SOON)?.success());
    // What flannel starts from: its lease, its file, its device.
    ensure!(net.etcd.get(KEY)? == Some(lease("10.4.7.21", MAC)), "{:?}", net.etcd.get(KEY)?);
    ensure!(host.read("/run/flannel/subnet.env")? == SUBNET_ENV, "{}", host.read("/run/flannel/subnet.env")?);
    ensure!(index(host)? == device && host.read("/sys/class/net/flannel.1/address")?.trim() == MAC);
    flannel_starts(host, "nolearning")?;
    flannel_adds(host, "172.7.22.0", &mac_of(&net, "22")?, "10.4.7.22")?;
    net.etcd.put(KEY, &lease("10.4.7.21", MAC))?;
    traffic.flows()?;
    ensure!(rules(host)? == before && index(host)? == device);
    // What README says to remove once flannel runs; it is not needed before.
    host.run(&["sh", "-ec", "ip route flush proto 121; nft delete table ip netd"])?;
    traffic.flows()?;
    let routes = host.run(&["ip", "route"])?.stdout;
    ensure!(routes.contains("172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink") && !routes.contains("proto 121"));
    // And over once more, with what flannel wrote in the meantime.
    let _again = net.netd(ONE)?;
    net.eventually_routes(ONE, "172.7.22.0/24")?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    ensure!(index(host)? == device, "the device was made anew");
    Ok(())
}

/// A node that flannel added while netd runs elsewhere, and one whose lease flannel changed.
fn nodes_of_both_programs_follow_each_others_leases() -> Result<()> {
    let (net, _other, traffic) = mixed("nolearning")?;
    // flannel's node gets another hardware address, as after a reboot in etcd mode.
    let new = "02:00:00:00:00:77";
    let host = net.host(ONE)?;
    host.run(&["ip", "link", "set", "flannel.1", "address", new])?;
    flannel_adds(host, "172.7.22.0", &mac_of(&net, "22")?, "10.4.7.22")?;
    net.etcd.put(KEY, &lease("10.4.7.21", new))?;
    traffic.flows()?;
    let entries = net.host(OTHER)?.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?.stdout;
    ensure!(entries.contains(new) && !entries.contains(MAC), "{entries}");
    traffic.stop()?;
    Ok(())
}

/// A node with an address of its own network, whose routes flannel made with DirectRouting.
fn direct_routes_on_a_node_with_a_host_address_are_taken_over() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#)?;
    let host = net.host(ONE)?;
    let script =
        "ip address flush dev eth0; ip address add 10.4.7.21/32 dev eth0; ip route add 10.4.7.0/24 dev eth0 proto dhcp";
    host.run(&["sh", "-ec", script])?;
    net.etcd.put(KEY, &lease("10.4.7.21", MAC))?;
    for last in ["22", "23", "24"] {
        net.put_lease(&format!("172.7.{last}.0-24"), &format!("10.4.7.{last}"), &format!("02:00:00:00:00:{last}"))?;
    }
    flannel_starts(host, "nolearning")?;
    for last in ["22", "23", "24", "44"] {
        host.run(&["ip", "route", "replace", &format!("172.7.{last}.0/24"), "via", &format!("10.4.7.{last}")])?;
    }
    let _netd = net.netd(ONE)?;
    eventually(SOON, || {
        let routes = host.run(&["ip", "route"])?.stdout;
        ensure!(!routes.contains("172.7.44.0/24"), "a route of flannel's to a node that is gone stays: {routes}");
        ensure!(routes.matches("172.7.22.0/24").count() == 1, "two routes to one node: {routes}");
        ensure!(routes.contains("172.7.22.0/24 via 10.4.7.22 dev eth0 proto 121"), "{routes}");
        Ok(())
    })
}

/// As `ethtool -K flannel.1 tx` does, from outside of netd.
fn set_offload(host: &Host, value: TxChecksum) -> Result<()> {
    let device: IfName = "flannel.1".parse()?;
    host.within(|| {
        let done = TxChecksums::open([device.clone()])?.apply(&[Step::Create(device, value)]);
        Ok::<_, anyhow::Error>(done.into_iter().collect::<Result<(), _>>()?)
    })?
}

fn offloads(host: &Host) -> Result<bool> {
    let device: IfName = "flannel.1".parse()?;
    let rows = host.within(|| TxChecksums::open([device.clone()])?.observe())??;
    Ok(rows.get(&device).context("no flannel.1")?.value == TxChecksum::Offloaded)
}

fn check(holds: bool, otherwise: &str) -> Result<()> {
    ensure!(holds, "{otherwise}");
    Ok(())
}

fn checksum(host: &Host) -> Result<String> {
    let netd = lab::bin("netd")?;
    let text = host.command(netd).args(["tables"]).run()?.stdout;
    Ok(text.lines().find(|line| line.contains("tx-checksum")).unwrap_or("none").trim().to_owned())
}

fn checksum_workaround_follows_the_configuration_and_is_kept() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [_netd, _other] = net.both()?;
    let host = net.host(ONE)?;
    let config = |value: &str| {
        format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"vxlan","ChecksumWorkaround":"{value}"}}}}"#)
    };
    let says = |what: &str| {
        eventually(SOON, || {
            let status = net.status(ONE)?;
            let said = status["node"]["checksum_workaround"].as_str().unwrap_or_default().to_owned();
            ensure!(said.starts_with(what) && status["node"]["in_sync"] == true, "{said:?}, not {what}: {status}");
            Ok(())
        })
    };
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host(OTHER)?, "172.7.22")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    says("off: nothing is known")?;
    let offloaded = || offloads(host);
    ensure!(offloaded()?, "{}", checksum(host)?);
    net.etcd.put("/coreos.com/network/config", &config("on"))?;
    says("on, as net-conf says")?;
    eventually(SOON, || check(!offloaded()?, "still offloaded"))?;
    ensure!(checksum(host)?.contains("flannel.1 tx-checksum off"), "{}", checksum(host)?);
    // Somebody turns it back; the device is made anew.
    set_offload(host, TxChecksum::Offloaded)?;
    eventually(allowing_for_load(A_SECOND), || check(!offloaded()?, "turned back"))?;
    host.run(&["ip", "link", "del", "flannel.1"])?;
    eventually(allowing_for_load(A_SECOND), || check(!offloaded()?, "the new device offloads"))?;
    net.etcd.put("/coreos.com/network/config", &config("auto"))?;
    says("off: nothing is known")?;
    eventually(SOON, || check(offloaded()?, "not given back"))?;
    // What an administrator turned off stays with auto.
    set_offload(host, TxChecksum::Counted)?;
    throughout(A_SECOND, || check(!offloaded()?, "auto turned it on"))?;
    net.etcd.put("/coreos.com/network/config", &config("off"))?;
    says("off, as net-conf says")?;
    eventually(SOON, || check(offloaded()?, "not turned on"))?;
    traffic.stop()?;
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            device_as_flannel_makes_it_is_taken_over_without_a_lost_packet,
            options_that_the_kernel_changes_in_place_cost_no_packet,
            options_that_only_birth_sets_make_a_new_device_under_the_connection,
            way_over_and_back_loses_nothing,
            nodes_of_both_programs_follow_each_others_leases,
            direct_routes_on_a_node_with_a_host_address_are_taken_over,
            checksum_workaround_follows_the_configuration_and_is_kept,
        ],
    )
}
