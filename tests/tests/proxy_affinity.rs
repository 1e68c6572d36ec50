//! Session affinity on the nftables data path, with packets: as kube-proxy's cases 27, 28, 29, 52 and 53 recorded it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Need, Process, echo, eventually};
use proxy::affinity::{PODS, answers, clients_move_with_their_endpoint_only, only_answer, sticky};
use proxy::{Nodes, SOON, WEB};

const EVERYWHERE: [&str; 3] = [WEB, "10.4.7.21:30080", "10.4.7.98:80"];
/// The node has a default route over another link, whose address would be the primary one.
const FLAGS: [&str; 2] = ["--proxy-mode=nftables", "--nodeport-addresses=10.4.7.0/24"];
const DATAGRAMS: [&str; 2] = ["192.168.0.10:53", "10.4.7.21:30053"];

fn start(web: &str) -> Result<(Nodes, Process)> {
    let nodes = Nodes::start()?;
    nodes.outside()?.run(&["ip", "route", "add", "10.4.7.98/32", "via", "10.4.7.21"])?;
    let route = "link add up0 type veth peer name down0\nlink set up0 up\nlink set down0 up\naddress add 10.9.9.21/24 dev up0\n\
        neigh add 10.9.9.1 lladdr 02:00:00:00:00:01 dev up0\nroute add default via 10.9.9.1\n";
    nodes.node()?.command("ip").args(["-batch", "-"]).input(route).run()?;
    nodes.publish("web.yaml", web)?;
    let proxy = nodes.proxy_with(&FLAGS)?;
    Ok((nodes, proxy))
}

/// The clients of all endpoints of a protocol, as the nft tool lists them.
fn clients(nodes: &Nodes, protocol: &str) -> Result<Vec<String>> {
    let text = nodes.node()?.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
    let of_protocol = format!("set clients/default/web/{protocol}/");
    let blocks = text.split("\n\tset ").map(|block| format!("set {block}"));
    let blocks = blocks.filter(|block| block.starts_with(&of_protocol));
    let elements = blocks.filter_map(|block| {
        let (_, elements) = block.split_once("elements = {")?;
        Some(elements.split_once('}')?.0.to_owned())
    });
    let all: Vec<String> = elements.collect();
    Ok(all.join(",").split(',').map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect())
}

fn a_client_keeps_its_endpoint_at_every_address_of_the_port() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(10_800, "Cluster", &PODS))?;
    for pod in ["172.7.21.2", "172.7.21.3"] {
        only_answer(nodes.pod(pod)?, &EVERYWHERE)?;
    }
    only_answer(nodes.outside()?, &EVERYWHERE)?;
    // The node's own source is another one at each address.
    for server in EVERYWHERE {
        only_answer(nodes.node()?, &[server])?;
    }
    Ok(())
}

fn datagrams_of_new_sockets_stay_too() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(10_800, "Cluster", &PODS))?;
    let ask = |from: &dyn Fn(SocketAddr) -> Result<String>| -> Result<()> {
        let mut names = Vec::new();
        for server in DATAGRAMS {
            for _ in 0..8 {
                names.push(from(server.parse()?)?);
            }
        }
        names.dedup();
        ensure!(names.len() == 1, "{names:?}");
        Ok(())
    };
    let (pod, outside) = (nodes.pod("172.7.21.2")?, nodes.outside()?);
    ask(&|server| Ok(echo::ask_udp(pod, server, SOON)?.name)).context("a Pod")?;
    ask(&|server| Ok(echo::ask_udp(outside, server, SOON)?.name)).context("outside")?;
    ensure!(clients(&nodes, "tcp")?.is_empty(), "another port is another matter");
    Ok(())
}

fn a_client_of_a_local_policy_keeps_a_local_endpoint() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(10_800, "Local", &PODS))?;
    let outside = nodes.outside()?;
    let name = only_answer(outside, &["10.4.7.21:30080", "10.4.7.98:80"])?;
    ensure!(name.starts_with("172.7.21."), "{name}");
    // Known from there, it finds the same one where all endpoints may answer.
    ensure!(only_answer(outside, &EVERYWHERE)? == name);
    // A Pod reaches all of them; the one that it has from the virtual address stays.
    only_answer(nodes.pod("172.7.21.3")?, &EVERYWHERE).map(drop)
}

fn clients_of_an_endpoint_that_leaves_move_and_no_others() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(10_800, "Cluster", &PODS))?;
    clients_move_with_their_endpoint_only(&nodes)
}

fn a_client_is_forgotten_when_its_time_is_over() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(4, "Cluster", &PODS))?;
    let pod = nodes.pod("172.7.21.2")?;
    echo::ask_tcp(pod, WEB.parse()?, SOON)?;
    eventually(SOON, || {
        let left = clients(&nodes, "tcp")?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// A time as the nft tool shows it, in milliseconds: `2h59m58s980ms`.
fn milliseconds(text: &str) -> Result<u64> {
    let (mut total, mut rest) = (0, text.trim());
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).context("no unit")?;
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        let (_, factor) =
            units.into_iter().find(|(name, _)| *name == unit).with_context(|| format!("unit {unit:?}"))?;
        total += number.parse::<u64>()? * factor;
        rest = behind;
    }
    Ok(total)
}

/// What is left of a client's time grows with a connection.
fn each_connection_begins_the_time_anew() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(10_800, "Cluster", &PODS))?;
    let pod = nodes.pod("172.7.21.2")?;
    let left = || -> Result<u64> {
        let found = clients(&nodes, "tcp")?;
        let [one] = found.as_slice() else { anyhow::bail!("{found:?}") };
        milliseconds(one.split_once("expires ").with_context(|| one.clone())?.1)
    };
    echo::ask_tcp(pod, WEB.parse()?, SOON)?;
    eventually(SOON, || {
        let left = left()?;
        ensure!(left < 10_800_000 - 3000, "three seconds have not passed: {left}");
        Ok(())
    })?;
    let before = left()?;
    eventually(SOON, || {
        echo::ask_tcp(pod, WEB.parse()?, SOON)?;
        let after = left()?;
        ensure!(after > before, "{before}, then {after}");
        Ok(())
    })
}

fn another_time_and_a_restart_lose_no_client() -> Result<()> {
    let (nodes, proxy) = start(&sticky(10_800, "Cluster", &PODS))?;
    let before = answers(&nodes)?;
    let known = clients(&nodes, "tcp")?.len();
    nodes.publish("web.yaml", &sticky(7200, "Cluster", &PODS))?;
    eventually(SOON, || {
        let text = nodes.node()?.run(&["nft", "-s", "list", "table", "ip", "ipvs-proxy"])?.stdout;
        ensure!(text.contains("ip saddr timeout 2h }") && !text.contains("ip saddr timeout 3h }"), "{text}");
        Ok(())
    })?;
    ensure!(clients(&nodes, "tcp")?.len() == known, "another time");
    proxy.terminate(SOON)?;
    let _again = nodes.proxy_with(&FLAGS)?;
    ensure!(clients(&nodes, "tcp")?.len() == known, "a restart");
    let after = answers(&nodes)?;
    ensure!(before == after, "{before:?}, then {after:?}");
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["ok"] == true && status["notServed"] == serde_json::json!([]), "{status}");
        Ok(())
    })
}

/// However many clients there are: they are nobody's rows.
fn thousands_of_clients_are_left_alone() -> Result<()> {
    let (nodes, _proxy) = start(&sticky(10_800, "Cluster", &PODS))?;
    let node = nodes.node()?;
    let many: Vec<String> = (0..10_000).map(|i| format!("10.{}.{}.1 timeout 3h", i / 250, i % 250)).collect();
    let script =
        format!("add element ip ipvs-proxy clients/default/web/tcp/80/172.7.21.2/80 {{ {} }}\n", many.join(", "));
    node.command("nft").args(["-f", "-"]).input(script).run()?;
    // Something to repair, in the same table, behind it.
    node.run(&["nft", "flush", "chain", "ip", "ipvs-proxy", "services"])?;
    eventually(SOON, || only_answer(nodes.pod("172.7.21.2")?, &[WEB]).map(drop))?;
    ensure!(clients(&nodes, "tcp")?.len() > 10_000, "they are still there");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            a_client_keeps_its_endpoint_at_every_address_of_the_port,
            datagrams_of_new_sockets_stay_too,
            a_client_of_a_local_policy_keeps_a_local_endpoint,
            clients_of_an_endpoint_that_leaves_move_and_no_others,
            a_client_is_forgotten_when_its_time_is_over,
            each_connection_begins_the_time_anew,
            another_time_and_a_restart_lose_no_client,
            thousands_of_clients_are_left_alone,
        ],
    )
}
