//! Members of etcd as `netdadm render` makes them, on three machines of the reference cluster, and a client that counts.
//!
//! Invariant: the load is bounded; what the client counts as failed was refused, or was asked at every member and answered by none.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cluster::etcd::{Client, Config, Store, TlsFiles};
use lab::{Cluster, Host, Process, bin, eventually};

/// The topology.
pub(crate) const REFERENCE: &str = include_str!("../../../configs/clusters/reference.yaml");
/// Hosts with members.
pub(crate) const MEMBERS: [&str; 3] = ["hdss7-12", "hdss7-21", "hdss7-22"];
/// Who has the rendered folder.
pub(crate) const OPERATOR: &str = "hdss7-200";
/// What a busy machine may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

const FOLDER: &str = "/opt/out";
/// The client's pause, and how often it asks at most.
const PAUSE: Duration = Duration::from_millis(10);
const MOST: usize = 6000;
/// So often it asks at least.
pub(crate) const LEAST: usize = 100;

/// Renders `topology` on the operator's machine.
pub(crate) fn render(operator: &Host, topology: &str) -> Result<()> {
    operator.write("/opt/cluster.yaml", topology)?;
    operator.command(bin("netdadm")?).args(["render", "-f", "/opt/cluster.yaml", "-o", FOLDER]).run().map(drop)
}

/// `netdadm WORDS -f … -o …`.
pub(crate) fn netdadm(operator: &Host, words: &[&str]) -> Result<lab::Command> {
    Ok(operator.command(bin("netdadm")?).args(words).args(["-f", "/opt/cluster.yaml", "-o", FOLDER]))
}

/// The same typed at a terminal of its own, with an answer to what it asks.
pub(crate) fn typed(operator: &Host, words: &str, answer: &str) -> Result<lab::Output> {
    let line = format!("{} {words} -f /opt/cluster.yaml -o {FOLDER}", bin("netdadm")?.display());
    let script = operator.command("script").args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    script.input(format!("{answer}\n")).limit(SOON).output()
}

/// What is rendered for a host.
fn root(host: &Host) -> String {
    format!("{FOLDER}/hosts/{}/root", host.name().split('.').next().unwrap_or_default())
}

/// Where members have their certificates.
pub(crate) const PKI: &str = "/etc/kubernetes/pki/etcd";

/// Puts the certificates that were rendered for a host into their places, keys first, as `netdadm apply` does.
pub(crate) fn bring(operator: &Host, host: &Host) -> Result<()> {
    let names = ["ca.crt", "server.key", "server.crt", "peer.key", "peer.crt"];
    for name in names {
        let content = operator.read(format!("{}{PKI}/{name}", root(host)))?;
        host.write(format!("{PKI}/{name}.new"), content)?;
    }
    let moves: Vec<String> = names.iter().map(|name| format!("mv {PKI}/{name}.new {PKI}/{name}")).collect();
    host.run(&["sh", "-c", &moves.join(" && ")]).map(drop)
}

/// The fingerprint of the certificate that a member shows to a new client.
pub(crate) fn shown(operator: &Host, host: &Host) -> Result<String> {
    let client = format!("{FOLDER}/pki/etcd/healthcheck-client");
    let ask = format!("openssl s_client -connect {}:2379 -cert {client}.crt -key {client}.key", host.address()?);
    fingerprint(operator, &format!("{ask} </dev/null 2>/dev/null"))
}

/// The fingerprint of the certificate that was rendered for a member.
pub(crate) fn rendered(operator: &Host, host: &Host) -> Result<String> {
    fingerprint(operator, &format!("cat {}{PKI}/server.crt", root(host)))
}

fn fingerprint(operator: &Host, source: &str) -> Result<String> {
    let read = format!("{source} | openssl x509 -noout -fingerprint -sha256");
    Ok(operator.run(&["sh", "-c", &read])?.stdout)
}

/// Starts the member that was rendered for `host`, with the data that are there.
pub(crate) fn start(operator: &Host, host: &Host) -> Result<Process> {
    bring(operator, host)?;
    let root = root(host);
    host.run(&["mkdir", "-p", "-m", "700", "/var/lib/etcd"])?;
    let mut etcd = host.command("etcd").env("ETCD_LOG_LEVEL", "warn");
    for file in ["etcd.conf", "initial.conf"] {
        let text = operator.read(format!("{root}/etc/etcd/{file}"))?;
        for (name, value) in text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='))
        {
            etcd = etcd.env(name, value);
        }
    }
    etcd.start("etcd")
}

/// All three, once they serve.
pub(crate) fn start_all(cluster: &Cluster) -> Result<Vec<Process>> {
    let operator = cluster.host(OPERATOR)?;
    let members: Vec<Process> =
        MEMBERS.iter().map(|name| start(operator, cluster.host(name)?)).collect::<Result<_>>()?;
    eventually(SOON, || every_member_serves(operator))?;
    Ok(members)
}

/// Requires that `netdadm status` has nothing against any member.
pub(crate) fn every_member_serves(operator: &Host) -> Result<()> {
    let output = netdadm(operator, &["status", "--only", "etcd", "--timeout", "3"])?.output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// The member that leads.
pub(crate) fn leader(operator: &Host) -> Result<String> {
    let table = netdadm(operator, &["status", "--only", "etcd", "--timeout", "3"])?.output()?.stdout;
    let line = table.lines().find(|line| line.contains(" leads, ")).with_context(|| table.clone())?;
    line.split(' ').next().map(str::to_owned).context("no host")
}

/// A client with the certificates of the folder, as the operator's machine has it.
pub(crate) fn store() -> Result<Store> {
    let file = |name: &str| Some(format!("{FOLDER}/pki/etcd/{name}").into());
    let tls =
        TlsFiles { ca: file("ca.crt"), cert: file("healthcheck-client.crt"), key: file("healthcheck-client.key") };
    let endpoints = "https://10.4.7.12:2379,https://10.4.7.21:2379,https://10.4.7.22:2379".to_owned();
    let config = Config { endpoints, tls: tls.read(), ..Config::default() };
    Client::new(&config, 1).map(Store::new).map_err(|problems| anyhow!("{problems:?}"))
}

/// What a client saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) writes: usize,
    pub(crate) failed: Vec<String>,
    /// The longest time that a write and the read behind it took.
    pub(crate) longest: Duration,
}

/// Writes and reads until `stop` says so; every value that was written is read.
pub(crate) fn load(stop: &Receiver<()>) -> Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (store, mut seen) = (store()?, Seen::default());
    while seen.writes < MOST
        && (matches!(stop.recv_timeout(PAUSE), Err(RecvTimeoutError::Timeout)) || seen.writes < LEAST)
    {
        let (key, value) = (format!("/load/{}", seen.writes % 50), seen.writes.to_string());
        let began = Instant::now();
        let found = runtime.block_on(async {
            store.put(&key, value.as_bytes(), None).await?;
            store.get(&key).await
        });
        seen.longest = seen.longest.max(began.elapsed());
        match found {
            Ok(Some(entry)) if entry.value == value.as_bytes() => {}
            other => seen.failed.push(format!("{key}={value}: {other:?}")),
        }
        seen.writes += 1;
    }
    Ok(seen)
}
