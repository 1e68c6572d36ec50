//! `netdadm status` on the reference cluster: what is killed, paused, filled up or of another authority is named as that, in time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{ApiServer, Cluster, Host, Need, Process, allowing_for_load, bin, eventually};
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use serde_json::{Value, json};

const TOPOLOGY: &str = include_str!("../../configs/clusters/reference.yaml");
const MEMBERS: [&str; 3] = ["hdss7-12", "hdss7-21", "hdss7-22"];
const SOON: Duration = Duration::from_secs(60);

/// An authority of the test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Certificate and key for both uses, at these addresses.
    fn issue(&self, addresses: &[IpAddr]) -> Result<(String, String)> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.0)?.pem(), key.serialize_pem()))
    }

    /// The part of a rendered folder that asks members of etcd.
    fn folder(&self, host: &Host, out: &str) -> Result<()> {
        let (certificate, key) = self.issue(&[])?;
        for (name, text) in
            [("ca.crt", self.0.pem()), ("healthcheck-client.crt", certificate), ("healthcheck-client.key", key)]
        {
            host.write(format!("{out}/pki/etcd/{name}"), text)?;
        }
        Ok(())
    }
}

/// Three members that accept only clients with a certificate.
fn members(cluster: &Cluster, authority: &Authority) -> Result<Vec<Process>> {
    let hosts = MEMBERS.iter().map(|name| cluster.host(name)).collect::<Result<Vec<_>>>()?;
    let peers = hosts.iter().map(|host| Ok(format!("{}=https://{}:2380", host.name(), host.address()?)));
    let peers = peers.collect::<Result<Vec<_>>>()?.join(",");
    let mut members = Vec::new();
    for host in hosts {
        let address = host.address()?;
        let (certificate, key) = authority.issue(&[address.into(), [127, 0, 0, 1].into()])?;
        for (name, text) in [("ca.crt", authority.0.pem()), ("server.crt", certificate), ("server.key", key)] {
            host.write(format!("/run/{name}"), text)?;
        }
        let (client, peer) = (format!("https://{address}:2379"), format!("https://{address}:2380"));
        let flags = [
            ("--name", host.name()),
            ("--data-dir", "/run/etcd"),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &peers),
            ("--quota-backend-bytes", "2097152"),
            ("--cert-file", "/run/server.crt"),
            ("--key-file", "/run/server.key"),
            ("--trusted-ca-file", "/run/ca.crt"),
            ("--peer-cert-file", "/run/server.crt"),
            ("--peer-key-file", "/run/server.key"),
            ("--peer-trusted-ca-file", "/run/ca.crt"),
            ("--logger", "zap"),
            ("--log-level", "warn"),
        ];
        let command = host.command("etcd").args(["--client-cert-auth", "--peer-client-cert-auth"]);
        members.push(command.args(flags.into_iter().flat_map(|(flag, value)| [flag, value])).start("etcd")?);
    }
    Ok(members)
}

/// The rows, by host and component.
struct Rows(Vec<Value>, Option<i32>);

impl Rows {
    fn ask(host: &Host, words: &[&str]) -> Result<Self> {
        host.write("/opt/cluster.yaml", TOPOLOGY)?;
        let netdadm = host.command(bin("netdadm")?).args(["status", "-f", "/opt/cluster.yaml", "--json"]);
        let output = netdadm.args(words).output()?;
        let rows = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        Ok(Self(rows, output.status.code()))
    }

    fn of(&self, host: &str, component: &str) -> Result<&Value> {
        let found = self.0.iter().find(|row| row["host"] == host && row["component"] == component);
        found.with_context(|| format!("no {component} of {host}: {:?}", self.0))
    }

    /// Requires that a row is in this state and says this.
    fn says(&self, place: (&str, &str), state: &str, words: &str) -> Result<()> {
        let row = self.of(place.0, place.1)?;
        let found = row["found"].as_str().unwrap_or_default();
        ensure!(row["state"] == state && found.contains(words), "{state} {words:?}: {:#?}", self.0);
        Ok(())
    }
}

const ETCD: &[&str] = &["-o", "/opt/out", "--only", "etcd", "--timeout", "3"];

fn members_that_are_paused_killed_or_without_a_quorum_are_named_in_time() -> Result<()> {
    let cluster = Cluster::reference()?;
    let (client, authority) = (cluster.host("hdss7-200")?, Authority::new("etcd-ca")?);
    let members = members(&cluster, &authority)?;
    authority.folder(client, "/opt/out")?;
    eventually(SOON, || {
        let rows = Rows::ask(client, ETCD)?;
        ensure!(rows.0.len() == 3 && rows.1 == Some(0), "{:#?}", rows.0);
        let leads = rows.0.iter().filter(|row| row["found"].as_str().unwrap_or_default().starts_with("leads, "));
        ensure!(leads.count() == 1, "{:#?}", rows.0);
        ensure!(rows.0.iter().all(|row| row["version"].as_str().is_some() && row["days"].is_i64()), "{:#?}", rows.0);
        Ok(())
    })?;
    members[1].signal(Signal::SIGSTOP)?;
    let began = Instant::now();
    let rows = Rows::ask(client, ETCD)?;
    ensure!(began.elapsed() < allowing_for_load(Duration::from_secs(6)), "{:?}", began.elapsed());
    rows.says(("hdss7-21", "etcd"), "failed", "the process is stopped or overloaded")?;
    ensure!(rows.1 == Some(1), "{:?}", rows.1);
    members[1].signal(Signal::SIGCONT)?;
    members[2].kill()?;
    eventually(SOON, || {
        let rows = Rows::ask(client, ETCD)?;
        rows.says(("hdss7-22", "etcd"), "failed", "nothing listens at 10.4.7.22:2379")?;
        rows.says(("hdss7-12", "etcd"), "ok", "KiB")?;
        rows.says(("hdss7-21", "etcd"), "ok", "KiB")
    })?;
    members[1].kill()?;
    eventually(SOON, || {
        Rows::ask(client, ETCD)?.says(("hdss7-12", "etcd"), "failed", "no leader: too few members live")
    })
}

fn a_full_member_and_a_foreign_authority_are_named_as_that() -> Result<()> {
    let cluster = Cluster::reference()?;
    let (client, authority) = (cluster.host("hdss7-200")?, Authority::new("etcd-ca")?);
    let _members = members(&cluster, &authority)?;
    authority.folder(client, "/opt/out")?;
    eventually(SOON, || Rows::ask(client, ETCD)?.says(("hdss7-22", "etcd"), "ok", "KiB"))?;
    Authority::new("another")?.folder(client, "/opt/other")?;
    let foreign = Rows::ask(client, &["-o", "/opt/other", "--only", "etcd"])?;
    foreign.says(
        ("hdss7-12", "etcd"),
        "failed",
        "the certificate of 10.4.7.12:2379 is of another authority than pki/etcd/ca.crt",
    )?;
    ensure!(
        foreign.of("hdss7-12", "etcd")?["days"].is_i64(),
        "the certificate is known all the same: {:#?}",
        foreign.0
    );
    client.run(&["cp", "/opt/out/pki/etcd/ca.crt", "/opt/other/pki/etcd/ca.crt"])?;
    let refused = Rows::ask(client, &["-o", "/opt/other", "--only", "etcd"])?;
    refused.says(("hdss7-12", "etcd"), "failed", "does not accept pki/etcd/healthcheck-client.crt")?;
    let without = Rows::ask(client, &["--only", "etcd"])?;
    without.says(("hdss7-12", "etcd"), "failed", "asks for a certificate, and there is none")?;
    let flags = [
        "--cacert=/opt/out/pki/etcd/ca.crt",
        "--cert=/opt/out/pki/etcd/healthcheck-client.crt",
        "--key=/opt/out/pki/etcd/healthcheck-client.key",
    ];
    let put = |key: &str| {
        let etcdctl = client.command("etcdctl").env("ETCDCTL_API", "3").args(flags).args([
            "--endpoints=https://10.4.7.21:2379",
            "put",
            key,
        ]);
        etcdctl.input("x".repeat(1_000_000)).output()
    };
    eventually(SOON, || {
        let output = put(&format!("key-{:?}", Instant::now()))?;
        ensure!(output.stderr.contains("database space exceeded"), "{output:?}");
        Ok(())
    })?;
    // Whichever member takes a write up first raises the alarm, and others may raise theirs: each is said of the member that etcd says it of.
    eventually(SOON, || {
        let list = client.command("etcdctl").env("ETCDCTL_API", "3").args(flags);
        let alarms = list.args(["--endpoints=https://10.4.7.21:2379", "alarm", "list"]).run()?.stdout.lines().count();
        let full = Rows::ask(client, ETCD)?;
        let is_full = |row: &&Value| row["found"].to_string().contains("alarm NOSPACE, no write is taken: compact");
        let failed: Vec<_> = full.0.iter().filter(|row| row["state"] == "failed").collect();
        ensure!(failed.iter().all(is_full), "{:#?}", full.0);
        ensure!(alarms > 0 && failed.len() == alarms && full.0.len() == 3, "{alarms} alarms: {:#?}", full.0);
        Ok(())
    })?;
    client.write("/opt/cluster.yaml", TOPOLOGY)?;
    let program = bin("netdadm")?;
    let words = [&["status", "-f", "/opt/cluster.yaml"], ETCD].concat();
    let table = client.command(&program).args(&words).output()?.stdout;
    let is_whole = |line: &str| line.contains("FAILED") && line.contains("no write is taken: compact");
    ensure!(table.lines().any(is_whole), "{table}");
    let line = format!("{} {}", program.display(), words.join(" "));
    let script = client.command("script").args(["--quiet", "--command", &line, "/dev/null"]);
    let table = script.env("NO_COLOR", "1").output()?.stdout;
    ensure!(table.lines().all(|line| line.chars().count() <= 80) && table.contains("FAILED"), "{table}");
    Ok(())
}

const SERVERS: &[&str] =
    &["-o", "/opt/out", "--only", "kube-apiserver,kube-controller-manager,kube-scheduler,kubelet", "--timeout", "5"];

fn an_api_server_says_who_leads_and_which_nodes_are_ready_and_what_it_lacks() -> Result<()> {
    let cluster = Cluster::reference()?;
    let (host, client) = (cluster.host("hdss7-11")?, cluster.host("hdss7-200")?);
    let mut server = ApiServer::start(host)?;
    client.write("/opt/out/pki/ca.crt", server.authority_pem())?;
    let blind = Rows::ask(client, SERVERS)?;
    blind.says(("hdss7-11", "kube-apiserver"), "ok", "ready")?;
    blind.says(("hdss7-21", "kubelet"), "unknown", "no admin.conf; name the rendered folder by -o")?;
    client.write("/opt/out/pki/admin.conf", server.kubeconfig().to_string())?;
    host.write("/run/admin.conf", server.kubeconfig().to_string())?;
    let scheduler = host.command(server.programs().join("kube-scheduler")).args([
        "--kubeconfig=/run/admin.conf",
        "--port=0",
        "--cert-dir=/run/scheduler",
    ]);
    let election =
        ["--leader-elect-lease-duration=4s", "--leader-elect-renew-deadline=3s", "--leader-elect-retry-period=1s"];
    let scheduler = scheduler.args(election).start("kube-scheduler")?;
    let node = |name: &str, ready: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {
            "conditions": [{"type": "Ready", "status": ready, "message": "kubelet is posting", "reason": "r"}],
            "nodeInfo": {"kubeletVersion": "v1.20.2", "containerRuntimeVersion": "containerd://1.6.20", "architecture": "", "bootID": "", "kernelVersion": "",
                "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}}})
    };
    server.put(&node("hdss7-21", "True"))?;
    eventually(SOON, || {
        let rows = Rows::ask(client, SERVERS)?;
        rows.says(("-", "kube-scheduler"), "ok", "hdss7-11 leads")
            .or_else(|_| rows.says(("-", "kube-scheduler"), "ok", "hdss7-11.host.com leads"))?;
        rows.says(("-", "kube-controller-manager"), "failed", "none has ever led")?;
        rows.says(("hdss7-21", "kubelet"), "ok", "Node Ready, containerd://1.6.20")?;
        rows.says(("hdss7-22", "kubelet"), "failed", "it has no Node")?;
        // The lab's own build has no number.
        rows.says(("hdss7-11", "kube-apiserver"), "ok", "ready, the topology has 1.20.2")?;
        let server = rows.of("hdss7-11", "kube-apiserver")?;
        ensure!(server["version"].as_str().is_some() && server["days"].is_i64() && rows.1 == Some(1), "{server}");
        Ok(())
    })?;
    scheduler.signal(Signal::SIGSTOP)?;
    server.put(&node("hdss7-21", "Unknown"))?;
    eventually(SOON, || {
        let rows = Rows::ask(client, SERVERS)?;
        rows.says(("-", "kube-scheduler"), "failed", "none leads: ")?;
        rows.says(("hdss7-21", "kubelet"), "failed", "Node unknown, the kubelet says nothing")
    })?;
    scheduler.signal(Signal::SIGCONT)?;
    server.lose_etcd()?;
    eventually(SOON, || {
        Rows::ask(client, SERVERS)?.says(("hdss7-11", "kube-apiserver"), "failed", "not ready: 500, etcd")
    })?;
    server.signal(Signal::SIGSTOP)?;
    let began = Instant::now();
    let rows = Rows::ask(client, SERVERS)?;
    ensure!(began.elapsed() < allowing_for_load(Duration::from_secs(9)), "{:?}", began.elapsed());
    rows.says(("hdss7-11", "kube-apiserver"), "failed", "stopped or overloaded")?;
    rows.says(("hdss7-21", "kubelet"), "unknown", "no API server has answered")?;
    server.stop()?;
    Rows::ask(client, SERVERS)?.says(("hdss7-11", "kube-apiserver"), "failed", "nothing listens at 10.4.7.11:6443")
}

fn daemons_are_asked_where_they_can_be_reached() -> Result<()> {
    let cluster = Cluster::reference()?;
    let (client, node) = (cluster.host("hdss7-200")?, cluster.host("hdss7-21")?);
    let only = &["--only", "netd,ipvs-proxy", "--timeout", "3"];
    let before = Rows::ask(client, only)?;
    before.says(("hdss7-21", "ipvs-proxy"), "failed", "nothing listens at 10.4.7.21:10256")?;
    before.says(("hdss7-21", "netd"), "unknown", "it serves on loopback alone")?;
    Rows::ask(node, only)?.says(("hdss7-21", "netd"), "failed", "nothing listens at 127.0.0.1:10247")?;
    node.write("/opt/services/none.yaml", "")?;
    let proxy = node.command(bin("ipvs-proxy")?).args([
        "--services-dir=/opt/services",
        "--proxy-mode=nftables",
        "--hostname-override=hdss7-21",
    ]);
    let _proxy = proxy.args(["--healthz-bind-address=0.0.0.0:10256"]).start("ipvs-proxy")?;
    eventually(SOON, || Rows::ask(client, only)?.says(("hdss7-21", "ipvs-proxy"), "ok", "healthy"))
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            members_that_are_paused_killed_or_without_a_quorum_are_named_in_time,
            a_full_member_and_a_foreign_authority_are_named_as_that,
            an_api_server_says_who_leads_and_which_nodes_are_ready_and_what_it_lacks,
            daemons_are_asked_where_they_can_be_reached,
        ],
    )
}
