//! A program that keeps undoing netd's rows: they are put back ever more slowly, and the warning names who it may be.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process, eventually};
use netd_node::{Net, SOON};

const DUAL: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"}}"#;

const NODE: &str = "hdss7-21";

/// The reference cluster with netd on two nodes, of both families.
fn start() -> Result<(Net, Vec<Process>)> {
    let net = Net::start(DUAL)?;
    let mut all = Vec::new();
    for n in ["21", "22"] {
        let node = format!("hdss7-{n}");
        let address = format!("fd00:10:4:7::{n}/64");
        net.host(&node)?.run(&["ip", "-6", "address", "add", &address, "dev", "eth0", "nodad"])?;
        all.push(net.launch(&node, &[])?);
    }
    for netd in &all {
        netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    }
    net.eventually_routes(NODE, "172.7.22.0/24")?;
    Ok((net, all))
}

/// Runs `script` for ever.
fn rival(host: &Host, script: &str) -> Result<Process> {
    host.command("sh").args(["-c", &format!("while :; do {script}; sleep 0.02; done")]).start("rival")
}

/// Waits until a row of `table` is said to be undone by `who`.
fn eventually_names(net: &Net, table: &str, key: &str, who: &str) -> Result<()> {
    eventually(2 * SOON, || {
        let status = net.status(NODE)?;
        let rows = status["tables"][table]["open"].as_array().context("open rows")?.clone();
        let named = |row: &&serde_json::Value| {
            let (found, reason) = (row["key"].to_string(), row["reason"].to_string());
            found.contains(key) && reason.contains(who) && reason.contains("has undone it")
        };
        ensure!(rows.iter().find(named).is_some(), "{rows:?}");
        Ok(())
    })
}

fn program_that_removes_routes_is_named_for_both_families() -> Result<()> {
    let (net, netd) = start()?;
    let host = net.host(NODE)?;
    for (family, subnet) in [("-4", "172.7.22.0/24"), ("-6", "fd00:7:0:22::/64")] {
        let shown = || host.run(&["ip", family, "route", "show", "proto", "121", subnet]);
        let there = || {
            ensure!(!shown()?.stdout.is_empty(), "no route to {subnet}");
            Ok(())
        };
        eventually(SOON, there)?;
        // One program that lives on, as a routing daemon does.
        let feeder = format!("while :; do echo route del {subnet}; sleep 0.02; done | ip {family} -force -batch -");
        let rival = host.command("sh").args(["-c", &feeder]).start("rival")?;
        eventually_names(&net, "routes", subnet, "somebody else, probably ip (process ")?;
        netd[0].wait_for_line("probably ip (process ", SOON)?;
        rival.kill()?;
        host.command("pkill").args(["-x", "ip"]).output()?;
        eventually(2 * SOON, there)?;
    }
    Ok(())
}

fn program_that_removes_tables_of_nftables_is_named() -> Result<()> {
    let (net, _netd) = start()?;
    let host = net.host(NODE)?;
    let _rival = rival(host, "nft delete table ip netd; nft delete table ip6 netd")?;
    eventually_names(&net, "nft", "ip netd", "somebody else, probably nft (process ")?;
    eventually_names(&net, "nft", "ip6 netd", "somebody else, probably nft (process ")
}

fn program_that_flushes_foreign_chains_is_named() -> Result<()> {
    let (net, _netd) = start()?;
    let host = net.host(NODE)?;
    host.run(&["iptables", "-P", "FORWARD", "DROP"])?;
    let _rival = rival(host, "iptables -F FORWARD")?;
    eventually_names(&net, "forward", "ip filter FORWARD", "somebody else, probably iptables (process ")
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            program_that_removes_routes_is_named_for_both_families,
            program_that_removes_tables_of_nftables_is_named,
            program_that_flushes_foreign_chains_is_named,
        ],
    )
}
