//! The benchmark runs: with small numbers, on a busy machine, and with nothing judged but its end.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use lab::Absent;
use lab::harness::Suite;
use lab::kubernetes::Release;
use lab::{Need, bin};

/// Runs one part; its report must have a row for `count` in each of these sections.
fn measure(part: &str, flag: &str, count: &str, sections: &[&str]) -> Result<()> {
    let report = report(part, &[flag, count])?;
    for section in sections {
        let (_, rest) = report.split_once(section).with_context(|| format!("no section {section:?} in\n{report}"))?;
        let table = rest.split("\n#").next().unwrap_or_default();
        ensure!(table.contains(&format!("| {count} |")), "{section}: no row for {count} in\n{table}");
    }
    Ok(())
}

/// What one part reports after one round.
fn report(part: &str, words: &[&str]) -> Result<String> {
    let mut bench = Command::new(bin("bench")?);
    bench.args(["--only", part, "--rounds", "1", "--markdown"]).args(words).env("NETD_BENCH_BUSY", "1");
    let output = bench.output().context("start the benchmark")?;
    let (report, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{report}{errors}", output.status);
    Ok(report.into_owned())
}

fn part_of_netd_measures_start_restart_and_one_changed_lease() -> Result<()> {
    measure(
        "netd",
        "--leases",
        "20",
        &["until all kernel entries are in place", "a restart with nothing to change", "one lease changes among them"],
    )
}

fn part_of_the_proxy_measures_start_restart_one_changed_endpoint_and_use_on_both_paths() -> Result<()> {
    let titles = [
        "Services of 5 endpoints already in etcd",
        "a restart with nothing to change",
        "one endpoint of one Service changes",
        "what it uses",
    ];
    let sections: Vec<String> = ["nftables", "ipvs"]
        .iter()
        .flat_map(|path| titles.map(|title| format!("ipvs-proxy on {path}: {title}")))
        .collect();
    measure("proxy", "--services", "20", &sections.iter().map(String::as_str).collect::<Vec<_>>())
}

fn part_of_local_addresses_measures_both_ways() -> Result<()> {
    measure("local", "--services", "20", &["an address for each of the Services of 5 endpoints, or one route for all"])
}

fn part_of_the_data_path_measures_every_backend_and_each_step() -> Result<()> {
    let report = report("path", &[])?;
    for row in [
        "raw link",
        "vxlan, netd",
        "host-gw, netd",
        "ipip, netd",
        "wireguard, netd",
        "vxlan, netd, Flowtable",
        "masquerade chain, as netd",
        "flowtable",
    ] {
        let line = report.lines().find(|line| line.starts_with("| ") && line.contains(row));
        let line = line.with_context(|| format!("no row {row:?} in\n{report}"))?;
        let throughput = line.split('|').nth(2).unwrap_or_default().trim();
        ensure!(throughput.parse::<f64>()? > 0.0, "{line}");
    }
    Ok(())
}

fn part_of_a_virtual_address_measures_streams_and_requests_on_both_paths() -> Result<()> {
    let report = report("vip", &[])?;
    for path in ["nftables", "ipvs"] {
        for load in ["a TCP stream and UDP round trips", "wrk, 16 connections"] {
            let title = format!("ipvs-proxy on {path}: {load}");
            let (_, rest) = report.split_once(&title).with_context(|| format!("no section {title:?} in\n{report}"))?;
            let table = rest.split("\n#").next().unwrap_or_default();
            let line = table.lines().find(|line| line.starts_with("| through a Service, one of 1 |"));
            let line = line.with_context(|| format!("no row in\n{table}"))?;
            let rate = line.split('|').nth(2).unwrap_or_default().trim();
            ensure!(rate.parse::<f64>()? > 0.0, "{line}");
        }
    }
    Ok(())
}

fn part_of_kubernetes_measures_nodes_services_and_kube_proxy() -> Result<()> {
    let report = report("kubernetes", &["--nodes", "20", "--services", "20"])?;
    for (section, rows) in [
        ("netd: Nodes in the API server", &["the first start", "a restart"][..]),
        ("netd: one Node changes", &["its address (1 entry)"]),
        ("netd: heartbeats of these Nodes", &["written beneath the server", "patches of the status, 6 clients"]),
        (
            "Services of 5 endpoints in the API server",
            &["ipvs-proxy, first start", "kube-proxy 1.20, iptables, first start"],
        ),
        ("one endpoint of one slice changes", &["ipvs-proxy", "kube-proxy 1.20, iptables"]),
    ] {
        let (_, rest) = report.split_once(section).with_context(|| format!("no section {section:?} in\n{report}"))?;
        let table = rest.split("\n#").next().unwrap_or_default();
        for row in rows {
            let start = format!("| 20 | Kubernetes 1.20 | {row} |");
            ensure!(table.lines().any(|line| line.starts_with(&start)), "{section}: no row {row:?} in\n{table}");
        }
    }
    Ok(())
}

fn part_of_instructions_measures_the_proxy_on_debians_own_kernel() -> Result<()> {
    let kernel = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu/kernel")).arg("--path").output()?;
    if !kernel.status.success() {
        return Err(Absent::CannotBeHad(String::from_utf8_lossy(&kernel.stderr).trim().to_owned()).into());
    }
    let report = report("instructions", &["--services", "20"])?;
    let (_, machine) = report.split_once("Machine: 1 × QEMU").context("not inside QEMU")?;
    ensure!(machine.lines().next().is_some_and(|line| line.contains("-cloud-amd64")), "{report}");
    for figure in [
        "until the kernel holds all",
        "a restart with nothing to change",
        "one endpoint of one Service changes",
        "what it uses",
    ] {
        let (_, rest) = report.split_once(figure).with_context(|| format!("no section {figure:?} in\n{report}"))?;
        let table = rest.split("\n#").next().unwrap_or_default();
        ensure!(table.contains("| 20 |"), "{figure}: no row in\n{table}");
    }
    Ok(())
}

fn part_of_kubernetes_on_ipvs_measures_both_proxies() -> Result<()> {
    let report = report("kubernetes-ipvs", &["--services", "10"])?;
    for proxy in ["ipvs-proxy", "kube-proxy 1.20, ipvs"] {
        let line = report.lines().find(|line| line.starts_with(&format!("| 10 | {proxy} |")));
        let line = line.with_context(|| format!("no row of {proxy} in\n{report}"))?;
        for column in [3, 4] {
            let time = line.split('|').nth(column).unwrap_or_default().trim();
            ensure!(time.parse::<f64>()? > 0.0, "{line}");
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    Suite::new(&[Need::Vxlan, Need::Nftables]).with_kubernetes(Release::V1_20).run(lab::tests![
        part_of_kubernetes_on_ipvs_measures_both_proxies,
        part_of_kubernetes_measures_nodes_services_and_kube_proxy,
        part_of_netd_measures_start_restart_and_one_changed_lease,
        part_of_the_proxy_measures_start_restart_one_changed_endpoint_and_use_on_both_paths,
        part_of_local_addresses_measures_both_ways,
        part_of_instructions_measures_the_proxy_on_debians_own_kernel,
        part_of_the_data_path_measures_every_backend_and_each_step,
        part_of_a_virtual_address_measures_streams_and_requests_on_both_paths,
    ])
}
