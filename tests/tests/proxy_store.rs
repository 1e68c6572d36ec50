//! Services in etcd: the operator's commands, the daemon that listens, a member that dies.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Etcd, Host, Need, Process, eventually, throughout};
use proxy::{Nodes, SOON, WEB_YAML, await_reals, servers, slice, spread};

const PODS: [(&str, u32); 4] = [("172.7.21.2", 1), ("172.7.21.3", 1), ("172.7.22.2", 1), ("172.7.22.3", 1)];

/// For how long the store is away.
const AWAY: Duration = Duration::from_secs(10);

fn command(host: &Host, etcd: &Etcd, words: &[&str]) -> Result<lab::Command> {
    let endpoints = format!("--etcd-endpoints={}", etcd.endpoints());
    Ok(host.command(lab::bin("ipvs-proxy")?).arg(endpoints).args(words))
}

fn daemon(nodes: &Nodes, etcd: &Etcd) -> Result<Process> {
    let flags = ["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"];
    let proxy = command(nodes.node()?, etcd, &flags)?.start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    Ok(proxy)
}

fn applied_services_are_served_and_deleted_ones_are_not() -> Result<()> {
    let nodes = Nodes::start()?;
    let etcd = Etcd::start([nodes.outside()?])?;
    let _proxy = daemon(&nodes, &etcd)?;
    let operator = nodes.outside()?;
    operator.write("/run/web.yaml", WEB_YAML)?;
    let said = command(operator, &etcd, &["apply", "-f", "/run/web.yaml"])?.run()?.stdout;
    ensure!(said == "services/default/web created\nendpointslices/default/web-1 created\n", "{said}");
    await_reals(nodes.node()?, &PODS)?;
    ensure!(spread(nodes.node()?, 4)?.len() == 4);
    let said = command(operator, &etcd, &["apply", "-f", "/run/web.yaml"])?.run()?.stdout;
    ensure!(said == "services/default/web unchanged\nendpointslices/default/web-1 unchanged\n", "{said}");
    let listed = command(operator, &etcd, &["list"])?.run()?.stdout;
    let endpoints = PODS.map(|(addr, _)| format!("{addr}:80")).join(",");
    ensure!(listed.lines().nth(1) == Some(&format!("default    web   192.168.0.10  80/tcp  {endpoints}")), "{listed}");
    let smaller = slice(&["172.7.21.2"]);
    let said = command(operator, &etcd, &["apply", "-f", "-"])?.input(smaller).run()?.stdout;
    ensure!(said == "endpointslices/default/web-1 configured\n", "{said}");
    // The connections of the clients above are counted for two minutes more.
    await_reals(nodes.node()?, &[("172.7.21.2", 1), ("172.7.21.3", 0), ("172.7.22.2", 0), ("172.7.22.3", 0)])?;
    command(operator, &etcd, &["delete", "service/web"])?.run()?;
    eventually(SOON, || {
        ensure!(servers(nodes.node()?)?.is_empty(), "{:?}", servers(nodes.node()?)?);
        Ok(())
    })?;
    let again = command(operator, &etcd, &["delete", "service/web"])?.run().unwrap_err();
    ensure!(format!("{again:#}").contains("not found: services/default/web"), "{again:#}");
    Ok(())
}

fn a_verb_without_a_store_says_what_failed_and_not_that_it_goes_on() -> Result<()> {
    let nodes = Nodes::start()?;
    for (words, failed) in [
        (&["list"][..], ""),
        (&["apply", "-f", "-"], "nothing was applied"),
        (&["delete", "service/web"], "services/default/web"),
    ] {
        let command = nodes.outside()?.command(lab::bin("ipvs-proxy")?).args(words).input(WEB_YAML);
        let output = command.arg("--etcd-endpoints=http://10.4.7.254:2379").limit(3 * SOON).output()?;
        let said = &output.stderr;
        ensure!(output.status.code() == Some(1) && said.contains("http://10.4.7.254:2379"), "{words:?}: {output:?}");
        ensure!(said.contains(failed) && !said.contains("again"), "{words:?}: {said}");
    }
    Ok(())
}

fn a_malformed_manifest_is_refused_whole_with_every_fault() -> Result<()> {
    let nodes = Nodes::start()?;
    let etcd = Etcd::start([nodes.outside()?])?;
    let broken = WEB_YAML.replace("port: 80\n", "port: 0\n").replace("addressType: IPv4", "addressType: IPv5");
    let error = command(nodes.outside()?, &etcd, &["apply", "-f", "-"])?.input(broken).run().unwrap_err();
    let text = format!("{error:#}");
    ensure!(text.contains("services/default/web: spec.ports[0].port: 0; accepted: a port from 1 to 65535"), "{text}");
    ensure!(text.contains("endpointslices/default/web-1: "), "{text}");
    ensure!(etcd.keys("/ipvs-proxy/")?.is_empty());
    Ok(())
}

fn junk_in_etcd_is_reported_and_the_rest_is_served() -> Result<()> {
    let nodes = Nodes::start()?;
    let etcd = Etcd::start([nodes.outside()?])?;
    etcd.put("/ipvs-proxy/junk", "x")?;
    etcd.put("/ipvs-proxy/services/default/api", "{")?;
    command(nodes.outside()?, &etcd, &["apply", "-f", "-"])?.input(WEB_YAML).run()?;
    let _proxy = daemon(&nodes, &etcd)?;
    await_reals(nodes.node()?, &PODS)?;
    eventually(SOON, || {
        let status = nodes.status()?;
        let refused = status["refused"].as_array().context("no list")?;
        let refused: Vec<_> = refused.iter().map(|item| item["object"].clone()).collect();
        ensure!(refused == ["junk", "services/default/api"], "{status}");
        Ok::<_, anyhow::Error>(())
    })?;
    let said = nodes.node()?.command(lab::bin("ipvs-proxy")?).arg("status").run()?.stdout;
    ensure!(said.contains("refused: services/default/api: not valid JSON"), "{said}");
    etcd.delete("/ipvs-proxy/junk")?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["refused"].as_array().map(Vec::len) == Some(1), "{status}");
        Ok(())
    })
}

fn a_member_that_dies_stops_nobody() -> Result<()> {
    let nodes = Nodes::start()?;
    let hosts: Vec<Host> = nodes.cluster.hosts().cloned().collect();
    let mut etcd = Etcd::start(&hosts)?;
    command(nodes.outside()?, &etcd, &["apply", "-f", "-"])?.input(WEB_YAML).run()?;
    let _proxy = daemon(&nodes, &etcd)?;
    await_reals(nodes.node()?, &PODS)?;
    for member in ["hdss7-21", "hdss7-22", "hdss7-200"] {
        etcd.kill(member)?;
        let other = format!("172.7.{}.3", if member == "hdss7-22" { 21 } else { 22 });
        let smaller = slice(&[&other]);
        eventually(SOON, || command(nodes.outside()?, &etcd, &["apply", "-f", "-"])?.input(smaller.clone()).run())?;
        await_reals(nodes.node()?, &[(&other, 1)])?;
        etcd.restart(member)?;
    }
    Ok(())
}

fn etcd_that_is_all_gone_changes_nothing_and_what_happened_meanwhile_is_found() -> Result<()> {
    let nodes = Nodes::start()?;
    let hosts: Vec<Host> = nodes.cluster.hosts().cloned().collect();
    let members = ["hdss7-21", "hdss7-22", "hdss7-200"];
    let mut etcd = Etcd::start(&hosts)?;
    command(nodes.outside()?, &etcd, &["apply", "-f", "-"])?.input(WEB_YAML).run()?;
    let proxy = daemon(&nodes, &etcd)?;
    await_reals(nodes.node()?, &PODS)?;
    members.iter().try_for_each(|member| etcd.kill(member))?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["lost"].is_string() && status["ok"] == false, "{status}");
        Ok(())
    })?;
    // Longer than any of the client's limits: pings, requests and pauses between two tries.
    throughout(AWAY, || -> Result<()> {
        ensure!(spread(nodes.outside()?, 4)?.len() == 4);
        let status = nodes.status()?;
        ensure!(status["lost"].is_string() && status["ok"] == false && status["services"] == 1, "{status}");
        Ok(())
    })?;
    await_reals(nodes.node()?, &PODS)?;
    let live = ["curl", "-fsS", "--max-time", "20", "http://127.0.0.1:10256/livez"];
    nodes.node()?.run(&live).context("nothing is stuck")?;
    etcd.restart_all(&members)?;
    command(nodes.outside()?, &etcd, &["apply", "-f", "-"])?.input(slice(&["172.7.22.3"])).run()?;
    eventually(2 * SOON, || {
        let status = nodes.status()?;
        ensure!(status["lost"].is_null(), "{status}");
        Ok(())
    })?;
    eventually(SOON, || {
        ensure!(spread(nodes.outside()?, 4)?.keys().eq(["172.7.22.3"]));
        Ok(())
    })?;
    ensure!(proxy.is_running());
    Ok(())
}

/// Nothing comes back on the connections of the earlier address: whoever waits for that waits for seconds.
fn a_node_that_gets_another_address_follows_the_store_from_there() -> Result<()> {
    let nodes = Nodes::start()?;
    let etcd = Etcd::start([nodes.outside()?])?;
    let proxy = daemon(&nodes, &etcd)?;
    let operator = nodes.outside()?;
    command(operator, &etcd, &["apply", "-f", "-"])?.input(WEB_YAML).run()?;
    await_reals(nodes.node()?, &PODS)?;
    let begin = Instant::now();
    nodes.node()?.run(&["ip", "address", "del", "10.4.7.21/24", "dev", "eth0"])?;
    nodes.node()?.run(&["ip", "address", "add", "10.4.7.121/24", "dev", "eth0"])?;
    proxy.wait_for_line("connections to etcd are made anew", SOON)?;
    command(operator, &etcd, &["apply", "-f", "-"])?.input(slice(&["172.7.21.2"])).run()?;
    await_reals(nodes.node()?, &[("172.7.21.2", 1)])?;
    println!("a change is served {:?} behind the change of the address", begin.elapsed());
    ensure!(proxy.is_running());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            applied_services_are_served_and_deleted_ones_are_not,
            a_verb_without_a_store_says_what_failed_and_not_that_it_goes_on,
            a_malformed_manifest_is_refused_whole_with_every_fault,
            junk_in_etcd_is_reported_and_the_rest_is_served,
            a_member_that_dies_stops_nobody,
            a_node_that_gets_another_address_follows_the_store_from_there,
            etcd_that_is_all_gone_changes_nothing_and_what_happened_meanwhile_is_found,
        ],
    )
}
