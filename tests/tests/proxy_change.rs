//! What the proxy does to the kernel when something changes: the cluster, the proxy itself, or somebody else.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process, echo, eventually, throughout};
use proxy::{Kept, Nodes, SERVICES, SOON, WEB, WEB_SERVICE, WEB_YAML, await_reals, away, servers, slice};

fn publish_web(nodes: &Nodes, endpoints: &[&str]) -> Result<()> {
    nodes.publish("slice.yaml", &slice(endpoints))
}

fn start_web(endpoints: &[&str]) -> Result<Nodes> {
    let nodes = Nodes::start()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    publish_web(&nodes, endpoints)?;
    Ok(nodes)
}

fn a_removed_endpoint_keeps_its_connections_until_they_end() -> Result<()> {
    let nodes = start_web(&["172.7.21.2"])?;
    let _proxy = nodes.proxy()?;
    let mut kept = Kept::open(nodes.node()?)?;
    ensure!(kept.ask()? == "172.7.21.2");
    publish_web(&nodes, &["172.7.22.2"])?;
    await_reals(nodes.node()?, &[("172.7.21.2", 0), ("172.7.22.2", 1)])?;
    for _ in 0..4 {
        ensure!(echo::ask_tcp(nodes.node()?, WEB.parse()?, SOON)?.name == "172.7.22.2");
        ensure!(kept.ask()? == "172.7.21.2");
    }
    drop(kept);
    eventually(Duration::from_secs(60), || {
        let left = servers(nodes.node()?)?;
        ensure!(!left.iter().any(|line| line.contains("172.7.21.2")), "{left:?}");
        Ok(())
    })
}

fn an_endpoint_that_comes_back_keeps_its_connections() -> Result<()> {
    let nodes = start_web(&["172.7.21.2", "172.7.22.2"])?;
    let _proxy = nodes.proxy()?;
    let mut kept = [Kept::open(nodes.node()?)?, Kept::open(nodes.node()?)?];
    let names = [kept[0].ask()?, kept[1].ask()?];
    publish_web(&nodes, &["172.7.22.2"])?;
    await_reals(nodes.node()?, &[("172.7.21.2", 0), ("172.7.22.2", 1)])?;
    publish_web(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    await_reals(nodes.node()?, &[("172.7.21.2", 1), ("172.7.22.2", 1)])?;
    ensure!([kept[0].ask()?, kept[1].ask()?] == names);
    Ok(())
}

fn a_drain_ends_with_its_grace_period() -> Result<()> {
    let nodes = start_web(&["172.7.21.2"])?;
    let _proxy = nodes.proxy_with(&["--ipvs-graceful-period=3s"])?;
    let mut kept = Kept::open(nodes.node()?)?;
    ensure!(kept.ask()? == "172.7.21.2");
    let removed = Instant::now();
    publish_web(&nodes, &["172.7.22.2"])?;
    await_reals(nodes.node()?, &[("172.7.22.2", 1)])?;
    ensure!(removed.elapsed() >= Duration::from_secs(3), "after {:?}", removed.elapsed());
    Ok(())
}

fn a_drain_goes_on_after_a_restart() -> Result<()> {
    let nodes = start_web(&["172.7.21.2"])?;
    let proxy = nodes.proxy()?;
    let mut kept = Kept::open(nodes.node()?)?;
    kept.ask()?;
    ensure!(proxy.terminate(SOON)?.success());
    publish_web(&nodes, &["172.7.22.2"])?;
    let _proxy = nodes.proxy()?;
    await_reals(nodes.node()?, &[("172.7.21.2", 0), ("172.7.22.2", 1)])?;
    ensure!(kept.ask()? == "172.7.21.2");
    Ok(())
}

/// The set of drains, as nft lists it.
fn drains(host: &Host) -> Result<String> {
    Ok(host.run(&["nft", "list", "set", "ip", "ipvs-proxy", "draining"])?.stdout)
}

/// The proxy, and a connection to the one endpoint that drains since another took its place.
fn draining(nodes: &Nodes) -> Result<(Process, Kept)> {
    let (node, proxy) = (nodes.node()?, nodes.proxy()?);
    let mut kept = Kept::open(node)?;
    kept.ask()?;
    publish_web(nodes, &["172.7.22.2"])?;
    await_reals(node, &[("172.7.21.2", 0), ("172.7.22.2", 1)])?;
    Ok((proxy, kept))
}

fn a_drain_is_as_old_after_a_kill_as_before_it() -> Result<()> {
    let nodes = start_web(&["172.7.21.2"])?;
    let node = nodes.node()?;
    let (proxy, mut kept) = draining(&nodes)?;
    let before = drains(node)?;
    ensure!(before.contains("192.168.0.10 . tcp . 80 . 172.7.21.2 . 80 comment \"since second "), "{before}");
    proxy.kill()?;
    let _proxy = nodes.proxy()?;
    await_reals(node, &[("172.7.21.2", 0), ("172.7.22.2", 1)])?;
    ensure!(drains(node)? == before, "{}", drains(node)?);
    ensure!(kept.ask()? == "172.7.21.2");
    publish_web(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    await_reals(node, &[("172.7.21.2", 1), ("172.7.22.2", 1)])?;
    eventually(SOON, || {
        let left = drains(node)?;
        ensure!(!left.contains("172.7.21.2"), "{left}");
        Ok(())
    })
}

fn a_service_made_again_while_an_endpoint_drained_is_served_by_its_endpoints_alone() -> Result<()> {
    let nodes = start_web(&["172.7.21.2"])?;
    let node = nodes.node()?;
    let (proxy, _kept) = draining(&nodes)?;
    node.run(&["rm", &format!("{SERVICES}/service.yaml")])?;
    await_reals(node, &[])?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    await_reals(node, &[("172.7.22.2", 1)])?;
    ensure!(echo::ask_tcp(node, WEB.parse()?, SOON)?.name == "172.7.22.2");
    ensure!(!drains(node)?.contains("172.7.21.2"), "{}", drains(node)?);
    let said = proxy.log();
    ensure!(!said.contains("changed by somebody else"), "{said}");
    Ok(())
}

/// Everything that the proxy has in the kernel, with the handles and indexes that a remade object would not keep.
/// IPv6 is left out: the kernel drops the mark `tentative` of its own link-local addresses when a second has passed.
fn kernel_state(host: &Host) -> Result<String> {
    let mut text = servers(host)?.join("\n");
    for words in [&["nft", "-s", "-a", "list", "ruleset"][..], &["ip", "-4", "-o", "address"], &["ip", "-o", "link"]] {
        text.push_str(&host.run(words)?.stdout);
    }
    Ok(text)
}

fn a_restart_changes_nothing() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = nodes.proxy()?;
    let before = kernel_state(nodes.node()?)?;
    let mut kept = Kept::open(nodes.node()?)?;
    let name = kept.ask()?;
    ensure!(proxy.terminate(SOON)?.success());
    let ended = kernel_state(nodes.node()?)?;
    ensure!(ended == before, "the end of the program touched the kernel; before:\n{before}\nafter:\n{ended}");
    ensure!(kept.ask()? == name);
    let _proxy = nodes.proxy()?;
    eventually(SOON, || {
        let status = nodes.status()?;
        let of_ipvs = &status["tables"][4];
        ensure!(of_ipvs["name"] == "ipvs" && of_ipvs["done"].as_u64() > Some(0), "{status}");
        ensure!(status["ok"] == true && of_ipvs["done"] == of_ipvs["desired"], "{status}");
        Ok(())
    })?;
    let after = kernel_state(nodes.node()?)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    let totals = &nodes.status()?["totals"];
    ensure!(totals["upserted"] == 0 && totals["removed"] == 0 && totals["failed"] == 0, "{totals}");
    ensure!(kept.ask()? == name);
    Ok(())
}

fn what_was_deleted_while_the_proxy_was_away_goes_when_it_is_back() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    nodes.publish("api.yaml", &WEB_SERVICE.replace("web", "api").replace("192.168.0.10", "192.168.0.11"))?;
    nodes.proxy()?.kill()?;
    nodes.node()?.run(&["rm", &format!("{SERVICES}/api.yaml")])?;
    let _proxy = nodes.proxy()?;
    eventually(SOON, || {
        let state = kernel_state(nodes.node()?)?;
        ensure!(!state.contains("192.168.0.11"), "{state}");
        Ok(())
    })?;
    ensure!(servers(nodes.node()?)?.len() == 5);
    Ok(())
}

fn many(count: usize) -> String {
    let mut text = String::new();
    for index in 0..count {
        let service = WEB_SERVICE.replace("web", &format!("s{index}"));
        writeln!(text, "{}---", service.replace("192.168.0.10", &format!("192.168.1.{index}"))).unwrap();
        writeln!(text, "{}---", slice(&["172.7.22.2"]).replace("web", &format!("s{index}"))).unwrap();
    }
    text
}

fn one_changed_endpoint_is_one_step() -> Result<()> {
    let nodes = start_web(&[])?;
    nodes.publish("many.yaml", &many(30))?;
    let _proxy = nodes.proxy()?;
    let remote = |addresses: &[&str]| {
        let text = slice(addresses);
        text.lines()
            .map(|line| match line.starts_with("- ") {
                true => format!("{line}\n  nodeName: hdss7-22.host.com\n"),
                false => format!("{line}\n"),
            })
            .collect::<String>()
    };
    let number = |totals: &serde_json::Value, key: &str| totals[key].as_u64().unwrap_or(0);
    // The status follows the kernel by up to half a second: one that is past what is known counts what came since.
    let totals_past = |upserted: u64| {
        eventually(SOON, || -> Result<_> {
            let status = nodes.status()?;
            let tables = status["tables"].as_array().context("no tables")?;
            let ipvs = tables.iter().find(|table| table["name"] == "ipvs").context("no table ipvs")?;
            ensure!(status["ok"] == true && ipvs["done"] == 31, "{status}");
            ensure!(number(&status["totals"], "upserted") > upserted, "{status}");
            Ok(status["totals"].clone())
        })
    };
    let filled = totals_past(0)?;
    nodes.publish("slice.yaml", &remote(&["172.7.22.2"]))?;
    await_reals(nodes.node()?, &[("172.7.22.2", 1)])?;
    let before = totals_past(number(&filled, "upserted"))?;
    nodes.publish("slice.yaml", &remote(&["172.7.22.2", "172.7.22.3"]))?;
    await_reals(nodes.node()?, &[("172.7.22.2", 1), ("172.7.22.3", 1)])?;
    let after = totals_past(number(&before, "upserted"))?;
    ensure!(number(&after, "upserted") == number(&before, "upserted") + 1, "before {before}, after {after}");
    ensure!(after["removed"] == before["removed"], "before {before}, after {after}");
    Ok(())
}

fn a_malformed_service_is_reported_and_the_others_go_on() -> Result<()> {
    let nodes = start_web(&["172.7.21.2", "172.7.22.2"])?;
    let api = WEB_SERVICE.replace("web", "api").replace("192.168.0.10", "192.168.0.11");
    nodes.publish("api.yaml", &api)?;
    let proxy = nodes.proxy()?;
    let web = servers(nodes.node()?)?;
    nodes.publish("api.yaml", &api.replace("port: 80", "port: 99999"))?;
    let told = || {
        let status = nodes.status()?;
        let refused = status["refused"][0].clone();
        ensure!(refused["object"] == "services/default/api", "{status}");
        ensure!(refused["earlierVersionServed"] == true, "{status}");
        let reason = refused["reason"].as_str().unwrap_or_default();
        ensure!(reason == "spec.ports[0].port: 99999; accepted: a port from 1 to 65535", "{reason}");
        Ok(())
    };
    eventually(SOON, told)?;
    ensure!(servers(nodes.node()?)? == web, "an earlier version is served");
    publish_web(&nodes, &["172.7.21.2"])?;
    // A new start finds a malformed Service and the kernel's memory of it.
    ensure!(proxy.terminate(SOON)?.success());
    let _proxy = nodes.proxy()?;
    eventually(SOON, told)?;
    throughout(Duration::from_secs(2), || -> Result<()> {
        let now = servers(nodes.node()?)?;
        ensure!(now.iter().any(|line| line.contains("192.168.0.11:80")), "{now:?}");
        Ok(())
    })?;
    nodes.node()?.run(&["rm", &format!("{SERVICES}/api.yaml")])?;
    eventually(SOON, || {
        let now = servers(nodes.node()?)?;
        ensure!(!now.iter().any(|line| line.contains("192.168.0.11")), "{now:?}");
        Ok(())
    })
}

fn a_service_deleted_while_the_proxy_was_away_goes_beside_unreadable_files_and_duplicates() -> Result<()> {
    let nodes = start_web(&["172.7.21.2"])?;
    let node = nodes.node()?;
    let of = |name: &str, last: &str| WEB_SERVICE.replace("web", name).replace("0.10", last);
    for (name, last) in [("api", "0.11"), ("dns", "0.12")] {
        nodes.publish(&format!("{name}.yaml"), &of(name, last))?;
    }
    let proxy = nodes.proxy()?;
    let at = |last: &str| -> Result<bool> {
        Ok(servers(node)?.iter().any(|line| line.contains(&format!("192.168.{last}:80"))))
    };
    eventually(SOON, || {
        ensure!(at("0.10")? && at("0.11")? && at("0.12")?);
        Ok(())
    })?;
    ensure!(proxy.terminate(SOON)?.success());
    // api is deleted, dns is torn in the middle, and web stands in a second file and in one with an object that has no name.
    node.run(&["rm", &format!("{SERVICES}/api.yaml")])?;
    nodes.publish("dns.yaml", "kind: Service\nmetadata: {name: dns\n")?;
    nodes.publish("twice.yaml", WEB_SERVICE)?;
    nodes.publish("nameless.yaml", &format!("{WEB_SERVICE}---\nkind: Service\nmetadata: {{}}\n"))?;
    let _proxy = nodes.proxy()?;
    eventually(SOON, || {
        ensure!(!at("0.11")?, "{:?}", servers(node)?);
        Ok(())
    })?;
    ensure!(at("0.10")? && at("0.12")?, "{:?}", servers(node)?);
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["remembered"][0] == "services/default/dns", "{status}");
        ensure!(status["refused"].as_array().map(Vec::len) == Some(2), "{status}");
        Ok(())
    })
}

fn what_a_family_without_pods_asks_for_is_reported() -> Result<()> {
    let nodes = Nodes::start()?;
    let both = "clusterIP: 192.168.0.10\n  clusterIPs: [192.168.0.10, \"fd00::10\"]";
    nodes.publish("web.yaml", &WEB_YAML.replace("clusterIP: 192.168.0.10", both))?;
    let _proxy = nodes.proxy()?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["notServed"][0]["fields"][0] == "spec.clusterIPs: fd00::10", "{status}");
        Ok(())
    })?;
    echo::ask_tcp(nodes.node()?, WEB.parse()?, SOON).map(drop)
}

fn what_somebody_deletes_is_back() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let node = nodes.node()?;
    let before = servers(node)?;
    for words in [
        &["ip", "address", "del", "192.168.0.10/32", "dev", "kube-ipvs0"][..],
        &["ip", "link", "del", "kube-ipvs0"],
        &["nft", "delete", "table", "ip", "ipvs-proxy"],
        &["nft", "flush", "chain", "ip", "ipvs-proxy", "postrouting"],
        &["nft", "delete", "element", "ip", "ipvs-proxy", "services", "{ 192.168.0.10 . tcp . 80 }"],
        &["ipvsadm", "-C"],
        &["ipvsadm", "-d", "-t", WEB, "-r", "172.7.21.2:80"],
        &["ipvsadm", "-a", "-t", WEB, "-r", "10.4.7.200:80", "-m"],
        &["sysctl", "-qw", "net.ipv4.vs.conntrack=0"],
    ] {
        let limit = away(node)?;
        node.run(words)?;
        eventually(limit, || {
            ensure!(servers(node)? == before, "{:?}", servers(node)?);
            let addresses = node.run(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?.stdout;
            ensure!(addresses.contains("192.168.0.10/32"), "{addresses}");
            let table = node.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
            ensure!(table.contains("192.168.0.10 . tcp . 80") && table.contains("@hairpin masquerade"), "{table}");
            ensure!(node.run(&["sysctl", "-n", "net.ipv4.vs.conntrack"])?.stdout.trim() == "1", "conntrack");
            Ok(())
        })
        .with_context(|| words.join(" "))?;
        echo::ask_tcp(node, WEB.parse()?, SOON).with_context(|| words.join(" "))?;
    }
    Ok(())
}

fn what_is_foreign_is_never_touched() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    node.run(&["ipvsadm", "-A", "-t", "10.4.7.21:8080", "-s", "wlc"])?;
    node.run(&["ipvsadm", "-a", "-t", "10.4.7.21:8080", "-r", "10.4.7.22:80", "-i"])?;
    node.run(&["nft", "add", "table", "ip", "foreign"])?;
    let foreign = servers(node)?;
    nodes.publish("web.yaml", WEB_YAML)?;
    // With nothing left the source would be doubted.
    nodes.publish("api.yaml", &WEB_SERVICE.replace("web", "api").replace("192.168.0.10", "192.168.0.11"))?;
    let proxy = nodes.proxy()?;
    let untouched = || {
        let now = servers(node)?;
        ensure!(foreign.iter().all(|line| now.contains(line)), "{now:?}");
        node.run(&["nft", "list", "table", "ip", "foreign"]).map(drop)
    };
    untouched()?;
    publish_web(&nodes, &[])?;
    ensure!(proxy.terminate(SOON)?.success());
    nodes.node()?.run(&["rm", &format!("{SERVICES}/web.yaml")])?;
    let proxy = nodes.proxy()?;
    eventually(SOON, || {
        let mut left = servers(node)?;
        left.retain(|line| !line.contains("192.168.0.11"));
        ensure!(left == foreign, "{left:?}");
        Ok(())
    })?;
    untouched()?;
    ensure!(proxy.terminate(SOON)?.success());
    nodes.publish("web.yaml", WEB_YAML)?;
    ensure!(nodes.proxy()?.terminate(SOON)?.success());
    node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
    ensure!(servers(node)? == foreign, "{:?}", servers(node)?);
    let left = node.run(&["nft", "list", "ruleset"])?.stdout + &node.run(&["ip", "-o", "link"])?.stdout;
    ensure!(!left.contains("ipvs"), "{left}");
    untouched()
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            a_removed_endpoint_keeps_its_connections_until_they_end,
            an_endpoint_that_comes_back_keeps_its_connections,
            a_drain_ends_with_its_grace_period,
            a_drain_goes_on_after_a_restart,
            a_drain_is_as_old_after_a_kill_as_before_it,
            a_service_made_again_while_an_endpoint_drained_is_served_by_its_endpoints_alone,
            a_restart_changes_nothing,
            what_was_deleted_while_the_proxy_was_away_goes_when_it_is_back,
            one_changed_endpoint_is_one_step,
            a_malformed_service_is_reported_and_the_others_go_on,
            a_service_deleted_while_the_proxy_was_away_goes_beside_unreadable_files_and_duplicates,
            what_a_family_without_pods_asks_for_is_reported,
            what_somebody_deletes_is_back,
            what_is_foreign_is_never_touched,
        ],
    )
}
