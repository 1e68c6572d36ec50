//! Clusters from a file alone: `netdadm render`, `netdadm apply` on machines that boot, and what they outlive.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::kubernetes::Release;
use lab::rendered::{NAME, Running, VIP};
use lab::{Cluster, Command, Host, Need, RenderedCluster, echo, eventually};
use serde_json::json;

const REFERENCE: &str = include_str!("../../configs/clusters/reference.yaml");
const README: &str = include_str!("../../README.md");
/// A control plane that starts on a busy machine.
const SOON: Duration = Duration::from_secs(180);
const PKI: &str = "/etc/kubernetes/pki/etcd";
/// What `preflight` finds on machines of the lab, and is right about: they keep no clock of their own, forward nothing before `apply`, and
/// have the kernel of whoever runs the tests, which may be without IPVS and has its controllers elsewhere.
const OF_THE_LAB: [&str; 4] = ["clock", "forwarding", "kernel", "cgroups"];
/// The members of etcd.
const MEMBERS: &str = "https://10.6.7.12:2379,https://10.6.7.21:2379,https://10.6.7.22:2379";
/// A host's own one.
const OWN: &str = "https://127.0.0.1:2379";
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

/// `etcdctl` on a host with a member, which has a certificate for that.
fn etcdctl(cluster: &RenderedCluster, name: &str, endpoints: &str) -> Result<Command> {
    let files =
        [("CACERT", "ca.crt"), ("CERT", "healthcheck-client.crt"), ("KEY", "healthcheck-client.key")].into_iter();
    let etcdctl = cluster.host(name)?.command("etcdctl").env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", endpoints);
    Ok(files.fold(etcdctl, |command, (name, file)| command.env(format!("ETCDCTL_{name}"), format!("{PKI}/{file}"))))
}

/// What each member of etcd says of its cluster.
fn members_serve(cluster: &RenderedCluster) -> Result<()> {
    for name in cluster.with_role("etcd") {
        eventually(SOON, || etcdctl(cluster, name, OWN)?.args(["endpoint", "health"]).run().map(drop))?;
        let members = etcdctl(cluster, name, OWN)?.args(["member", "list"]).run()?.stdout;
        let count = cluster.with_role("etcd").count();
        ensure!(members.lines().filter(|line| line.contains("started")).count() == count, "{members}");
        let stranger = cluster.host(name)?.command("etcdctl").env("ETCDCTL_API", "3");
        let stranger = stranger.args(["--endpoints", OWN, "--cacert", &format!("{PKI}/ca.crt")]);
        let stranger = stranger.args(["endpoint", "health", "--command-timeout=2s"]).output()?;
        ensure!(!stranger.status.success(), "a client without a certificate was served: {stranger:?}");
    }
    Ok(())
}

/// A cluster by the commands of the README as they stand there, each typed at a terminal on the machine on which it belongs.
fn typed_as_the_readme_has_it(topology: &str) -> Result<RenderedCluster> {
    let (_, section) = README.split_once("\n## A cluster from one file\n").context("no such section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let commands: Vec<&str> = section.lines().filter(|line| line.starts_with("netdadm ")).collect();
    let [check, render, preflight, apply] = commands[..] else { bail!("not four commands: {commands:?}") };
    let mut cluster = RenderedCluster::unrendered(topology)?;
    let operator = cluster.operator()?;
    operator.write("/root/reference.yaml", topology)?;
    type_in(operator, check)?;
    let printed = type_in(operator, render)?;
    let (_, order) = printed.split_once(" in this order (netdadm apply --host NAME out):").context(printed.clone())?;
    let order = order.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let order = order.map(|line| line.trim().to_owned()).collect();
    cluster.take("/root/out", order)?;
    for name in cluster.order() {
        let host = cluster.host(name)?;
        cluster.copy(name, "/root/out")?;
        host.write("/root/reference.yaml", topology)?;
        let found = terminal(host, &preflight.replace("hdss7-21", name)).output()?.stdout;
        let problems = found.lines().filter_map(|line| line.strip_prefix("PROBLEM "));
        let mut checks = problems.filter_map(|line| line.split_whitespace().next());
        ensure!(checks.all(|check| OF_THE_LAB.contains(&check)) && found.contains(" disk "), "{name}: {found}");
        let applied = type_in(host, &apply.replace("hdss7-21", name))?;
        ensure!(applied.contains("Do it? [y/N] "), "{name}: {applied}");
    }
    Ok(cluster)
}

/// What a command prints that is typed at a terminal, where `y` answers what it asks.
fn type_in(host: &Host, line: &str) -> Result<String> {
    Ok(terminal(host, line).run().with_context(|| line.to_owned())?.stdout)
}

/// A command at a terminal of its own, with a `y` typed ahead.
fn terminal(host: &Host, line: &str) -> Command {
    let script = host.command("script").args(["--quiet", "--return", "--command", line, "/dev/null"]);
    script.current_dir("/root").input("y\n").limit(SOON)
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
    // Beside an API server as well.
    cluster.with_role("control-plane").try_for_each(|name| {
        let host = cluster.host(name)?;
        eventually(SOON, || is_active(host, "netd"))
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
    let cluster = typed_as_the_readme_has_it(&REFERENCE.replace("10.4.7.", "10.6.7."))?;
    let wanted = ["172.7.21.1/24".to_owned(), "172.7.22.1/24".to_owned()];
    stands(&cluster, "the start", &wanted)?;
    cluster.machines.reboot(&["hdss7-22"])?;
    stands(&cluster, "a reboot", &wanted)?;
    cluster.give_images()?;
    cluster.apply_objects()?;
    let pods = cluster.run_pods()?;
    cluster.all_answer(&pods, None)?;
    // What the Pod itself finds by the resolver that the kubelet has given it.
    let looked_up = cluster.kubectl(&["exec", &pods[0].name, "--", "nslookup", NAME])?.run()?.stdout;
    ensure!(looked_up.contains(VIP), "{looked_up}");
    an_aggregated_api_is_served_by_a_pod(&cluster, &pods[0])?;
    nothing_is_cut(&cluster, &pods, || {
        units_outlive_restarts_and_kills(cluster.host("hdss7-21")?, || {
            stands(&cluster, "restarts and kills", &wanted)
        })?;
        cluster.renew_certificates()?;
        let before = serial(&cluster)?;
        a_member_is_replaced(&cluster, "hdss7-22", || cluster.apply_all())?;
        ensure!(serial(&cluster)? != before, "the server of etcd has the certificate of before");
        stands(&cluster, "new certificates and another member", &wanted)
    })?;
    cluster.all_answer(&pods, None)?;
    let lose = |lost: &str| {
        cluster.machines.cut_power(lost)?;
        cluster.all_answer(&pods, Some(lost)).map(drop)
    };
    for lost in ["hdss7-11", "hdss7-12"] {
        lose(lost)?;
        cluster.machines.switch_on(&[lost])?;
        stands(&cluster, &format!("the loss of {lost}"), &wanted)?;
    }
    // The last one is followed by all others. Its twin, hdss7-22, is lost in `make cluster`: a node is missed for the better part of a minute.
    lose("hdss7-21")?;
    ["hdss7-11", "hdss7-12", "hdss7-22"].iter().try_for_each(|name| cluster.machines.cut_power(name))?;
    cluster.machines.switch_on(&["hdss7-11", "hdss7-12", "hdss7-21", "hdss7-22"])?;
    stands(&cluster, "a cold start", &wanted)?;
    cluster.all_answer(&cluster.pods_run("default", "app=web", 4)?, None)?;
    nothing_is_left_to_do(&cluster)?;
    no_key_is_in_a_journal(&cluster)
}

/// Nothing that any program has said on any machine since it was made has a part of the private half of a key.
fn no_key_is_in_a_journal(cluster: &RenderedCluster) -> Result<()> {
    // Of P-256 in PKCS #8: the second half of the first line of base64, and the beginning of the second.
    let script = "find /etc/kubernetes -name '*.key' -exec sed --separate --quiet -e '2s/^.\\{48\\}//p' -e '3s/^\\(.\\{24\\}\\).*/\\1/p' {} + \
                  >/run/parts && grep -c . /run/parts && journalctl --no-pager --quiet >/run/journal && grep -c etcd /run/journal && \
                  { grep -F -f /run/parts /run/journal || echo none; }";
    for name in cluster.order() {
        let found = cluster.host(name)?.run(&["sh", "-c", script])?.stdout;
        let lines: Vec<&str> = found.lines().collect();
        let counts = lines.iter().take(2).filter_map(|line| line.parse::<usize>().ok()).filter(|count| *count > 1);
        ensure!(counts.count() == 2 && lines.get(2..) == Some(&["none"]), "{name}: {found}");
    }
    Ok(())
}

/// A part of the API that a Pod serves, behind a Service: the API server's host is no node, and leads to Pods all the same.
fn an_aggregated_api_is_served_by_a_pod(cluster: &RenderedCluster, pod: &Running) -> Result<()> {
    const RESOURCES: &str =
        r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"lab.example/v1","resources":[]}"#;
    let host = cluster.host(&pod.host)?;
    host.write("/srv/extension/apis/lab.example/v1", RESOURCES)?;
    let script = "cd /srv/extension && openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=extension -keyout key -out crt 2>/dev/null && exec \
                  openssl s_server -accept 9443 -cert crt -key key -WWW";
    let server = cluster.network(pod)?.command("sh").args(["-c", script]).start("extension")?;
    server.wait_for_line("ACCEPT", SOON)?;
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "extension"}, "spec": {"ports": [{"port": 443, "targetPort": 9443}]}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "extension"},
         "subsets": [{"addresses": [{"ip": pod.address}], "ports": [{"port": 9443}]}]},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.lab.example"},
         "spec": {"group": "lab.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
                  "insecureSkipTLSVerify": true, "service": {"name": "extension", "namespace": "default"}}},
    ]});
    cluster.kubectl(&["apply", "--validate=false", "-f", "-"])?.input(objects.to_string()).run()?;
    // A timeout would be a part of the file's name.
    let ask = || cluster.kubectl(&["get", "--raw", "/apis/lab.example/v1", "--request-timeout=0"])?.run();
    let answer = eventually(SOON, ask)?.stdout;
    ensure!(answer.contains(RESOURCES), "{answer:?}");
    cluster.kubectl(&["delete", "apiservice", "v1.lab.example"])?.run().map(drop)
}

/// A member loses its data, and another one is on its host once `apply` has been there.
fn a_member_is_replaced(cluster: &RenderedCluster, name: &str, apply: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = member(cluster, name)?;
    cluster.host(name)?.run(&["sh", "-c", "systemctl stop etcd && rm -r /var/lib/etcd/default.etcd"])?;
    cluster.change(&format!("  {name}: {{"), &format!("  {name}: {{joins: true, "))?;
    let replacing = cluster.netdadm(&["etcd", "replace", name, "--yes", "--wait", "180"])?.start("netdadm")?;
    replacing.wait_for_line(&format!("now: wait until the member of {name} has started"), SOON)?;
    apply()?;
    let ended = replacing.wait(SOON)?;
    ensure!(ended.success(), "{ended}: {}", replacing.log());
    let now = member(cluster, name)?;
    ensure!(now != before, "{name} has the member {now} of before");
    Ok(())
}

/// The number of the member on a host.
fn member(cluster: &RenderedCluster, name: &str) -> Result<String> {
    let list = etcdctl(cluster, "hdss7-12", OWN)?.args(["member", "list"]).run()?.stdout;
    let line = list.lines().find(|line| line.contains(&format!(" {name},"))).with_context(|| list.clone())?;
    line.split(',').next().map(str::to_owned).context("no number")
}

/// Serial number of the certificate with which a member of etcd serves.
fn serial(cluster: &RenderedCluster) -> Result<String> {
    let script = "openssl s_client -connect 10.6.7.12:2379 </dev/null 2>/dev/null | openssl x509 -noout -serial";
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
    let ask = |words: [&str; 3]| {
        let command = etcdctl(cluster, "hdss7-21", MEMBERS)?.args(["--command-timeout=20s"]);
        Ok::<_, anyhow::Error>(command.args(words).limit(PATIENCE).run()?.stdout)
    };
    // A member that is killed takes along what it was asked, unacknowledged.
    eventually(PATIENCE, || ask(["put", &key, &value]))?;
    let read = eventually(PATIENCE, || ask(["get", "--print-value-only", &key]))?;
    ensure!(read.trim() == value, "{key} is {read:?} and not {value}");
    Ok(())
}

fn units_outlive_restarts_and_kills(node: &Host, stands: impl Fn() -> Result<()>) -> Result<()> {
    let units = ["etcd", "netd", "ipvs-proxy"];
    node.run(&[&["systemctl", "restart"][..], &units].concat())?;
    units.iter().try_for_each(|unit| eventually(SOON, || is_active(node, unit)))?;
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
