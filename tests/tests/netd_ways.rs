//! Which way packets take to another node: decided by the kernel's own answer for each, again when its routes change,
//! and with reverse path filters on. What rules and routes of others make of it is named.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Pod, eventually};
use netd_node::traffic::Traffic;
use netd_node::{HOST_GW, Net, SOON, VXLAN, pod};

const DIRECT: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// Both nodes with addresses of a single host and a route on the link to each other, as cloud networks and keepalived make
/// them, and with strict reverse path filters.
fn single_addresses(net: &Net) -> Result<()> {
    for (node, own, other) in [("hdss7-21", "10.4.7.21", "10.4.7.22"), ("hdss7-22", "10.4.7.22", "10.4.7.21")] {
        let script = format!(
            "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1
             ip address flush dev eth0; ip address add {own}/32 dev eth0
             ip route add {other} dev eth0; ip route add 10.4.7.12 dev eth0; ip route add default via {other} dev eth0"
        );
        net.host(node)?.run(&["sh", "-ec", &script])?;
    }
    Ok(())
}

/// The way of the node to `subnet` goes by `by`.
fn eventually_by(host: &Host, subnet: &str, by: &str) -> Result<()> {
    eventually(SOON, || {
        let route = host.run(&["ip", "route", "show", "proto", "121", subnet])?.stdout;
        ensure!(route.contains(by) && route.lines().count() == 1, "{route}");
        Ok(())
    })
}

fn pods_of(net: &Net) -> Result<(Pod, Pod)> {
    Ok((pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?))
}

fn node_with_a_single_address_and_a_route_on_the_link_is_reached_directly() -> Result<()> {
    let net = Net::start(DIRECT)?;
    single_addresses(&net)?;
    let _netd = [net.launch("hdss7-21", &[])?, net.launch("hdss7-22", &["--lease-policy=first-free"])?];
    let (one, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    eventually(SOON, || {
        ensure!(net.subnets()?.len() == 2, "{:?}", net.subnets()?);
        Ok(())
    })?;
    let subnet = |host: &Host| -> Result<String> {
        let file = host.read("/run/flannel/subnet.env")?;
        let line = file.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).context("no subnet")?;
        Ok(line.trim_end_matches(".1/24").to_owned())
    };
    let (first, second) = eventually(SOON, || Ok::<_, anyhow::Error>((subnet(one)?, subnet(other)?)))?;
    eventually_by(one, &format!("{second}.0/24"), "via 10.4.7.22 dev eth0")?;
    eventually_by(other, &format!("{first}.0/24"), "via 10.4.7.21 dev eth0")?;
    let (web, server) = (pod(one, &first)?, pod(other, &second)?);
    let counts = Traffic::start(web, &server, &format!("{second}.2"))?.stop()?;
    ensure!(counts.answers >= 20, "{counts:?}");
    Ok(())
}

fn ways_are_decided_again_when_routes_change() -> Result<()> {
    let net = Net::start(DIRECT)?;
    let _netd = net.both()?;
    let (one, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let (web, server) = pods_of(&net)?;
    eventually_by(one, "172.7.22.0/24", "via 10.4.7.22 dev eth0")?;
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    // A router between the two: only the tunnel gets there. Both ways round.
    for (host, address, subnet) in [(one, "10.4.7.22", "172.7.22"), (other, "10.4.7.21", "172.7.21")] {
        host.run(&["ip", "route", "add", &format!("{address}/32"), "via", "10.4.7.200"])?;
        eventually_by(host, &format!("{subnet}.0/24"), &format!("via {subnet}.0 dev flannel.1"))?;
    }
    // The outside host is that router.
    net.host("hdss7-200")?.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    traffic.flows()?;
    for (host, address, subnet) in [(one, "10.4.7.22", "172.7.22"), (other, "10.4.7.21", "172.7.21")] {
        host.run(&["ip", "route", "del", &format!("{address}/32"), "via", "10.4.7.200"])?;
        eventually_by(host, &format!("{subnet}.0/24"), &format!("via {address} dev eth0"))?;
        let fdb = host.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?.stdout;
        ensure!(!fdb.contains(address), "{fdb}");
    }
    traffic.stop()?;
    Ok(())
}

fn node_on_another_interface_is_reached_by_that() -> Result<()> {
    let net = Net::start(DIRECT)?;
    let one = net.host("hdss7-21")?;
    net.cluster.attach("hdss7-21", "eth1")?;
    one.run(&["sh", "-ec", "ip link set eth1 up; ip address add 10.9.9.21/24 dev eth1"])?;
    net.host("hdss7-22")?.run(&["ip", "address", "add", "10.9.9.22/24", "dev", "eth0"])?;
    let _netd = net.netd("hdss7-21")?;
    net.put_lease("172.7.22.0-24", "10.9.9.22", "02:00:00:00:00:22")?;
    eventually_by(one, "172.7.22.0/24", "via 10.9.9.22 dev eth1")
}

fn lease_that_names_any_own_address_is_refused_by_name() -> Result<()> {
    for config in [DIRECT, HOST_GW, VXLAN] {
        let net = Net::start(config)?;
        let one = net.host("hdss7-21")?;
        net.cluster.attach("hdss7-21", "eth1")?;
        one.run(&["sh", "-ec", "ip link set eth1 up; ip address add 10.9.9.21/24 dev eth1"])?;
        let _netd = net.netd("hdss7-21")?;
        let backend = if config == HOST_GW { "host-gw" } else { "02:00:00:00:00:33" };
        net.put_lease("172.7.33.0-24", "10.9.9.21", backend)?;
        net.put_lease("172.7.34.0-24", "10.4.7.34", &backend.replace("33", "34"))?;
        // What is for everybody on that link is no node either.
        net.put_lease("172.7.35.0-24", "10.9.9.255", &backend.replace("33", "35"))?;
        net.eventually_routes("hdss7-21", "172.7.34.0/24")?;
        eventually(SOON, || {
            let skipped = net.status("hdss7-21")?["skipped"].clone();
            for subnet in ["172.7.33.0/24", "172.7.35.0/24"] {
                ensure!(skipped[subnet].to_string().contains("this node's own eth1"), "{skipped}");
                let routes = one.run(&["ip", "route", "show", subnet])?.stdout;
                ensure!(routes.is_empty(), "{routes}");
            }
            Ok(())
        })?;
        // An address that comes later as well, and one that goes.
        one.run(&["sh", "-ec", "ip address del 10.9.9.21/24 dev eth1; ip address add 10.4.7.34/32 dev eth1"])?;
        eventually(SOON, || {
            let skipped = net.status("hdss7-21")?["skipped"].clone();
            ensure!(skipped["172.7.34.0/24"].to_string().contains("this node's own eth1"), "{skipped}");
            ensure!(skipped["172.7.33.0/24"].is_null(), "{skipped}");
            Ok(())
        })?;
    }
    Ok(())
}

fn way_by_several_next_hops_or_by_a_next_hop_object_is_understood() -> Result<()> {
    let net = Net::start(DIRECT)?;
    let _netd = net.both()?;
    let one = net.host("hdss7-21")?;
    let objects = "nexthop add id 7 via 10.4.7.200 dev eth0\nnexthop add id 8 dev eth0\n\
                   nexthop add id 9 via 10.4.7.12 dev eth0\nnexthop add id 10 group 7/9\n";
    one.command("ip").args(["-batch", "-"]).input(objects).run()?;
    let (direct, tunnel) = ("via 10.4.7.22 dev eth0", "via 172.7.22.0 dev flannel.1");
    for (way, by) in [
        ("nexthop via 10.4.7.200 dev eth0 nexthop via 10.4.7.12 dev eth0", tunnel),
        ("nhid 8", direct),
        ("nhid 7", tunnel),
        ("nhid 8", direct),
        ("nhid 10", tunnel),
        ("nhid 8", direct),
        ("via inet6 fe80::200 dev eth0", tunnel),
    ] {
        one.run(&["sh", "-c", &format!("ip route replace 10.4.7.22/32 {way}")])?;
        eventually_by(one, "172.7.22.0/24", by).with_context(|| way.to_owned())?;
    }
    one.run(&["ip", "route", "del", "10.4.7.22/32"])?;
    eventually_by(one, "172.7.22.0/24", direct)
}

/// Eventually one warning of netd on hdss7-21 contains each of `wanted`, or there is none at all without them.
fn eventually_warns(net: &Net, wanted: &[&str]) -> Result<()> {
    eventually(SOON, || {
        let warnings = net.status("hdss7-21")?["warnings"].clone();
        let texts: Vec<&str> = warnings.as_array().unwrap().iter().filter_map(|text| text.as_str()).collect();
        let named = texts.iter().any(|text| wanted.iter().all(|part| text.contains(part)));
        ensure!(if wanted.is_empty() { texts.is_empty() } else { named }, "{wanted:?}: {texts:?}");
        Ok(())
    })
}

fn rule_that_only_packets_of_pods_meet_is_named_and_so_is_one_of_the_node_itself() -> Result<()> {
    let pods = "to 172.7.22.0/24, for packets of this node's Pods";
    let table = "of somebody else in table 100, is in front of netd's";
    for config in [VXLAN, DIRECT, HOST_GW] {
        let net = Net::start(config)?;
        let _netd = net.both()?;
        let one = net.host("hdss7-21")?;
        let (web, _server) = pods_of(&net)?;
        eventually_warns(&net, &[])?;
        // The outside host routes nothing: what goes there is lost.
        one.run(&["ip", "route", "add", "default", "via", "10.4.7.200", "table", "100"])?;
        let own = "172.7.22.0/24 cannot be reached";
        for (rule, warning, web_arrives, node_arrives) in [
            ("from 172.7.21.0/24 to 172.7.22.0/24 lookup 100", [table, pods], false, true),
            ("iif cbr0 to 172.7.22.0/24 lookup 100", [table, pods], false, true),
            ("iif cbr0 to 172.7.22.0/24 prohibit", [own, "for packets of this node's Pods"], false, true),
            ("iif lo to 172.7.22.0/24 prohibit", [own, "for packets of this node itself"], true, false),
        ] {
            one.run(&["sh", "-c", &format!("ip rule add {rule}")])?;
            eventually_warns(&net, &warning)?;
            let ping = ["ping", "-c1", "-W1", "172.7.22.2"];
            let arrived = (web.run(&ping).is_ok(), one.run(&ping).is_ok());
            ensure!(arrived == (web_arrives, node_arrives), "{config}: {rule}: {arrived:?}");
            one.run(&["sh", "-c", &format!("ip rule del {rule}")])?;
            eventually_warns(&net, &[])?;
            web.run(&ping)?;
        }
    }
    Ok(())
}

fn rule_that_only_the_tunnels_own_packets_meet_is_named_with_the_question_to_ask() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let one = net.host("hdss7-21")?;
    let (web, _server) = pods_of(&net)?;
    eventually_warns(&net, &[])?;
    let ping = ["ping", "-c1", "-W1", "172.7.22.2"];
    for rule in
        ["ipproto udp dport 8472 prohibit", "ipproto udp dport 8472 lookup 100", "from 10.4.7.21 dport 8472 prohibit"]
    {
        one.run(&["ip", "route", "replace", "unreachable", "default", "table", "100"])?;
        one.run(&["sh", "-c", &format!("ip rule add {rule}")])?;
        let way = "ip route get 10.4.7.22 from 10.4.7.21 ipproto udp dport 8472";
        eventually_warns(&net, &["flannel.1: its packets from 10.4.7.21 to 10.4.7.22 have no route", way])?;
        ensure!(web.run(&ping).is_err(), "{rule}");
        one.run(&["sh", "-c", &format!("ip rule del {rule}")])?;
        eventually_warns(&net, &[])?;
        web.run(&ping)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            node_with_a_single_address_and_a_route_on_the_link_is_reached_directly,
            ways_are_decided_again_when_routes_change,
            node_on_another_interface_is_reached_by_that,
            lease_that_names_any_own_address_is_refused_by_name,
            way_by_several_next_hops_or_by_a_next_hop_object_is_understood,
            rule_that_only_packets_of_pods_meet_is_named_and_so_is_one_of_the_node_itself,
            rule_that_only_the_tunnels_own_packets_meet_is_named_with_the_question_to_ask,
        ],
    )
}
