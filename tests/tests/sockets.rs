//! At which sockets the daemons listen: exactly those that docs/security.md lists, with their defaults and as the DaemonSets start them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod rendered;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process, eventually};
use netd_node::{Net, SOON, VXLAN};
use rendered::{configs, containers, list_at, objects};

/// How the daemons are started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Started {
    ByDefault,
    InDaemonSets,
}

/// What docs/security.md lists, as `PROGRAM ADDRESS:PORT/PROTOCOL`, on this node of the lab.
fn listed(started: Started) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(configs().join("../../docs/security.md"))?;
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("* `") && line.contains("` at `")) {
        let quoted: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let [program, by_default, others @ ..] = quoted.as_slice() else { continue };
        let in_sets = others.first().filter(|_| line.contains("`, in the DaemonSets `"));
        let place = in_sets.filter(|_| started == Started::InDaemonSets).unwrap_or(by_default);
        let place = place.replace("NODE", "10.4.7.21").replace("SUBNET", "172.7.21.0");
        found.insert(format!("{program} {place}"));
    }
    ensure!(!found.is_empty(), "docs/security.md has no such list");
    Ok(found)
}

/// Where our daemons listen, for TCP and UDP, by what the kernel says.
fn sockets(host: &Host) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for line in host.run(&["ss", "-Hlntup"])?.stdout.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let program = ["netd", "ipvs-proxy"].into_iter().find(|name| line.contains(&format!("((\"{name}\",")));
        if let (Some(program), [protocol, _, _, _, place, ..]) = (program, words.as_slice()) {
            found.insert(format!("{program} {place}/{protocol}"));
        }
    }
    Ok(found)
}

fn listens(host: &Host, started: Started) -> Result<()> {
    let expected = listed(started)?;
    eventually(SOON, || {
        let found = sockets(host)?;
        ensure!(found == expected, "docs/security.md lists {expected:#?}, the kernel has {found:#?}");
        Ok(())
    })
}

/// The command line of the daemon in `file` of the manifests, without its source, which here is another one.
fn arguments(file: &str) -> Result<Vec<String>> {
    let objects = objects(&std::fs::read_to_string(configs().join(file))?)?;
    let set = objects.values().next().context("an object")?;
    let container = containers(set).last().context("a container")?;
    let words = list_at(container, "/args").filter_map(|word| word.as_str()).map(str::to_owned);
    let words: Vec<String> = words.filter(|word| word != "--kube-subnet-mgr" && !word.contains("$(")).collect();
    ensure!(!words.is_empty(), "{file}: {container}");
    Ok(words)
}

fn proxy(host: &Host, words: &[&str]) -> Result<Process> {
    host.run(&["mkdir", "-p", "/run/services"])?;
    let flags = ["--services-dir=/run/services", "--proxy-mode=nftables"];
    let proxy = host.command(lab::bin("ipvs-proxy")?).args(flags).args(words).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    Ok(proxy)
}

fn daemons_listen_where_the_documents_say_and_nowhere_else() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let daemons = [net.netd("hdss7-21")?, proxy(host, &[])?];
    listens(host, Started::ByDefault)?;
    daemons.into_iter().try_for_each(|daemon| daemon.terminate(SOON).map(drop))?;

    let maps = objects(&std::fs::read_to_string(configs().join("ipvs-proxy/config.yaml"))?)?;
    let config = maps.values().next().and_then(|map| map["data"]["config.yaml"].as_str()).context("config.yaml")?;
    host.write("/etc/ipvs-proxy/config.yaml", config)?;
    let words = [arguments("netd/daemonset.yaml")?, arguments("ipvs-proxy/daemonset.yaml")?];
    let [of_netd, of_proxy] = words.each_ref().map(|words| words.iter().map(String::as_str).collect::<Vec<_>>());
    let of_netd: Vec<&str> = of_netd.into_iter().filter(|word| *word != "--ip-masq").collect();
    let _daemons = [net.launch("hdss7-21", &of_netd)?, proxy(host, &of_proxy)?];
    listens(host, Started::InDaemonSets)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![daemons_listen_where_the_documents_say_and_nowhere_else],
    )
}
