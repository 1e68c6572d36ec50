//! The commands of the README, run in the order a reader would, on the reference cluster.
//!
//! Only two kinds of line are not run: those that build (that is what led here; `make install` takes the programs of the tests) and
//! what needs a running systemd; the daemons are started as their units would start them, with the environment files that the commands wrote.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Host, Need, Process, allowing_for_load, bin_dir, eventually};

/// How long a step may take until it shows; the lab kernel has one processor, shared with whatever else runs.
fn ready() -> Duration {
    allowing_for_load(Duration::from_secs(60))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The fenced blocks below a heading of the README, as lines.
fn blocks(heading: &str) -> Result<Vec<Vec<String>>> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let (_, section) =
        readme.split_once(&format!("\n## {heading}\n")).with_context(|| format!("no heading {heading}"))?;
    let section = section.split("\n## ").next().unwrap();
    let fenced = section.split("```").skip(1).step_by(2);
    Ok(fenced.map(|block| block.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()).collect())
}

/// Runs the lines of a block that can run here, from the root of the tree.
fn follow(host: &Host, lines: &[String]) -> Result<String> {
    let programs = bin_dir()?;
    let mut shown = String::new();
    let builds = |line: &str| line.starts_with("make ") && !line.starts_with("make install");
    for line in lines.iter().filter(|line| !builds(line)) {
        let line = line.replace("make install", &format!("make install PROGRAMS='{}'", programs.display()));
        // Each may be done twice: what a busy machine does not answer in a client's own time is asked for again.
        let run = || host.command("bash").args(["-euc", &line]).current_dir(root()).limit(ready()).run();
        shown += &eventually(ready(), run).with_context(|| line.clone())?.stdout;
    }
    Ok(shown)
}

/// Starts a daemon as its unit does.
fn start(host: &Host, program: &str) -> Result<Process> {
    let line = format!("set -a; . /etc/default/{program}; exec /usr/local/bin/{program}");
    host.command("bash").args(["-euc", &line]).start(program)
}

fn a_reader_sets_up_a_node_and_a_cluster() -> Result<()> {
    let cluster = Cluster::reference()?;
    let etcd = Etcd::start(cluster.with_role("etcd"))?;
    let node = cluster.host("hdss7-21")?;
    // A machine's /usr is the real one: what the reader installs there goes into a file system of its own.
    node.run(&["mount", "-t", "tmpfs", "tmpfs", "/usr/local"])?;
    let a_node = blocks("A node")?;
    let [install, environment, _packages, status] = a_node.as_slice() else {
        panic!("four blocks below `A node`: {a_node:?}")
    };
    let a_cluster = blocks("A cluster")?;
    let [config, services] = a_cluster.as_slice() else { panic!("two blocks below `A cluster`: {a_cluster:?}") };
    follow(node, install)?;
    follow(node, environment)?;
    follow(node, config)?;
    let _netd = start(node, "netd")?;
    eventually(ready(), || {
        let file = node.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_SUBNET=172.7.21.1/24") && file.contains("FLANNEL_IPMASQ=true"), "{file}");
        Ok(())
    })?;
    let _proxy = start(node, "ipvs-proxy")?;
    let [apply, list, delete] = services.as_slice() else { panic!("apply, list, delete: {services:?}") };
    follow(node, std::slice::from_ref(apply))?;
    ensure!(follow(node, std::slice::from_ref(list))?.contains("web"), "the list shows what was applied");
    eventually(ready(), || {
        let table = node.run(&["ipvsadm", "-Ln"])?.stdout;
        ensure!(table.matches("Masq").count() == 4, "{table}");
        Ok(())
    })?;
    let shown = follow(node, status)?;
    ensure!(shown.contains("172.7.21.0/24"), "{shown}");
    follow(node, std::slice::from_ref(delete))?;
    eventually(ready(), || {
        let table = node.run(&["ipvsadm", "-Ln"])?.stdout;
        ensure!(!table.contains("192.168.0.10"), "{table}");
        Ok(())
    })?;
    let kept = eventually(ready(), || etcd.get("/coreos.com/network/config"))?;
    ensure!(kept.is_some(), "the network's configuration stays");
    ensure!(node.path("/opt/cni/bin/flannel").is_file(), "the plugin stands under flannel's name");
    Ok(())
}

fn main() -> ExitCode {
    let needs = [Need::IpVs, Need::Dummy, Need::Vxlan, Need::Nftables];
    // What is installed lies in memory there, and programs built for debugging are large.
    lab::harness::Suite::new(&needs).memory(2048).run(lab::tests![a_reader_sets_up_a_node_and_a_cluster])
}
