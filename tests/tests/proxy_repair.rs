//! What clients notice while something is missing on the node, and how soon it is back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::fmt::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Host, Need, echo, eventually};
use proxy::{Nodes, SOON, WEB, WEB_SERVICE, WEB_YAML, ask, await_reals, away, client, dns, families, servers, slice};

fn a_virtual_address_without_its_server_refuses_although_the_node_listens() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = nodes.proxy()?;
    await_reals(nodes.node()?, &["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"].map(|pod| (pod, 1)))?;
    let _listener = echo::serve(nodes.node()?, "node", 80)?;
    ensure!(echo::ask_tcp(nodes.outside()?, "10.4.7.21:80".parse()?, SOON)?.name == "node");
    proxy.kill()?;
    nodes.node()?.run(&["ipvsadm", "-C"])?;
    let refused = |from: &dyn Fn(SocketAddr) -> Result<echo::Answer>| -> Result<()> {
        let text = format!("{:#}", from(WEB.parse()?).unwrap_err());
        ensure!(text.contains("refused"), "{text}");
        Ok(())
    };
    refused(&|vip| echo::ask_tcp(nodes.outside()?, vip, SOON))?;
    refused(&|vip| echo::ask_tcp(nodes.pod("172.7.21.2")?, vip, SOON))?;
    refused(&|vip| echo::ask_tcp(nodes.node()?, vip, SOON))
}

fn a_scheduler_that_the_kernel_has_not_is_refused_before_anything_is_touched() -> Result<()> {
    let nodes = Nodes::start()?;
    let words = ["--services-dir=/run/services", "--cluster-cidr=172.7.0.0/16", "--ipvs-scheduler=nosuch"];
    let error = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(words).run().unwrap_err();
    let text = format!("{error:#}");
    ensure!(text.contains("--ipvs-scheduler: \"nosuch\" is unknown to IPVS"), "{text}");
    let left =
        nodes.node()?.run(&["ip", "-o", "link"])?.stdout + &nodes.node()?.run(&["nft", "list", "tables"])?.stdout;
    ensure!(!left.contains("kube-ipvs0") && !left.contains("ipvs-proxy"), "{left}");
    Ok(())
}

/// What Docker leaves, with a denial of its own in front.
const DOCKER: &str = "table ip filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        ip saddr 172.7.22.3 drop
    }
}";

fn services_work_beside_a_forward_chain_that_drops_and_its_denials_still_deny() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    node.command("nft").args(["-f", "-"]).input(DOCKER).run()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.22.2"]))?;
    let proxy = nodes.proxy()?;
    let vip: SocketAddr = WEB.parse()?;
    let from = nodes.pod("172.7.21.2")?;
    eventually(SOON, || {
        let answer = echo::ask_tcp(from, vip, Duration::from_secs(3))?;
        ensure!(answer.name == "172.7.22.2" && answer.client.ip().to_string() == "172.7.21.2", "{answer:?}");
        Ok(())
    })?;
    ensure!(echo::ask_tcp(nodes.outside()?, vip, SOON)?.name == "172.7.22.2");
    // Nobody is let through who was not before.
    ensure!(echo::ask_tcp(from, "172.7.22.2:80".parse()?, Duration::from_secs(2)).is_err());
    nodes.publish("slice.yaml", &slice(&["172.7.22.3"]))?;
    // The connections of the clients above are counted for two minutes more.
    await_reals(node, &[("172.7.22.2", 0), ("172.7.22.3", 1)])?;
    ensure!(echo::ask_tcp(from, vip, Duration::from_secs(2)).is_err(), "its answers are denied by name");
    ensure!(proxy.terminate(SOON)?.success());
    node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
    let left = node.run(&["nft", "list", "table", "ip", "filter"])?.stdout;
    ensure!(!left.contains("ipvs-proxy"), "{left}");
    Ok(())
}

fn many(count: usize) -> String {
    let mut text = String::new();
    for index in 0..count {
        let service = WEB_SERVICE.replace("web", &format!("s{index}"));
        let address = format!("192.168.{}.{}", 1 + index / 200, 1 + index % 200);
        writeln!(text, "{}---", service.replace("192.168.0.10", &address)).unwrap();
        writeln!(text, "{}---", slice(&["172.7.22.2"]).replace("web", &format!("s{index}"))).unwrap();
    }
    text
}

fn one_deleted_server_among_many_is_back_as_soon_as_among_few() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("many.yaml", &many(500))?;
    let _proxy = nodes.proxy()?;
    let whole = eventually(SOON, || {
        let all = servers(node)?;
        ensure!(all.len() == 1000, "{}", all.len());
        Ok::<_, anyhow::Error>(all)
    })?;
    let real = ["ipvsadm", "-d", "-t", "192.168.2.7:80", "-r", "172.7.22.2:80"];
    come_back_behind(node, &whole, &[&["ipvsadm", "-D", "-t", "192.168.3.97:80"], &real, &["ipvsadm", "-C"]])
}

/// The longest time between two listings: where one takes long, as in user mode on a busy machine.
const SELDOM: Duration = Duration::from_secs(30);

/// Waits behind each of these commands until all is there again. A real server less is found by a listing alone.
fn come_back_behind(node: &Host, whole: &[String], commands: &[&[&str]]) -> Result<()> {
    for words in commands {
        let limit = away(node)? + if words.contains(&"-d") { SELDOM } else { Duration::ZERO };
        node.run(words)?;
        let deleted = Instant::now();
        eventually(limit, || {
            ensure!(servers(node)? == whole, "after {words:?}");
            Ok(())
        })?;
        eprintln!("{words:?}: back after {:?}", deleted.elapsed());
    }
    Ok(())
}

/// The kernel says how many virtual servers there are of IPv4 alone.
fn deleted_servers_of_ipv6_among_many_are_back_as_those_of_ipv4_are() -> Result<()> {
    let nodes = families::start()?;
    let node = nodes.node()?;
    let mut text = String::new();
    for index in 1..=300 {
        let four = format!("192.168.{}.{}", 8 + index / 200, 1 + index % 200);
        let addresses = format!("clusterIP: {four}, clusterIPs: [{four}, \"fd09::{index}\"]");
        let one = families::web(&addresses, "PreferDualStack").replace("web", &format!("s{index}"));
        writeln!(text, "{one}---").unwrap();
    }
    nodes.publish("many.yaml", &text)?;
    let _proxy = families::proxy(&nodes, "ipvs", &families::DUAL)?;
    let whole = eventually(SOON, || {
        let all = servers(node)?;
        ensure!(all.iter().filter(|line| line.starts_with("-A -t [fd09::")).count() == 300, "{}", all.len());
        Ok::<_, anyhow::Error>(all)
    })?;
    come_back_behind(node, &whole, &[&["ipvsadm", "-D", "-t", "[fd09::299]:80"], &["ipvsadm", "-C"]])
}

fn a_deleted_server_whose_endpoint_changes_is_back_at_once() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.2"]))?;
    let _proxy = nodes.proxy()?;
    await_reals(nodes.node()?, &[("172.7.21.2", 1), ("172.7.22.2", 1)])?;
    let limit = away(nodes.node()?)?;
    nodes.node()?.run(&["ipvsadm", "-D", "-t", WEB])?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.3"]))?;
    eventually(limit, || {
        let found = servers(nodes.node()?)?;
        ensure!(found.len() == 3 && found.iter().any(|line| line.contains("172.7.22.3:80 -m -w 1")), "{found:?}");
        Ok(())
    })
}

/// Without its local route a virtual address is no address of this node: packets to it leave by the default route.
fn a_local_route_of_a_virtual_address_that_somebody_deletes_is_back_within_a_second() -> Result<()> {
    let nodes = families::start()?;
    nodes.publish(
        "web.yaml",
        &families::web("clusterIP: 192.168.0.10, clusterIPs: [192.168.0.10, \"fd09::10\"]", "PreferDualStack"),
    )?;
    let _proxy = families::proxy(&nodes, "ipvs", &families::DUAL)?;
    let node = nodes.node()?;
    for (family, addr, server) in [("-4", "192.168.0.10", WEB), ("-6", "fd09::10", "[fd09::10]:80")] {
        let limit = away(node)?;
        echo::ask_tcp(nodes.outside()?, server.parse()?, SOON)?;
        node.run(&["ip", family, "route", "del", "local", addr, "table", "local"])?;
        let deleted = Instant::now();
        eventually(SOON, || {
            let routes = node.run(&["ip", family, "route", "show", "table", "local"])?.stdout;
            ensure!(routes.contains(&format!("local {addr} dev kube-ipvs0")), "{routes}");
            Ok(())
        })?;
        ensure!(deleted.elapsed() < limit, "{addr}: {:?}", deleted.elapsed());
        echo::ask_tcp(nodes.outside()?, server.parse()?, SOON)?;
    }
    Ok(())
}

/// What the client outside got to read, if anything.
fn answered(socket: &UdpSocket) -> bool {
    ask(socket).is_ok()
}

fn a_client_that_began_while_the_rules_were_away_is_served_when_they_are_back() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("dns.yaml", &dns(&["172.7.22.2"]))?;
    let node = nodes.node()?;
    let proxy = nodes.proxy()?;
    let before = client(nodes.outside()?)?;
    ensure!(answered(&before), "a client outside is served");
    ensure!(proxy.terminate(SOON)?.success());
    node.run(&["nft", "flush", "ruleset"])?;
    let meanwhile = client(nodes.outside()?)?;
    ensure!(!answered(&meanwhile), "without masquerade its answers come from somebody else");
    let _proxy = nodes.proxy()?;
    eventually(SOON, || {
        ensure!(answered(&meanwhile), "it is led nowhere still");
        Ok(())
    })?;
    ensure!(answered(&before));
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            a_client_that_began_while_the_rules_were_away_is_served_when_they_are_back,
            a_virtual_address_without_its_server_refuses_although_the_node_listens,
            a_scheduler_that_the_kernel_has_not_is_refused_before_anything_is_touched,
            services_work_beside_a_forward_chain_that_drops_and_its_denials_still_deny,
            one_deleted_server_among_many_is_back_as_soon_as_among_few,
            deleted_servers_of_ipv6_among_many_are_back_as_those_of_ipv4_are,
            a_deleted_server_whose_endpoint_changes_is_back_at_once,
            a_local_route_of_a_virtual_address_that_somebody_deletes_is_back_within_a_second,
        ],
    )
}
