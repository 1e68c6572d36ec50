//! The daemons' units on machines whose first process is systemd: what holds for each of them, a row for each.
//!
//! Invariant: the machine runs the unit as it is delivered; a drop-in file changes nothing but how soon its watchdog bites.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Process, allowing_for_load, eventually};

use crate::netd_node::traffic::Traffic;
use crate::netd_node::{Net, VXLAN, pod};
use crate::proxy::{DNS, Nodes, WEB, WEB_SERVICE, dns, slice};

/// A boot on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(90);
/// How long what a reload repairs may take: far less than the time between two audits, 60 s.
const RELOAD: Duration = Duration::from_secs(15);

pub(crate) fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/systemd")
}

/// A machine that runs systemd and one of our units.
pub(crate) struct Machine {
    boot: Process,
    unit: &'static str,
}

impl Machine {
    /// Boots on `host` with the unit, its drop-in files in `dropins`, and `environment` as /etc/default/UNIT.
    pub(crate) fn boot(host: &Host, unit: &'static str, environment: &str, dropins: &[PathBuf]) -> Result<Self> {
        let units = "/etc/test-units";
        host.run(&["mkdir", "-p", &format!("{units}/{unit}.service.d"), "/etc/default"])?;
        host.write(format!("{units}/{unit}.service"), std::fs::read(configs().join(format!("{unit}.service")))?)?;
        // Networking is the lab's, and nothing but the unit is wanted.
        let target =
            format!("[Unit]\nDescription=What the test is about\nRequires=basic.target\nWants={unit}.service\n");
        host.write(format!("{units}/unit-test.target"), target)?;
        for path in dropins {
            let name = path.file_name().and_then(|name| name.to_str()).context("name of a drop-in file")?;
            host.write(format!("{units}/{unit}.service.d/{name}"), std::fs::read(path)?)?;
        }
        host.write(format!("/etc/default/{unit}"), environment)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd-machine");
        let boot = host.command(script).arg(units).arg(lab::bin(unit)?).start("systemd")?;
        let machine = Self { boot, unit };
        eventually(BOOT, || machine.run(&["systemctl", "show", "--property=Version"]).map(drop))?;
        Ok(machine)
    }

    /// Runs a command inside.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        ensure!(self.boot.is_running(), "the machine has ended: {}", self.boot.log());
        let unshare = self.boot.pid().to_string();
        let child = format!("/proc/{unshare}/task/{unshare}/children");
        let child = std::fs::read_to_string(&child).with_context(|| child.clone())?;
        let systemd = child.split_whitespace().next().context("systemd has not started")?.to_owned();
        // By this process's numbers, from outside of the host: the machine has the host's network.
        let enter = ["-t", systemd.as_str(), "-m", "-p", "-n", "-i", "-C", "-u"];
        let output = std::process::Command::new("nsenter").args(enter).args(words).output()?;
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{words:?}: {out}{errors}");
        Ok(out.into_owned())
    }

    /// `systemctl VERB... UNIT`.
    fn control(&self, verb: &[&str]) -> Result<()> {
        self.run(&[&["systemctl"], verb, &[self.unit]].concat()).map(drop)
    }

    fn property(&self, name: &str) -> Result<String> {
        let words = ["systemctl", "show", self.unit, "--value", &format!("--property={name}")];
        Ok(self.run(&words)?.trim().to_owned())
    }

    /// Waits until the unit has said READY=1.
    pub(crate) fn eventually_active(&self) -> Result<()> {
        eventually(BOOT, || {
            let state = self.property("ActiveState")?;
            ensure!(state == "active", "{state}\n{}", self.log()?);
            Ok(())
        })
    }

    /// Waits until systemd has started it again by itself so many times.
    fn eventually_started_again(&self, times: &str) -> Result<()> {
        eventually(BOOT, || {
            let (restarts, state) = (self.property("NRestarts")?, self.property("ActiveState")?);
            ensure!(restarts == times && state == "active", "{restarts} {state}\n{}", self.log()?);
            Ok(())
        })
    }

    pub(crate) fn log(&self) -> Result<String> {
        self.run(&["journalctl", "-u", self.unit, "--no-pager", "-o", "cat"])
    }

    /// What the kernel says of the daemon's process.
    fn process(&self, field: &str) -> Result<String> {
        let status = self.run(&["cat", &format!("/proc/{}/status", self.property("MainPID")?)])?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("no {field} in {status}"))?.trim().to_owned())
    }
}

/// Says why a machine with systemd cannot be had, if it cannot.
pub(crate) fn unbootable() -> Option<String> {
    let tried = Host::start("probe").and_then(|host| Machine::boot(&host, "netd", "", &[]).map(drop));
    tried.err().map(|error| format!("{error:#}"))
}

/// A unit, and what shows that its daemon works.
pub(crate) struct Row {
    unit: &'static str,
    start: fn() -> Result<Box<dyn Around>>,
    /// Something that but for a reload waits for the next audit.
    reload: fn(&Machine, &Host) -> Result<()>,
}

/// Pods between two nodes.
pub(crate) const NETD: Row = Row { unit: "netd", start: Pods::start, reload: repairs_an_unheard_parameter };
/// Services by nftables.
pub(crate) const NFTABLES: Row =
    Row { unit: "ipvs-proxy", start: || Services::start("nftables"), reload: lists_the_tables };
/// Services by IPVS.
pub(crate) const IPVS: Row = Row { unit: "ipvs-proxy", start: || Services::start("ipvs"), reload: lists_the_tables };

/// What is around a daemon.
pub(crate) trait Around {
    fn host(&self) -> Result<&Host>;
    fn environment(&self) -> String;
    /// Traffic that the daemon has made possible.
    fn traffic(&self) -> Result<Traffic>;
}

/// Two nodes whose Pods reach each other by netd.
struct Pods {
    _other: Process,
    net: Net,
}

impl Pods {
    fn start() -> Result<Box<dyn Around>> {
        let net = Net::start(VXLAN)?;
        let other = net.netd("hdss7-22")?;
        Ok(Box::new(Self { _other: other, net }))
    }
}

impl Around for Pods {
    fn host(&self) -> Result<&Host> {
        self.net.host("hdss7-21")
    }

    fn environment(&self) -> String {
        format!("FLANNELD_ETCD_ENDPOINTS={}\nFLANNELD_IFACE=eth0\n", self.net.etcd.endpoints())
    }

    fn traffic(&self) -> Result<Traffic> {
        self.net.eventually_routes("hdss7-22", "172.7.21.0/24")?;
        let (web, server) = (pod(self.host()?, "172.7.21")?, pod(self.net.host("hdss7-22")?, "172.7.22")?);
        Traffic::start(web, &server, "172.7.22.2")
    }
}

/// A host that is no node, a node with ipvs-proxy and Pods behind two Services.
struct Services {
    nodes: Nodes,
    mode: &'static str,
}

impl Services {
    fn start(mode: &'static str) -> Result<Box<dyn Around>> {
        let nodes = Nodes::start()?;
        let node = nodes.node()?;
        node.run(&["mkdir", "-p", "/etc/ipvs-proxy/services"])?;
        let pods = ["172.7.21.2", "172.7.22.2"];
        let manifests = [WEB_SERVICE, "---\n", &slice(&pods), "---\n", &dns(&pods)].concat();
        node.write("/etc/ipvs-proxy/services/all.yaml", manifests)?;
        Ok(Box::new(Self { nodes, mode }))
    }
}

impl Around for Services {
    fn host(&self) -> Result<&Host> {
        self.nodes.node()
    }

    fn environment(&self) -> String {
        format!(
            "IPVS_PROXY_SERVICES_DIR=/etc/ipvs-proxy/services\nIPVS_PROXY_CLUSTER_CIDR=172.7.0.0/16\n\
             IPVS_PROXY_SERVICE_CIDR=192.168.0.0/16\nIPVS_PROXY_PROXY_MODE={}\n",
            self.mode
        )
    }

    fn traffic(&self) -> Result<Traffic> {
        Traffic::to_servers(self.nodes.outside()?.clone(), WEB, DNS)
    }
}

/// Booted, stopped, started, killed, held, restarted: who uses the data path notices nothing. A reload does at once what else
/// waits for an audit.
pub(crate) fn ends_and_begins_again_in_every_way(row: &Row) -> Result<()> {
    let around = (row.start)()?;
    let host = around.host()?;
    let dropin = format!("/etc/test-units/{}.service.d", row.unit);
    host.run(&["mkdir", "-p", &dropin])?;
    host.write(format!("{dropin}/watchdog.conf"), "[Service]\nWatchdogSec=15s\n")?;
    let machine = Machine::boot(host, row.unit, &around.environment(), &[])?;
    machine.eventually_active()?;
    is_confined(&machine)?;
    let traffic = around.traffic()?;
    machine.control(&["stop"])?;
    ensure!(machine.property("Result")? == "success", "{}", machine.log()?);
    traffic.flows()?;
    machine.control(&["start"])?;
    machine.eventually_active()?;
    machine.control(&["kill", "--signal=KILL"])?;
    machine.eventually_started_again("1").context("after a kill")?;
    // A daemon whose threads all stand still, as one whose loop is stuck, feeds the watchdog no more.
    machine.control(&["kill", "--signal=STOP"])?;
    machine.eventually_started_again("2").context("after a stand-still")?;
    let log = machine.log()?;
    ensure!(log.contains("Watchdog timeout"), "{log}");
    machine.control(&["restart"])?;
    machine.eventually_active()?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    for _ in 0..3 {
        // Once an audit may have come by chance, not three times in a row.
        (row.reload)(&machine, host)?;
    }
    // The unit leaves the daemon what it needs to refuse itself calls, which the log says where it cannot.
    let log = machine.log()?;
    ensure!(!log.contains("calls: "), "{log}");
    let problems = machine.run(&["systemctl", "list-units", "--failed", "--no-legend", row.unit])?;
    ensure!(problems.trim().is_empty(), "{problems}");
    Ok(())
}

/// The daemon's process has the rights that its unit leaves it, and no more.
fn is_confined(machine: &Machine) -> Result<()> {
    let filters: u32 = machine.process("Seccomp_filters")?.parse()?;
    let found = ["Seccomp", "NoNewPrivs", "CapBnd", "CapEff"].map(|field| machine.process(field).unwrap_or_default());
    // CAP_NET_ADMIN is the twelfth; one filter is the daemon's own, systemd's are several.
    ensure!(found == ["2", "1", "0000000000001000", "0000000000001000"] && filters > 2, "{found:?} {filters}");
    Ok(())
}

/// netd hears nothing of a parameter that is changed by way of another mount of /proc.
fn repairs_an_unheard_parameter(machine: &Machine, host: &Host) -> Result<()> {
    let path = "/proc/sys/net/ipv6/conf/flannel.1/accept_ra";
    let read = || Ok::<_, anyhow::Error>(host.run(&["cat", path])?.stdout.trim().to_owned());
    let right = read()?;
    ensure!(right != "1", "{path} is {right} before anybody touched it");
    host.run(&["sh", "-c", &format!("echo 1 >{path}")])?;
    machine.control(&["reload"])?;
    eventually(allowing_for_load(RELOAD), || {
        let found = read()?;
        ensure!(found == right, "{path} is still {found} after a reload\n{}", machine.log()?);
        Ok(())
    })
}

/// ipvs-proxy looks at parameters and virtual servers each second; other tables are listed for an audit alone where nobody announced a change.
fn lists_the_tables(machine: &Machine, host: &Host) -> Result<()> {
    let listings = || -> Result<BTreeMap<String, u64>> {
        let page = host.run(&["curl", "-fsS", "http://127.0.0.1:10249/metrics"])?.stdout;
        let counts =
            page.lines().filter_map(|line| line.strip_prefix("ipvs_proxy_table_listings_total")?.split_once(' '));
        let of_audits = counts.filter(|(table, _)| ["sysctl", "ipvs"].iter().all(|other| !table.contains(other)));
        of_audits.map(|(table, count)| Ok((table.to_owned(), count.parse()?))).collect()
    };
    let before = listings()?;
    machine.control(&["reload"])?;
    eventually(allowing_for_load(RELOAD), || {
        let now = listings()?;
        ensure!(now != before, "{now:?} listings, and no more after a reload\n{}", machine.log()?);
        Ok(())
    })
}
