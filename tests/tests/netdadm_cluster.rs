//! Clusters from a file alone: `netdadm render`, `netdadm apply` on machines that boot, and what they outlive.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::Release;
use lab::rendered::{NAME, Running, VIP};
use lab::{Cluster, Host, Need, RenderedCluster, echo, eventually};

/// A control plane that starts on a busy machine.
const SOON: Duration = Duration::from_secs(180);
const PKI: &str = "/etc/kubernetes/pki/etcd";
/// What is renewed: all but the kubelets' own. A kubelet of the lab starts again on a machine that has booted only, for it cannot write the
/// weights of control groups that it finds.
const RENEWED: [&str; 8] = [
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
    "netd-etcd-client",
    "kube-proxy",
    "apiserver",
    "apiserver-etcd-client",
    "controller-manager",
];
/// The members of etcd.
const MEMBERS: &str = "https://10.4.7.12:2379,https://10.4.7.21:2379,https://10.4.7.22:2379";
/// The port of a stream between Pods.
const STREAM: u16 = 9000;
/// Within this an answer comes, or it is cut.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two requests.
const PACE: Duration = Duration::from_millis(50);
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
    cluster.nodes_are_ready()?;
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

fn the_reference_cluster_comes_up_from_its_file_and_outlives_restarts_reboots_and_the_loss_of_any_host() -> Result<()> {
    let cluster = rendered("reference.yaml")?;
    cluster.apply_all()?;
    let wanted = ["172.7.21.1/24".to_owned(), "172.7.22.1/24".to_owned()];
    stands(&cluster, "the start", &wanted)?;
    nothing_is_left_to_do(&cluster)?;
    cluster.machines.reboot(&["hdss7-22"])?;
    stands(&cluster, "a reboot", &wanted)?;
    cluster.give_images()?;
    cluster.apply_objects()?;
    let pods = cluster.run_pods()?;
    cluster.all_answer(&pods, None)?;
    // What the Pod itself finds by the resolver that the kubelet has given it.
    let looked_up = cluster.kubectl(&["exec", &pods[0].name, "--", "nslookup", NAME])?.run()?.stdout;
    ensure!(looked_up.contains(VIP), "{looked_up}");
    nothing_is_cut(&cluster, &pods, || {
        units_outlive_restarts_and_kills(cluster.host("hdss7-21")?, || {
            stands(&cluster, "restarts and kills", &wanted)
        })?;
        cluster.renew_certificates(&RENEWED)?;
        let before = serial(&cluster)?;
        cluster.apply_all()?;
        ensure!(serial(&cluster)? != before, "the server of etcd has the certificate of before");
        stands(&cluster, "new certificates", &wanted)
    })?;
    cluster.all_answer(&pods, None)?;
    for lost in ["hdss7-11", "hdss7-12", "hdss7-22"] {
        cluster.machines.cut_power(lost)?;
        cluster.all_answer(&pods, Some(lost))?;
        cluster.machines.switch_on(&[lost])?;
        stands(&cluster, &format!("the loss of {lost}"), &wanted)?;
    }
    let all = ["hdss7-11", "hdss7-12", "hdss7-21", "hdss7-22"];
    all.iter().try_for_each(|name| cluster.machines.cut_power(name))?;
    cluster.machines.switch_on(&all)?;
    stands(&cluster, "a cold start", &wanted)?;
    cluster.all_answer(&cluster.pods_run("default", "app=web", 4)?, None)?;
    nothing_is_left_to_do(&cluster)
}

/// Serial number of the certificate with which a member of etcd serves.
fn serial(cluster: &RenderedCluster) -> Result<String> {
    let script = "openssl s_client -connect 10.4.7.12:2379 </dev/null 2>/dev/null | openssl x509 -noout -serial";
    Ok(cluster.host("hdss7-200")?.run(&["sh", "-c", script])?.stdout)
}

/// Does `work` under a TCP stream between Pods of two nodes and a load on etcd: every request of the stream is answered, and every write
/// that was acknowledged is read again.
fn nothing_is_cut(cluster: &RenderedCluster, pods: &[Running], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let to = pods.iter().find(|to| to.host != pods[0].host).context("no two nodes have Pods")?;
    let (from, there) = (cluster.network(&pods[0])?, cluster.network(to)?);
    let _server = echo::serve(&there, "stream", STREAM)?;
    let mut stream = echo::Connection::open(&from, (to.address, STREAM).into(), PATIENCE)?;
    let (ended, asked, written) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let while_it_lasts = |count: &AtomicUsize, mut request: Box<dyn FnMut(usize) -> Result<()> + '_>| {
        while !ended.load(Ordering::Acquire) {
            request(count.load(Ordering::Acquire))?;
            count.fetch_add(1, Ordering::AcqRel);
            thread::park_timeout(PACE);
        }
        Ok::<_, anyhow::Error>(())
    };
    thread::scope(|scope| {
        let streams = scope.spawn(|| while_it_lasts(&asked, Box::new(|_| stream.ask().map(drop))));
        let writes = scope.spawn(|| while_it_lasts(&written, Box::new(|number| write(cluster, number))));
        let done = work();
        ended.store(true, Ordering::Release);
        streams.join().unwrap().with_context(|| format!("the stream, behind {asked:?} answers"))?;
        writes.join().unwrap().with_context(|| format!("etcd, behind {written:?} writes"))?;
        done
    })?;
    let (asked, written) = (asked.into_inner(), written.into_inner());
    ensure!(asked > 100 && written > 20, "{asked} requests by the stream, {written} writes");
    Ok(())
}

/// Writes a key and reads it back, by whichever member answers.
fn write(cluster: &RenderedCluster, number: usize) -> Result<()> {
    let (key, value) = (format!("/load/{}", number % 16), number.to_string());
    let keys = ["ca.crt", "healthcheck-client.crt", "healthcheck-client.key"].map(|file| format!("{PKI}/{file}"));
    let etcdctl = |words: [&str; 3]| {
        let command = cluster.host("hdss7-21")?.command("etcdctl").env("ETCDCTL_API", "3");
        let command =
            command.args(["--endpoints", MEMBERS, "--cacert", &keys[0], "--cert", &keys[1], "--key", &keys[2]]);
        Ok::<_, anyhow::Error>(command.args(["--command-timeout=20s"]).args(words).limit(PATIENCE).run()?.stdout)
    };
    // A member that is killed takes along what it was asked, unacknowledged.
    eventually(PATIENCE, || etcdctl(["put", &key, &value]))?;
    let read = eventually(PATIENCE, || etcdctl(["get", "--print-value-only", &key]))?;
    ensure!(read.trim() == value, "{key} is {read:?} and not {value}");
    Ok(())
}

fn units_outlive_restarts_and_kills(node: &Host, stands: impl Fn() -> Result<()>) -> Result<()> {
    let units = ["etcd", "netd", "ipvs-proxy"];
    node.run(&[&["systemctl", "restart"][..], &units].concat())?;
    stands()?;
    for unit in units {
        let before = property(node, unit, "MainPID")?;
        node.run(&["systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit])?;
        eventually(SOON, || {
            ensure!(property(node, unit, "MainPID")? != before, "{unit} has not ended");
            is_active(node, unit)
        })?;
    }
    stands()
}

/// A cluster from its file, with the beginnings of its Pod subnets, whichever node has which.
fn comes_up(file: &str, beginnings: [&str; 2]) -> Result<()> {
    let cluster = rendered(file)?;
    cluster.apply_all()?;
    // Where Kubernetes gives the subnets, netd has its rights from there.
    cluster.apply_objects()?;
    members_serve(&cluster)?;
    daemons_are_ready(&cluster)?;
    cluster.nodes_are_ready()?;
    let mut found = subnets(&cluster)?;
    found.sort();
    let fits = found.iter().zip(beginnings).all(|(found, beginning)| found.starts_with(beginning));
    ensure!(fits && found[0] != found[1], "{found:?} of {beginnings:?}");
    nothing_is_left_to_do(&cluster)
}

fn the_cluster_with_kubeadms_networks_comes_up_from_its_file() -> Result<()> {
    comes_up("kubeadm.yaml", ["10.244.", "10.244."])
}

fn the_cluster_of_three_nodes_comes_up_from_its_file() -> Result<()> {
    comes_up("three-nodes.yaml", ["10.244.101.", "10.244.102."])
}

fn the_cluster_of_hosts_named_by_their_addresses_comes_up_from_its_file() -> Result<()> {
    comes_up("atomic.yaml", ["172.7.131.", "172.7.132."])
}

fn main() -> ExitCode {
    let suite = lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables]).side_by_side(2);
    suite.unless(Cluster::boot_obstacle()).with_kubernetes(Release::V1_20).with_kubernetes_tools().run(lab::tests![
        the_reference_cluster_comes_up_from_its_file_and_outlives_restarts_reboots_and_the_loss_of_any_host,
        the_cluster_with_kubeadms_networks_comes_up_from_its_file,
        the_cluster_of_three_nodes_comes_up_from_its_file,
        the_cluster_of_hosts_named_by_their_addresses_comes_up_from_its_file,
    ])
}
