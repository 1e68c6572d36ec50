//! `ipvs-proxy` as a daemon: what it says of itself while it runs, when it is dead, and to whom.
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::confined::ensure_confined;
use lab::{Host, Need, Output, eventually};
use proxy::{Nodes, SOON, WEB_YAML, servers};
use serde_json::Value;

/// What the program answers to these words, whatever its exit status is.
fn ask(host: &Host, words: &str) -> Result<Output> {
    host.command(lab::bin("ipvs-proxy")?).args(words.split(' ')).output()
}

/// What curl gets, with the status code as its last line.
fn curl(host: &Host, url: &str) -> Result<String> {
    let words = ["-s", "--max-time", "5", "-w", "\n%{http_code}", url];
    host.command("curl").args(words).output().map(|output| output.stdout)
}

fn status_of_a_dead_daemon_says_so_and_exits_1() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = nodes.proxy()?;
    let node = nodes.node()?;
    let alive = eventually(SOON, || {
        let output = ask(node, "status")?;
        ensure!(output.status.success(), "{output:?}");
        Ok::<_, anyhow::Error>(output)
    })?;
    ensure!(alive.stdout.starts_with("in place on ") && alive.stderr.is_empty(), "{alive:?}");
    proxy.kill()?;
    let dead = ask(node, "status")?;
    ensure!(dead.status.code() == Some(1), "{dead:?}");
    ensure!(dead.stderr.contains("ipvs-proxy is not running: process "), "{dead:?}");
    ensure!(dead.stdout.starts_with("NOT in place on "), "{dead:?}");
    let dead = ask(node, "status --json")?;
    let status: Value = serde_json::from_str(&dead.stdout)?;
    ensure!(dead.status.code() == Some(1) && status["process"]["state"] == "dead", "{dead:?}");
    let rows = ask(node, "tables")?;
    ensure!(rows.status.code() == Some(1) && rows.stderr.contains("no daemon answers at "), "{rows:?}");
    Ok(())
}

fn daemon_answers_curl_on_loopback_and_nobody_else() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let node = nodes.node()?;
    for path in ["healthz", "livez", "readyz"] {
        let text = curl(node, &format!("http://127.0.0.1:10256/{path}"))?;
        ensure!(text.ends_with("\n200") && text.contains("\"healthy\":true"), "{path}: {text}");
    }
    ensure!(curl(node, "http://127.0.0.1:10249/proxyMode")? == "ipvs\n200");
    eventually(SOON, || {
        let metrics = curl(node, "http://127.0.0.1:10249/metrics")?;
        for line in ["ipvs_proxy_table_rows_in_place{table=\"ipvs\"} 1", "ipvs_proxy_readiness_gate{gate=\"tables\"} 1"]
        {
            ensure!(metrics.lines().any(|found| found == line), "{metrics}\nlacks {line}");
        }
        Ok(())
    })?;
    let status = curl(node, "http://127.0.0.1:10249/status")?;
    ensure!(status.starts_with("in place on "), "{status}");
    ensure!(curl(node, "http://127.0.0.1:10256/status")?.ends_with("404"));
    for port in [10249, 10256] {
        let answer = curl(nodes.outside()?, &format!("http://10.4.7.21:{port}/healthz"))?;
        ensure!(answer.ends_with("000"), "{answer}");
    }
    Ok(())
}

fn tables_show_what_the_kernel_holds_and_what_it_lacks() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let node = nodes.node()?;
    ensure!(servers(node)?.len() == 5);
    let rows = eventually(SOON, || {
        let rows = node.command(lab::bin("ipvs-proxy")?).arg("tables").run()?.stdout;
        ensure!(
            rows.contains("\ntable ipvs (1 desired)\n  tcp 192.168.0.10:80 scheduler rr -> 172.7.21.2:80 weight 1, "),
            "{rows}"
        );
        Ok::<_, anyhow::Error>(rows)
    })?;
    ensure!(!rows.lines().any(|line| line.starts_with(['+', '-', '?'])), "{rows}");
    let text = node.command(lab::bin("ipvs-proxy")?).args(["tables", "--json"]).run()?.stdout;
    let tables: Value = serde_json::from_str(&text)?;
    let names: Vec<_> = tables.as_array().into_iter().flatten().map(|table| table["name"].clone()).collect();
    for name in ["sysctl", "link", "nft", "ipvs", "address"] {
        ensure!(names.contains(&Value::from(name)), "no {name} in {text}");
    }
    Ok(())
}

fn proxy_whose_source_is_not_listed_is_not_ready_and_says_what_it_awaits() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    let flags = ["--etcd-endpoints=http://10.4.7.200:2379", "--cluster-cidr=172.7.0.0/16"];
    let _proxy = node.command(lab::bin("ipvs-proxy")?).args(flags).start("ipvs-proxy")?;
    eventually(SOON, || {
        let text = curl(node, "http://127.0.0.1:10256/readyz")?;
        ensure!(text.ends_with("\n503") && text.contains("\"awaited\":[\"sources\",\"tables\"]"), "{text}");
        Ok(())
    })?;
    ensure!(curl(node, "http://127.0.0.1:10256/healthz")?.ends_with("\n200"), "it is well all the same");
    Ok(())
}

fn daemon_of_root_gives_up_all_but_the_network() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = nodes.proxy()?;
    eventually(SOON, || ensure_confined(&proxy))
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            status_of_a_dead_daemon_says_so_and_exits_1,
            daemon_answers_curl_on_loopback_and_nobody_else,
            tables_show_what_the_kernel_holds_and_what_it_lacks,
            daemon_of_root_gives_up_all_but_the_network,
            proxy_whose_source_is_not_listed_is_not_ready_and_says_what_it_awaits,
        ],
    )
}
