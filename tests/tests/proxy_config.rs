//! What `ipvs-proxy` refuses before it touches anything, and how it says so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Cluster, Host, Topology};

/// What the program says on standard error when it is started with these words and refuses.
fn refusal(host: &Host, words: &[&str]) -> Result<String> {
    let error = host.command(lab::bin("ipvs-proxy")?).args(words).run().unwrap_err();
    Ok(format!("{error:#}"))
}

/// Networks that overlap are no reason not to start; here another one is.
fn networks_that_overlap_are_named_by_both_their_names() -> Result<()> {
    let cluster = Cluster::start(&Topology::parse("network 192.168.44.0/24\nnode 192.168.44.100")?)?;
    let said = |pods, services| {
        let flags = ["--services-dir=/run/services", "--ipvs-scheduler=nobodys", pods, services];
        refusal(cluster.host("node")?, &flags)
    };
    let flags_are_taken = |said: &str| !said.contains("--cluster-cidr:") && !said.contains("--service-cidr:");
    let text = said("--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16")?;
    let both = "node network on eth0 192.168.44.0/24 overlaps Service network (service-cidr) 192.168.0.0/16";
    ensure!(text.contains(both) && flags_are_taken(&text), "{text}");
    let text = said("--cluster-cidr=192.168.0.0/16", "--service-cidr=192.168.0.0/17")?;
    ensure!(text.matches("overlaps").count() == 3, "each pair is named: {text}");
    let left = cluster.host("node")?.run(&["ip", "-o", "link"])?.stdout;
    ensure!(!left.contains("kube-ipvs0"), "{left}");
    Ok(())
}

fn every_wrong_flag_is_reported_at_once() -> Result<()> {
    let host = Host::start("node")?;
    let said = refusal(&host, &["--cluster-cidr=pods", "--ipvs-scheduler=R R", "--ipvs-graceful-period=soon"])?;
    for flag in
        ["--etcd-endpoints: missing", "--cluster-cidr: \"pods\"", "--ipvs-scheduler: ", "--ipvs-graceful-period: "]
    {
        ensure!(said.contains(flag), "{flag} in {said}");
    }
    Ok(())
}

fn a_status_that_nobody_wrote_is_an_error_that_says_where() -> Result<()> {
    let host = Host::start("node")?;
    let said = refusal(&host, &["status"])?;
    ensure!(said.contains("no status in /run/ipvs-proxy; is the daemon running"), "{said}");
    Ok(())
}

fn a_kernel_without_ipvs_is_reported_with_what_to_do() -> Result<()> {
    let host = Host::start("node")?;
    let flags = ["--services-dir=/run/services", "--cluster-cidr=172.7.0.0/16", "--proxy-mode=ipvs"];
    let said = refusal(&host, &flags)?;
    ensure!(said.contains("this kernel has no IPVS: load the modules ip_vs and ip_vs_rr"), "{said}");
    Ok(())
}

fn main() -> ExitCode {
    let mut tests = lab::tests![
        networks_that_overlap_are_named_by_both_their_names,
        every_wrong_flag_is_reported_at_once,
        a_status_that_nobody_wrote_is_an_error_that_says_where,
    ];
    if Path::new("/proc/net/ip_vs").exists() {
        eprintln!("SKIPPED, not passed: a_kernel_without_ipvs_is_reported_with_what_to_do: this kernel has IPVS");
    } else {
        tests.extend(lab::tests![a_kernel_without_ipvs_is_reported_with_what_to_do]);
    }
    lab::harness::main(&[], tests)
}
