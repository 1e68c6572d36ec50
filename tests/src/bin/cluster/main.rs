//! The cluster of a file, for a person to see: `netdadm check`, `render` and `apply` make the reference cluster on five machines that boot
//! Debian's systemd, with the real programs of Kubernetes; Pods answer, and go on while each host in turn is without power.
//!
//! Invariant: it shows what the programs print. Exit status 0 means that every question was answered; whatever way it ends, nothing stays
//! behind, because machines end with the process that made them.

#![allow(clippy::print_stdout, reason = "a report is its purpose")]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::tools;
use lab::rendered::{NAME, Running, VIP};
use lab::{RenderedCluster, bin};

/// Hosts whose power is cut, one after the other: the control plane, a member of etcd, nodes that are members.
const LOST: [&str; 4] = ["hdss7-11", "hdss7-12", "hdss7-21", "hdss7-22"];

/// The topology, from the root of the tree.
const FILE: &str = "configs/clusters/reference.yaml";

fn main() -> ExitCode {
    let keep = std::env::args().any(|word| word == "--keep");
    match run(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}\n{}", lab::logs());
            ExitCode::FAILURE
        }
    }
}

fn run(keep: bool) -> Result<()> {
    let begun = Instant::now();
    let step = |title: &str| println!("\n== {title} ({} s)", begun.elapsed().as_secs());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    step(&format!("netdadm check -f {FILE}"));
    let mut check = Command::new(bin("netdadm")?);
    let checked = check.current_dir(&root).args(["check", "-f", FILE]).output().context("netdadm check")?;
    ensure!(checked.status.success(), "netdadm check: {}", String::from_utf8_lossy(&checked.stderr));
    print!("{}", String::from_utf8_lossy(&checked.stdout));
    step(&format!("five machines boot, and netdadm render -f {FILE} -o out/"));
    let cluster = RenderedCluster::boot(&root.join(FILE))?;
    println!("hosts are made in this order: {}", cluster.order().collect::<Vec<_>>().join(", "));
    for name in cluster.order() {
        step(&format!("on {name}: netdadm apply --host {name} out/"));
        let printed = cluster.apply(name)?.stdout;
        printed.lines().filter(|line| line.contains(".service is ")).for_each(|line| println!("{line}"));
    }
    step("kubectl get nodes -o wide");
    cluster.nodes_are_ready()?;
    print!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?.run()?.stdout);
    step("kubectl apply -f out/manifests, and four Pods with a Service");
    cluster.give_images()?;
    cluster.apply_objects()?;
    let pods = cluster.run_pods()?;
    print!("{}", cluster.kubectl(&["get", "pods,services", "-A", "-o", "wide"])?.run()?.stdout);
    step(&format!("every Pod asks a Pod of the other node, and the Service at {VIP} and at {NAME}"));
    answers(&cluster, &pods, None)?;
    for lost in LOST {
        step(&format!("{lost} is without power"));
        cluster.machines.cut_power(lost)?;
        answers(&cluster, &pods, Some(lost))?;
        cluster.machines.switch_on(&[lost])?;
        cluster.nodes_are_ready()?;
        println!("{lost} has booted again, and every Node is Ready");
    }
    step("all of it stands");
    if keep {
        stay(&cluster)?;
    }
    Ok(())
}

/// Who answered, as often.
fn answers(cluster: &RenderedCluster, pods: &[Running], lost: Option<&str>) -> Result<()> {
    for (pod, count) in cluster.all_answer(pods, lost)? {
        println!("{pod} answered {count} requests to the Service");
    }
    Ok(())
}

/// Leaves everything up until the person at the terminal has seen enough.
fn stay(cluster: &RenderedCluster) -> Result<()> {
    println!("the cluster stays up; enter a machine with:");
    for host in cluster.machines.hosts() {
        println!("  {:<20} nsenter -a -t {}", host.name(), host.pid());
    }
    let client = cluster.machines.host("hdss7-200")?.pid();
    let (kubectl, access) = (tools()?.join("kubectl"), cluster.folder().join("pki/admin.conf"));
    let words = format!("{} --kubeconfig {} get pods -A", kubectl.display(), access.display());
    println!("kubectl with its kubeconfig:\n  nsenter -n -t {client} {words}");
    println!("Ctrl-C ends it");
    loop {
        std::thread::park();
    }
}
