//! Every file below `configs/` is loaded by what would load it: units by systemd, network lists by a runtime and the plugin,
//! manifests and net-conf by the programs.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cni::{Network, Runtime};
use lab::{Etcd, Host, bin};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// The files of a folder below `configs/`, with their names.
fn files(folder: &str) -> Vec<(String, PathBuf)> {
    let mut found: Vec<_> = fs::read_dir(configs().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "configs/{folder} is empty");
    found
}

fn units_are_what_systemd_accepts() -> Result<()> {
    let host = Host::start("units")?;
    for (name, path) in files("systemd") {
        let unit = fs::read_to_string(&path)?;
        let program = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("ExecStart")?;
        let program = program.split_whitespace().next().context("a program in ExecStart")?;
        let own = program.rsplit('/').next().unwrap();
        ensure!(bin(own)?.is_file(), "{name} starts {program}, which is none of ours");
        // The unit is examined where its program exists, as on a node.
        let at = "/etc/systemd/verify";
        let here = unit.replace(program, bin(own)?.to_str().context("a path of UTF-8")?);
        host.write(format!("{at}/{name}"), here)?;
        let verified = host.run(&["systemd-analyze", "verify", "--man=no", &format!("{at}/{name}")])?;
        ensure!(verified.stderr.trim().is_empty(), "{name}: {}", verified.stderr);
    }
    Ok(())
}

/// What `systemd-analyze security` says of each unit is what docs/install.md promises, or less.
fn units_expose_no_more_than_is_stated() -> Result<()> {
    let host = Host::start("security")?;
    let stated = fs::read_to_string(configs().join("../docs/install.md"))?;
    for (name, path) in files("systemd") {
        let text =
            host.command("systemd-analyze").args(["security", "--no-pager", "--offline=true"]).arg(&path).run()?;
        let rest = text.stdout.split_once("Overall exposure level for ").context("no level")?.1;
        let found: f64 = rest.split(' ').nth(1).context("no figure")?.parse()?;
        let promised = stated.split_once(&format!("{name} ")).with_context(|| format!("{name} is not stated"))?.1;
        let promised: f64 = promised.split(' ').next().context("no figure")?.parse()?;
        ensure!(found <= promised, "{name} exposes {found}, docs/install.md says {promised}: {}", text.stdout);
    }
    Ok(())
}

fn no_unit_holds_up_the_boot() -> Result<()> {
    for (name, path) in files("systemd") {
        let unit = fs::read_to_string(&path)?;
        let values = |key: &str| -> Vec<&str> { unit.lines().filter_map(|line| line.strip_prefix(key)).collect() };
        ensure!(values("DefaultDependencies=") == ["no"], "{name}: multi-user.target would wait for it");
        ensure!(values("Before=") == ["shutdown.target"], "{name}: something waits for a source that is away");
        ensure!(values("RequiredBy=").is_empty(), "{name}: something cannot start without it");
        let limits = values("TimeoutStartSec=");
        ensure!(!limits.is_empty() && !limits.contains(&"infinity"), "{name}: its start has no limit");
        ensure!(values("StartLimitIntervalSec=") == ["0"], "{name}: systemd would give up starting it");
    }
    Ok(())
}

fn conflists_attach_a_pod() -> Result<()> {
    for (name, path) in files("cni") {
        let host = Host::start("node")?;
        host.write("/run/flannel/subnet.env", SUBNET_FILE)?;
        let content = fs::read_to_string(&path)?;
        Network::parse(&content).with_context(|| name.clone())?;
        let runtime = Runtime::new(&host);
        runtime.install(&bin("netd-cni")?, &["netd-cni", "flannel", "portmap"])?;
        runtime.configure(&name, &content)?;
        let pod = runtime.run_pod("web").with_context(|| name.clone())?;
        ensure!(pod.address().to_string() == "172.7.21.2", "{name}: {}", pod.address());
        pod.pod().run(&["ping", "-c1", "-W5", "172.7.21.1"])?;
        pod.stop()?;
    }
    Ok(())
}

const SUBNET_FILE: &str =
    "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn net_conf_gives_the_reference_node_its_subnet() -> Result<()> {
    let cluster = lab::Cluster::reference()?;
    let node = cluster.host("hdss7-21")?;
    node.write("/etc/kube-flannel/net-conf.json", fs::read(configs().join("net-conf.json"))?)?;
    let netd = node.command(bin("netd")?).args(["--store", "local", "--iface", "eth0"]).start("netd")?;
    lab::eventually(Duration::from_secs(30), || {
        let file = node.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_SUBNET=172.7.21.1/24"), "{file}");
        Ok(())
    })?;
    ensure!(netd.terminate(Duration::from_secs(10))?.success(), "netd: {}", netd.log());
    let log = netd.log();
    let remark = log.lines().find(|line| line.contains("WARN") && line.contains("net-conf.json"));
    ensure!(remark.is_none() && log.contains("network=172.7.0.0/16 backend=\"vxlan\""), "{log}");
    Ok(())
}

fn variables_of_the_unit_are_ones_that_netd_reads() -> Result<()> {
    let unit = fs::read_to_string(configs().join("systemd/netd.service"))?;
    let help = Host::start("help")?.command(bin("netd")?).arg("--help").run()?.stdout;
    let known: BTreeSet<&str> = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
    let settings = unit.lines().filter_map(|line| line.strip_prefix("Environment=")).flat_map(str::split_whitespace);
    let set: Vec<&str> = settings.filter_map(|pair| pair.split('=').next()).collect();
    let comments = unit.lines().filter(|line| line.starts_with('#')).flat_map(|line| line.split([' ', ',', ':']));
    let named: Vec<&str> = comments
        .filter(|word| word.starts_with("FLANNELD_") || word.starts_with("NETD_") && *word != "NETD_")
        .collect();
    ensure!(!set.is_empty() && !named.is_empty(), "{unit}");
    for name in set.iter().chain(&named) {
        ensure!(known.contains(name), "{name} is read by nobody: {known:?}");
    }
    Ok(())
}

fn unit_of_netd_leaves_the_data_path_alone_and_is_hardened() -> Result<()> {
    let unit = fs::read_to_string(configs().join("systemd/netd.service"))?;
    for line in [
        "Type=notify",
        "KillMode=process",
        "Restart=always",
        "RuntimeDirectory=netd flannel",
        "RuntimeDirectoryPreserve=yes",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ] {
        ensure!(unit.lines().any(|found| found == line), "{line}");
    }
    let bounded = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    ensure!(bounded.is_some_and(|set| set.split(' ').any(|name| name == "CAP_NET_ADMIN")), "{bounded:?}");
    let after = unit.lines().find_map(|line| line.strip_prefix("After=")).context("After=")?;
    ensure!(after.split(' ').any(|unit| unit == "etcd.service"), "{after}");
    ensure!(!unit.contains("ExecStop") && !unit.contains("PartOf"), "nothing may tear the data path down");
    Ok(())
}

fn service_manifests_are_applied_and_listed() -> Result<()> {
    let cluster = lab::Cluster::reference()?;
    let node = cluster.host("hdss7-21")?;
    let etcd = Etcd::start([node])?;
    let endpoints = etcd.endpoints();
    for (name, path) in files("services") {
        let apply = node.command(bin("ipvs-proxy")?).arg("apply").arg("-f").arg(&path);
        let applied = apply.args(["--etcd-endpoints", &endpoints]).run().with_context(|| name.clone())?;
        ensure!(applied.stdout.lines().count() == 2, "{name}: {}", applied.stdout);
        let service = name.strip_suffix(".yaml").context("a .yaml file")?;
        let list = node.command(bin("ipvs-proxy")?).args(["list", "--etcd-endpoints", &endpoints]).run()?.stdout;
        ensure!(list.contains(service), "{name}: {list}");
    }
    Ok(())
}

fn clusters_are_checked_and_their_mistakes_named() -> Result<()> {
    let host = Host::start("clusters")?;
    for (name, path) in files("clusters") {
        host.write(format!("/tmp/{name}"), fs::read_to_string(&path)?)?;
        let said = host.command(bin("netdadm")?).args(["check", "-f", &format!("/tmp/{name}")]).run()?.stdout;
        ensure!(said.contains(": 0 errors, ") && said.contains("\nHOST "), "{name}: {said}");
    }
    let check =
        |input: &str, words: &[&str]| host.command(bin("netdadm")?).args(["check"]).args(words).input(input).output();
    let reference = fs::read_to_string(configs().join("clusters/reference.yaml"))?;
    let wrong = check(&reference.replace("10.4.7.22,", "10.4.7.21,"), &["-f", "-", "--json"])?;
    let findings: Vec<serde_json::Value> = serde_json::from_str(&wrong.stdout)?;
    let error = findings.iter().find(|finding| finding["severity"] == "error").context("no error")?;
    ensure!(error["line"] == 16 && error["field"] == "hosts.hdss7-22.address", "{error}");
    ensure!(wrong.status.code() == Some(1), "{wrong:?}");
    let absent = check("", &["-f", "/tmp/absent.yaml"])?;
    ensure!(absent.status.code() == Some(2) && absent.stderr.contains("read /tmp/absent.yaml: "), "{absent:?}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[lab::Need::Nftables, lab::Need::Vxlan],
        lab::tests![
            units_are_what_systemd_accepts,
            units_expose_no_more_than_is_stated,
            no_unit_holds_up_the_boot,
            conflists_attach_a_pod,
            net_conf_gives_the_reference_node_its_subnet,
            variables_of_the_unit_are_ones_that_netd_reads,
            unit_of_netd_leaves_the_data_path_alone_and_is_hardened,
            service_manifests_are_applied_and_listed,
            clusters_are_checked_and_their_mistakes_named,
        ],
    )
}
