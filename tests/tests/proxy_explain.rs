//! `ipvs-proxy explain` on a running kernel: what it says of a client is what a packet of that client meets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Need, eventually};
use proxy::{Nodes, SOON, WEB, WEB_SERVICE, WEB_YAML, slice, spread};
use serde_json::Value;

/// What `explain` answers with these words, and its exit status.
fn explain(nodes: &Nodes, words: &[&str]) -> Result<(String, Option<i32>)> {
    let output = nodes.node()?.command(lab::bin("ipvs-proxy")?).arg("explain").args(words).output()?;
    Ok((output.stdout + &output.stderr, output.status.code()))
}

/// The same as JSON, of the one place and client that are asked about.
fn client(nodes: &Nodes, from: &str) -> Result<Value> {
    let (text, _) = explain(nodes, &[WEB, "--from", from, "--json"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(report["places"][0]["clients"][0].clone())
}

/// The endpoints that the answer names.
fn named(client: &Value) -> BTreeSet<String> {
    let text = client["kernel"].to_string();
    let words = text.split([' ', ',', '"']);
    words.filter_map(|word| word.strip_suffix(":80")).map(str::to_owned).collect()
}

/// Who answers a client is who `explain` names, for a Pod and for the node itself.
fn ensure_truth(nodes: &Nodes) -> Result<()> {
    let from_pod: BTreeSet<String> = spread(nodes.pod("172.7.21.3")?, 60)?.into_keys().collect();
    let pod = client(nodes, "172.7.21.3")?;
    ensure!(named(&pod) == from_pod && pod["reaches"] == true, "{from_pod:?}: {pod}");
    let seen = spread(nodes.node()?, 60)?;
    let node = client(nodes, "10.4.7.21")?;
    ensure!(named(&node) == seen.into_keys().collect() && node["class"] == "node", "{node}");
    ensure!(node["kernel"].to_string().contains("this node's address"), "{node}");
    Ok(())
}

fn what_is_said_is_what_packets_meet(nodes: &Nodes, flag: &str) -> Result<()> {
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.2"]))?;
    let daemon = nodes.proxy_with(&[flag])?;
    eventually(SOON, || ensure_truth(nodes))?;
    // No flag of the daemon is given: how it was started is in its status.
    let (text, status) = explain(nodes, &["default/web:http"])?;
    ensure!(
        status == Some(0) && text.contains("endpoint  172.7.21.2:80 on an unknown node, takes connections"),
        "{text}"
    );
    let (text, status) = explain(nodes, &["192.168.0.10:81"])?;
    ensure!(status == Some(1) && text.contains("no such port; it has 80/tcp"), "{text}");
    let (text, status) = explain(nodes, &["default/shop:80"])?;
    ensure!(status == Some(2) && text.contains("there is no services/default/shop"), "{text}");
    daemon.kill()?;
    let (text, status) = explain(nodes, &[WEB])?;
    ensure!(status == Some(0) && text.contains("note: ipvs-proxy is not running"), "{text}");
    Ok(())
}

fn on_nftables_it_says_what_packets_meet_and_what_somebody_took_away() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.node()?.run(&["ip", "route", "add", "192.168.0.0/16", "dev", "cbr0"])?;
    what_is_said_is_what_packets_meet(&nodes, "--proxy-mode=nftables")?;
    let element = ["delete", "element", "ip", "ipvs-proxy", "services", "{ 192.168.0.10 . tcp . 80 }"];
    nodes.node()?.command("nft").args(element).run()?;
    let (text, status) = explain(&nodes, &[WEB, "--from", "172.7.21.3"])?;
    ensure!(status == Some(1), "{text}");
    for part in [
        "from 172.7.21.3 (pod): refused at once",
        "PLANNED to one of 172.7.21.2:80",
        "MISSING     element ip ipvs-proxy @services",
    ] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    Ok(())
}

fn on_ipvs_it_says_what_packets_meet_and_what_somebody_took_away() -> Result<()> {
    let nodes = Nodes::start()?;
    what_is_said_is_what_packets_meet(&nodes, "--proxy-mode=ipvs")?;
    nodes.node()?.run(&["ipvsadm", "-d", "-t", WEB, "-r", "172.7.22.2:80"])?;
    let (text, status) = explain(&nodes, &[WEB, "--from", "172.7.21.3"])?;
    ensure!(status == Some(1) && text.contains("MISSING     real server 172.7.22.2:80"), "{text}");
    ensure!(text.contains("from 172.7.21.3 (pod): to 172.7.21.2:80, which sees the client's address"), "{text}");
    Ok(())
}

fn without_its_source_it_says_what_the_kernel_does() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    nodes.proxy_with(&["--proxy-mode=nftables"])?.kill()?;
    let words = ["--etcd-endpoints=http://127.0.0.1:1", "--cluster-cidr=172.7.0.0/16", "explain", WEB];
    let output = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(words).output()?;
    let text = output.stdout;
    for part in ["only the kernel is shown", "service   default/web, of the kernel's rows", "to one of 172.7.21.2:80"] {
        ensure!(text.contains(part), "{part}: {text} {}", output.stderr);
    }
    Ok(())
}

/// What `doctor` finds, each as `SEVERITY CHECK FOUND`, and its exit status.
fn doctor(nodes: &Nodes) -> Result<(Vec<String>, Option<i32>)> {
    let output = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(["doctor", "--json"]).output()?;
    let findings: Vec<Value> = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let text = |finding: &Value| {
        let [severity, check, found] =
            ["severity", "check", "found"].map(|name| finding[name].as_str().unwrap_or_default());
        format!("{severity} {check} {found}")
    };
    Ok((findings.iter().map(text).collect(), output.status.code()))
}

fn doctor_finds_what_was_broken_on_purpose() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    let ported = WEB_SERVICE.replace("port: 80}", "port: 80, nodePort: 30080}");
    nodes.publish("service.yaml", &ported)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.2"]))?;
    node.run(&["ip", "route", "add", "192.168.0.0/16", "dev", "cbr0"])?;
    let daemon = nodes.proxy_with(&["--proxy-mode=nftables"])?;
    eventually(SOON, || {
        let (found, _) = doctor(&nodes)?;
        // Whether bridged packets pass the rules depends on the machine that this runs on.
        let bad = found.iter().filter(|line| line.starts_with("problem") && !line.starts_with("problem br_netfilter"));
        let bad: Vec<_> = bad.collect();
        ensure!(bad.is_empty(), "{bad:?}");
        Ok(())
    })?;
    daemon.kill()?;
    node.run(&["sysctl", "-qw", "net.ipv4.ip_forward=0"])?;
    node.run(&["nft", "add", "table", "ip", "kube-proxy"])?;
    node.run(&["ip", "address", "add", "192.168.0.10/32", "dev", "cbr0"])?;
    node.run(&["ip", "route", "delete", "172.7.22.0/24"])?;
    let _listener = lab::echo::serve(node, "10.4.7.21", 30080)?;
    let (found, status) = doctor(&nodes)?;
    ensure!(status == Some(1), "{found:?}");
    for part in [
        "problem daemon ipvs-proxy is not running",
        "problem forwarding IPv4 is not forwarded",
        "problem rival a kube-proxy has left nft table ip kube-proxy",
        "problem addresses 192.168.0.10 of services/default/web is an address of cbr0",
        "problem endpoints services/default/web: 1 of its endpoints have no route, such as 172.7.22.2",
        "problem listeners a process of this host listens at",
    ] {
        ensure!(found.iter().any(|line| line.starts_with(part)), "{part}: {found:#?}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            on_ipvs_it_says_what_packets_meet_and_what_somebody_took_away,
            on_nftables_it_says_what_packets_meet_and_what_somebody_took_away,
            without_its_source_it_says_what_the_kernel_does,
            doctor_finds_what_was_broken_on_purpose,
        ],
    )
}
