//! The unit as systemd runs it: started at the boot of a machine whose first process is systemd, stopped, killed, reloaded.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Need, Process, eventually};
use netd_node::traffic::Traffic;
use netd_node::{Net, VXLAN, pod};

const ONE: &str = "hdss7-21";
const OTHER: &str = "hdss7-22";

/// A boot on a busy machine.
const BOOT: Duration = Duration::from_secs(90);

/// What the machine boots into: networking is the lab's, and nothing but the unit is wanted.
const TARGET: &str = "[Unit]\nDescription=What the test is about\nRequires=basic.target\nWants=netd.service\n";

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/systemd")
}

/// A machine that runs systemd.
struct Machine {
    boot: Process,
}

impl Machine {
    /// Boots on `host` with the unit, its drop-in files in `dropins`, and `environment` as /etc/default/netd.
    fn boot(host: &Host, environment: &str, dropins: &[PathBuf]) -> Result<Self> {
        host.run(&["mkdir", "-p", "/etc/test-units/netd.service.d", "/etc/default"])?;
        host.write("/etc/test-units/netd.service", std::fs::read(configs().join("netd.service"))?)?;
        host.write("/etc/test-units/netd-test.target", TARGET)?;
        for path in dropins {
            let name = path.file_name().unwrap().to_str().unwrap();
            host.write(format!("/etc/test-units/netd.service.d/{name}"), std::fs::read(path)?)?;
        }
        host.write("/etc/default/netd", environment)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd-machine");
        let boot = host.command(script).arg("/etc/test-units").arg(lab::bin("netd")?).start("systemd")?;
        let machine = Self { boot };
        eventually(BOOT, || machine.run(&["systemctl", "show", "--property=Version"]).map(drop))?;
        Ok(machine)
    }

    /// Runs a command inside.
    fn run(&self, words: &[&str]) -> Result<String> {
        ensure!(self.boot.is_running(), "the machine has ended: {}", self.boot.log());
        let unshare = self.boot.pid().to_string();
        let child = format!("/proc/{unshare}/task/{unshare}/children");
        let child = std::fs::read_to_string(&child).with_context(|| child.clone())?;
        let systemd = child.split_whitespace().next().context("systemd has not started")?.to_owned();
        // By this process's numbers, from outside of the host: the machine has the host's network.
        let enter = ["nsenter", "-t", systemd.as_str(), "-m", "-p", "-n", "-i", "-C", "-u"];
        let output = std::process::Command::new(enter[0]).args(&enter[1..]).args(words).output()?;
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{words:?}: {out}{errors}");
        Ok(out.into_owned())
    }

    fn property(&self, name: &str) -> Result<String> {
        Ok(self.run(&["systemctl", "show", "netd", "--value", &format!("--property={name}")])?.trim().to_owned())
    }

    /// Waits until the unit has said READY=1.
    fn eventually_active(&self) -> Result<()> {
        eventually(BOOT, || {
            let state = self.property("ActiveState")?;
            ensure!(state == "active", "{state}\n{}", self.log()?);
            Ok(())
        })
    }

    fn log(&self) -> Result<String> {
        self.run(&["journalctl", "-u", "netd", "--no-pager", "-o", "cat"])
    }
}

fn environment(net: &Net) -> String {
    format!("FLANNELD_ETCD_ENDPOINTS={}\nFLANNELD_IFACE=eth0\n", net.etcd.endpoints())
}

fn unit_is_ready_after_the_boot_and_its_end_leaves_the_data_path() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _other = net.netd(OTHER)?;
    let host = net.host(ONE)?;
    let machine = Machine::boot(host, &environment(&net), &[])?;
    machine.eventually_active()?;
    net.eventually_routes(OTHER, "172.7.21.0/24")?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host(OTHER)?, "172.7.22")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    // Stopped, started, killed, reloaded, restarted: Pods notice nothing.
    machine.run(&["systemctl", "stop", "netd"])?;
    ensure!(machine.property("Result")? == "success", "{}", machine.log()?);
    traffic.flows()?;
    machine.run(&["systemctl", "start", "netd"])?;
    machine.eventually_active()?;
    machine.run(&["systemctl", "kill", "--signal=KILL", "netd"])?;
    eventually(BOOT, || {
        ensure!(machine.property("NRestarts")? == "1" && machine.property("ActiveState")? == "active");
        Ok(())
    })?;
    machine.run(&["systemctl", "reload", "netd"])?;
    machine.run(&["systemctl", "restart", "netd"])?;
    machine.eventually_active()?;
    let file = machine.run(&["cat", "/run/flannel/subnet.env"])?;
    ensure!(file.contains("FLANNEL_SUBNET=172.7.21.1/24\n"), "{file}");
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    // The unit leaves the daemon what it needs to refuse itself calls, which the log says where it cannot.
    let log = machine.log()?;
    ensure!(!log.contains("calls: "), "{log}");
    let problems = machine.run(&["systemctl", "list-units", "--failed", "--no-legend", "netd.service"])?;
    ensure!(problems.trim().is_empty(), "{problems}");
    Ok(())
}

/// A daemon whose threads all stand still, as one whose loop is stuck, feeds the watchdog no more.
fn daemon_that_stands_still_is_started_again_by_the_watchdog_and_costs_no_packet() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _other = net.netd(OTHER)?;
    let host = net.host(ONE)?;
    host.write("/etc/test-units/netd.service.d/watchdog.conf", "[Service]\nWatchdogSec=5s\n")?;
    let machine = Machine::boot(host, &environment(&net), &[])?;
    machine.eventually_active()?;
    net.eventually_routes(OTHER, "172.7.21.0/24")?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host(OTHER)?, "172.7.22")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    machine.run(&["systemctl", "kill", "--signal=STOP", "netd"])?;
    eventually(BOOT, || {
        let log = machine.run(&["journalctl", "-u", "netd", "--no-pager", "-o", "cat"])?;
        ensure!(log.contains("Watchdog timeout"), "{log}");
        ensure!(machine.property("NRestarts")? != "0" && machine.property("ActiveState")? == "active", "{log}");
        Ok(())
    })?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    Ok(())
}

/// One certificate for etcd and for netd, each other's authority, and its key; as files of `owner` on `host`.
fn write_pki(host: &Host, certificate: &str, key: &str, owner: &str) -> Result<()> {
    host.run(&["mkdir", "-p", "/etc/etcd/pki"])?;
    for (name, text) in [("ca.crt", certificate), ("netd.crt", certificate), ("netd.key", key)] {
        let path = format!("/etc/etcd/pki/{name}");
        host.write(&path, text)?;
        host.run(&["chown", owner, &path])?;
        host.run(&["chmod", "0400", &path])?;
    }
    Ok(())
}

fn certificate() -> Result<(String, String)> {
    let mut params = rcgen::CertificateParams::new(vec!["10.4.7.12".to_owned()])?;
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// netd runs without the right to read other users' files, and etcd wants its certificate.
fn key_of_another_user_is_read_by_systemd() -> Result<()> {
    let cluster = lab::Cluster::reference()?;
    let (host, store) = (cluster.host(ONE)?, cluster.host("hdss7-12")?);
    let (certificate, key) = certificate()?;
    write_pki(store, &certificate, &key, "0:0")?;
    write_pki(host, &certificate, &key, "1234:1234")?;
    let files = |ca: &str, cert: &str, key: &str| {
        ["/ca.crt", "/netd.crt", "/netd.key"]
            .iter()
            .zip([ca, cert, key])
            .map(|(file, flag)| format!("--{flag}=/etc/etcd/pki{file}"))
            .collect::<Vec<_>>()
    };
    let serve = files("trusted-ca-file", "cert-file", "key-file");
    let urls = ["--listen-client-urls=https://10.4.7.12:2379", "--advertise-client-urls=https://10.4.7.12:2379"];
    let data = ["--client-cert-auth", "--data-dir=/run/etcd-tls"];
    let _etcd = store.command("etcd").args(urls).args(data).args(&serve).start("etcd")?;
    let ask = files("cacert", "cert", "key");
    let put = ["--endpoints=https://10.4.7.12:2379", "put", "/coreos.com/network/config", VXLAN];
    eventually(BOOT, || store.command("etcdctl").env("ETCDCTL_API", "3").args(&ask).args(put).run().map(drop))?;
    let plain = "FLANNELD_ETCD_ENDPOINTS=https://10.4.7.12:2379\nFLANNELD_IFACE=eth0\n";
    let direct = "FLANNELD_ETCD_CAFILE=/etc/etcd/pki/ca.crt\nFLANNELD_ETCD_CERTFILE=/etc/etcd/pki/netd.crt\n\
                  FLANNELD_ETCD_KEYFILE=/etc/etcd/pki/netd.key\n";
    {
        let machine = Machine::boot(host, &format!("{plain}{direct}"), &[])?;
        eventually(BOOT, || {
            let log = machine.log()?;
            ensure!(log.contains("/etc/etcd/pki/netd.key") && log.contains("Permission denied"), "{log}");
            Ok(())
        })?;
    }
    let machine = Machine::boot(host, plain, &[configs().join("netd.service.d/tls.conf")])?;
    machine.eventually_active()
}

/// Says why a machine with systemd cannot be had, if it cannot.
fn unbootable() -> Option<String> {
    let tried = Host::start("probe").and_then(|host| Machine::boot(&host, "", &[]).map(drop));
    tried.err().map(|error| format!("{error:#}"))
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables]).unless(unbootable()).run(lab::tests![
        unit_is_ready_after_the_boot_and_its_end_leaves_the_data_path,
        daemon_that_stands_still_is_started_again_by_the_watchdog_and_costs_no_packet,
        key_of_another_user_is_read_by_systemd,
    ])
}
