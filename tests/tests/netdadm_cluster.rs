//! Clusters from a file alone: `netdadm render`, `netdadm apply` on machines that boot, and what they outlive.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::kubernetes::Release;
use lab::{Cluster, Host, Need, RenderedCluster, eventually};

/// A control plane that starts on a busy machine.
const SOON: Duration = Duration::from_secs(180);
const PKI: &str = "/etc/kubernetes/pki/etcd";
/// What says by sd_notify that it is ready.
const DAEMONS: [&str; 2] = ["netd", "ipvs-proxy"];

fn rendered(name: &str) -> Result<RenderedCluster> {
    RenderedCluster::boot(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/clusters").join(name))
}

/// What `systemctl show` says of a unit.
fn property(host: &Host, unit: &str, name: &str) -> Result<String> {
    let words = ["systemctl", "show", unit, "--value", &format!("--property={name}")];
    Ok(host.run(&words)?.stdout.trim().to_owned())
}

fn is_active(host: &Host, unit: &str) -> Result<()> {
    let state = property(host, unit, "ActiveState")?;
    ensure!(state == "active", "{unit} on {} is {state}", host.name());
    Ok(())
}

/// What each member of etcd says of its cluster, asked with the certificate that its host has for that.
fn members_serve(cluster: &RenderedCluster) -> Result<()> {
    let keys = ["ca.crt", "healthcheck-client.crt", "healthcheck-client.key"].map(|file| format!("{PKI}/{file}"));
    let flags = ["--cacert", "--cert", "--key"].into_iter().zip(&keys).map(|(flag, file)| format!("{flag}={file}"));
    let tls: Vec<String> = flags.chain(["--endpoints=https://127.0.0.1:2379".to_owned()]).collect();
    for name in cluster.with_role("etcd") {
        let etcdctl = |words: &[&str]| {
            Ok::<_, anyhow::Error>(cluster.host(name)?.command("etcdctl").env("ETCDCTL_API", "3").args(words))
        };
        eventually(SOON, || etcdctl(&["endpoint", "health"])?.args(&tls).run().map(drop))?;
        let members = etcdctl(&["member", "list"])?.args(&tls).run()?.stdout;
        let count = cluster.with_role("etcd").count();
        ensure!(members.lines().filter(|line| line.contains("started")).count() == count, "{members}");
        let stranger = etcdctl(&["endpoint", "health", "--command-timeout=2s"])?.args([&tls[0], &tls[3]]).output()?;
        ensure!(!stranger.status.success(), "a client without a certificate was served: {stranger:?}");
    }
    Ok(())
}

/// Waits until netd and ipvs-proxy of every node have said that they are ready.
fn daemons_are_ready(cluster: &RenderedCluster) -> Result<()> {
    for name in cluster.with_role("node") {
        let host = cluster.host(name)?;
        for daemon in DAEMONS {
            ensure!(property(host, daemon, "Type")? == "notify");
            eventually(SOON, || is_active(host, daemon))?;
        }
    }
    Ok(())
}

fn nodes_are_ready(cluster: &RenderedCluster) -> Result<()> {
    let count = cluster.with_role("node").count();
    eventually(SOON, || {
        let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"])?.run()?.stdout;
        let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
        ensure!(ready == count, "{nodes}");
        Ok(())
    })
}

/// The Pod subnets of the nodes.
fn subnets(cluster: &RenderedCluster) -> Result<Vec<String>> {
    let of = |name| {
        let file = cluster.host(name)?.read("/run/flannel/subnet.env")?;
        let line = file.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        Ok(line.unwrap_or_default().to_owned())
    };
    cluster.with_role("node").map(of).collect()
}

/// All of it stands, with these subnets.
fn stands(cluster: &RenderedCluster, after: &str, wanted: &[String]) -> Result<()> {
    members_serve(cluster)?;
    daemons_are_ready(cluster)?;
    nodes_are_ready(cluster)?;
    let found = subnets(cluster)?;
    ensure!(found == wanted, "after {after}: {found:?}, before {wanted:?}");
    Ok(())
}

/// Nothing is left to do on any host.
fn nothing_is_left_to_do(cluster: &RenderedCluster) -> Result<()> {
    for name in cluster.order() {
        let printed = cluster.apply_command(name)?.run()?.stdout;
        ensure!(printed.contains("nothing to do"), "{printed}");
    }
    Ok(())
}

fn the_reference_cluster_comes_up_from_its_file_and_outlives_restarts_kills_a_reboot_and_a_cold_start() -> Result<()> {
    let cluster = rendered("reference.yaml")?;
    cluster.apply_all()?;
    let wanted = ["172.7.21.1/24".to_owned(), "172.7.22.1/24".to_owned()];
    stands(&cluster, "the start", &wanted)?;
    nothing_is_left_to_do(&cluster)?;
    let node = cluster.host("hdss7-21")?;
    let units = ["etcd", "netd", "ipvs-proxy"];
    node.run(&[&["systemctl", "restart"][..], &units].concat())?;
    stands(&cluster, "systemctl restart", &wanted)?;
    for unit in units {
        let before = property(node, unit, "MainPID")?;
        node.run(&["systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit])?;
        eventually(SOON, || {
            ensure!(property(node, unit, "MainPID")? != before, "{unit} has not ended");
            is_active(node, unit)
        })?;
    }
    stands(&cluster, "kill -9", &wanted)?;
    cluster.machines.reboot(&["hdss7-22"])?;
    stands(&cluster, "a reboot", &wanted)?;
    let all = ["hdss7-11", "hdss7-12", "hdss7-21", "hdss7-22"];
    all.iter().try_for_each(|name| cluster.machines.cut_power(name))?;
    cluster.machines.switch_on(&all)?;
    stands(&cluster, "a cold start", &wanted)?;
    nothing_is_left_to_do(&cluster)
}

fn main() -> ExitCode {
    let suite = lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables]);
    suite.unless(Cluster::boot_obstacle()).with_kubernetes(Release::V1_20).with_kubernetes_tools().run(lab::tests![
        the_reference_cluster_comes_up_from_its_file_and_outlives_restarts_kills_a_reboot_and_a_cold_start,
    ])
}
