//! The Debian packages on machines that boot: installed, upgraded, downgraded, removed and purged by dpkg, under a stream and a load.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod packaged;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cni::{Runtime, Sandbox};
use lab::{Cluster, Etcd, Host, Need, Output, Pod, Topology, allowing_for_load, echo, eventually};
use packaged::state::State;
use packaged::{PROGRAMS, packaging, words};

const TWO: &str = "network 10.4.7.0/24\nhdss7-21 10.4.7.21\nhdss7-22 10.4.7.22\n";
const NETWORK: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// The two versions; what is in them is the same but for that.
const VERSIONS: [&str; 2] = ["1.0", "1.1"];
/// The daemons, and how each is told where its objects are.
const DAEMONS: [(&str, &str); 2] = [
    ("netd", "FLANNELD_ETCD_ENDPOINTS=http://10.4.7.22:2379\nFLANNELD_IFACE=eth0\n"),
    (
        "ipvs-proxy",
        "IPVS_PROXY_ETCD_ENDPOINTS=http://10.4.7.22:2379\nIPVS_PROXY_CLUSTER_CIDR=172.7.0.0/16\nIPVS_PROXY_SERVICE_CIDR=192.168.0.0/16\n",
    ),
];
/// A Service with the Pod of hdss7-22 behind it, by TCP and UDP.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
    spec: {clusterIP: 192.168.0.10, ports: [{name: p, port: 80}, {name: u, port: 80, protocol: UDP}]}\n---\n\
    apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
    ports: [{name: p, port: 80}, {name: u, port: 80, protocol: UDP}]\nendpoints: [{addresses: [172.7.22.2]}]\n";
/// What an operator has there already: chains that let nothing of ours pass by themselves, of both families.
const FIREWALL: &str = "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; tcp dport 9 drop; }; }\n\
    table ip6 filter { chain FORWARD { type filter hook forward priority filter; policy drop; tcp dport 9 drop; }; }\n";

/// What a purge leaves: nobody can tell who else needs forwarding by then. The kernel derives all of these from `ip_forward`.
const FORWARDING: [&str; 12] = [
    "+ sysctl: /proc/sys/net/ipv4/conf/all/accept_redirects:0",
    "+ sysctl: /proc/sys/net/ipv4/conf/all/forwarding:1",
    "+ sysctl: /proc/sys/net/ipv4/conf/default/forwarding:1",
    "+ sysctl: /proc/sys/net/ipv4/conf/eth0/forwarding:1",
    "+ sysctl: /proc/sys/net/ipv4/conf/lo/forwarding:1",
    "+ sysctl: /proc/sys/net/ipv4/ip_forward:1",
    "- sysctl: /proc/sys/net/ipv4/conf/all/accept_redirects:1",
    "- sysctl: /proc/sys/net/ipv4/conf/all/forwarding:0",
    "- sysctl: /proc/sys/net/ipv4/conf/default/forwarding:0",
    "- sysctl: /proc/sys/net/ipv4/conf/eth0/forwarding:0",
    "- sysctl: /proc/sys/net/ipv4/conf/lo/forwarding:0",
    "- sysctl: /proc/sys/net/ipv4/ip_forward:0",
];

fn soon() -> Duration {
    allowing_for_load(Duration::from_secs(60))
}

/// How late the answer to a datagram may be; without one by then it is lost.
fn late() -> Duration {
    allowing_for_load(Duration::from_secs(10))
}

/// Every package in both versions, below a folder.
fn make(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for version in VERSIONS {
        let printed = words(packaging("deb")?.env("VERSION", version).arg(folder))?;
        made.extend(printed.lines().map(PathBuf::from));
    }
    ensure!(made.len() == VERSIONS.len() * PROGRAMS.len(), "{made:?}");
    Ok(made)
}

/// A machine with dpkg.
struct Machine<'a> {
    host: &'a Host,
    packages: &'a [PathBuf],
}

impl Machine<'_> {
    /// Installs every package in this version, at once; what dpkg printed.
    fn install(&self, version: &str) -> Result<String> {
        let names = self.packages.iter().filter_map(|path| path.file_name()?.to_str());
        // They lie where the machine's programs are.
        let files =
            names.filter(|name| name.contains(&format!("_{version}_"))).map(|name| format!("/usr/local/bin/{name}"));
        let dpkg = self.host.command("dpkg").args(["--force-unsafe-io", "-i"]).args(files);
        let Output { stdout, stderr, .. } = dpkg.env("DEBIAN_FRONTEND", "noninteractive").run()?;
        let shown =
            self.host.run(&["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n", "netd"])?.stdout;
        ensure!(shown.trim() == format!("netd {version} installed"), "{shown}");
        Ok(stdout + &stderr)
    }

    fn dpkg(&self, words: &[&str]) -> Result<String> {
        let Output { stdout, stderr, .. } = self.host.command("dpkg").args(words).args(PROGRAMS).run()?;
        Ok(stdout + &stderr)
    }

    fn property(&self, unit: &str, name: &str) -> Result<String> {
        let words = ["systemctl", "show", unit, "--value", &format!("--property={name}")];
        Ok(self.host.run(&words)?.stdout.trim().to_owned())
    }

    /// Waits until both daemons are ready; their starts, as no other starts are.
    fn ready(&self) -> Result<Vec<String>> {
        eventually(soon(), || {
            for (name, _) in DAEMONS {
                let state = self.property(name, "ActiveState")?;
                ensure!(
                    state == "active",
                    "{name} is {state}: {}",
                    self.host.run(&["journalctl", "-n20", "-u", name])?.stdout
                );
            }
            Ok(())
        })?;
        DAEMONS.iter().map(|(name, _)| self.property(name, "InvocationID")).collect()
    }

    fn pod(&self) -> Result<Sandbox> {
        Runtime::new(self.host).run_pod("web")
    }
}

/// What clients in a Pod counted.
#[derive(Debug, Default)]
struct Counts {
    /// Answers on one connection to the other node's Pod.
    stream: AtomicU32,
    /// Answers on one connection to the Service.
    service: AtomicU32,
    /// Requests to the Service, each on a connection of its own.
    load: AtomicU32,
    /// Datagrams to the Pod that were answered, each from a socket of its own.
    datagrams: AtomicU32,
    /// Datagrams to the Service, as those: nobody repeats what got lost.
    queries: AtomicU32,
}

impl Counts {
    const fn all(&self) -> [&AtomicU32; 5] {
        [&self.stream, &self.service, &self.load, &self.datagrams, &self.queries]
    }
}

/// Does something under streams, a load and rows of datagrams from a Pod, none of which may lose anything. That the kernel repeats what a
/// connection has lost hides it there, but not in the datagrams.
fn under_load(from: &Pod, work: impl FnOnce(&Counts) -> Result<()>) -> Result<()> {
    let (pod, service): (SocketAddr, SocketAddr) = ("172.7.22.2:80".parse()?, "192.168.0.10:80".parse()?);
    let (ended, counts) = (AtomicBool::new(false), Counts::default());
    let repeat = |counted: &AtomicU32, what: &str, ask: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        while !ended.load(Ordering::Relaxed) {
            ask().with_context(|| format!("{what}, after {} answers", counted.load(Ordering::Relaxed)))?;
            counted.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let connection = |to: SocketAddr, counted: &AtomicU32, what: &str| -> Result<()> {
        let mut connection = echo::Connection::open(from, to, soon())?;
        repeat(counted, what, &mut || connection.ask().map(drop))
    };
    let datagrams = |to: SocketAddr, counted: &AtomicU32, what: &str| -> Result<()> {
        repeat(counted, what, &mut || echo::ask_udp(from, to, late()).map(drop))
    };
    thread::scope(|scope| {
        let clients = [
            scope.spawn(|| connection(pod, &counts.stream, "the stream")),
            scope.spawn(|| connection(service, &counts.service, "the stream through the Service")),
            scope.spawn(|| repeat(&counts.load, "the load", &mut || echo::ask_tcp(from, service, soon()).map(drop))),
            scope.spawn(|| datagrams(pod, &counts.datagrams, "datagrams")),
            scope.spawn(|| datagrams(service, &counts.queries, "datagrams to the Service")),
        ];
        let worked = flows(&counts).and_then(|()| work(&counts)).and_then(|()| flows(&counts));
        ended.store(true, Ordering::Relaxed);
        let lost = clients.into_iter().try_for_each(|client| client.join().unwrap());
        eprintln!("{counts:?}");
        lost.and(worked)
    })
}

/// Waits for more answers of each kind.
fn flows(counts: &Counts) -> Result<()> {
    let all = counts.all();
    let before = all.map(|count| count.load(Ordering::Relaxed));
    eventually(soon(), || {
        let now = all.map(|count| count.load(Ordering::Relaxed));
        ensure!(before.iter().zip(now).all(|(before, now)| now >= before + 5), "{counts:?}");
        Ok(())
    })
}

/// A machine whose policy forbids starts gets everything but a start; without settings nothing starts either.
fn first_installation_enables_and_waits_for_settings(machine: &Machine<'_>) -> Result<()> {
    machine.host.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    machine.host.run(&["chmod", "755", "/usr/sbin/policy-rc.d"])?;
    let said = machine.install(VERSIONS[0])?;
    machine.host.run(&["rm", "/usr/sbin/policy-rc.d"])?;
    for (name, _) in DAEMONS {
        ensure!(said.contains(&format!("put its settings into /etc/default/{name}")), "{said}");
        let state = (machine.property(name, "UnitFileState")?, machine.property(name, "ActiveState")?);
        ensure!(state == ("enabled".to_owned(), "inactive".to_owned()), "{name}: {state:?}");
    }
    Ok(())
}

fn set_up(machine: &Machine<'_>) -> Result<()> {
    for (name, settings) in DAEMONS {
        machine.host.write(format!("/etc/default/{name}"), settings)?;
        machine.host.run(&["systemctl", "start", "--no-block", name])?;
    }
    Ok(())
}

/// Both daemons are new ones, of this version, and a Pod can be made.
fn is_replaced(machine: &Machine<'_>, version: &str, former: &mut Vec<String>, counts: &Counts) -> Result<()> {
    machine.install(version)?;
    let now = machine.ready()?;
    ensure!(now.iter().zip(former.iter()).all(|(now, former)| now != former), "a daemon of the other version runs on");
    *former = now;
    flows(counts)
}

fn versions_change_without_a_lost_packet_and_a_purge_leaves_nothing() -> Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let packages = make(folder.path())?;
    let cluster = Cluster::boot_with(&Topology::parse(TWO)?, &packages)?;
    let [one, two] =
        ["hdss7-21", "hdss7-22"].map(|name| Machine { host: cluster.host(name).unwrap(), packages: &packages });
    let etcd = Etcd::start([two.host])?;
    etcd.put("/coreos.com/network/config", NETWORK)?;
    for machine in [&one, &two] {
        // A container's image may have such a policy. podman's package makes an empty folder of the plugins', which ours takes for its own.
        machine.host.run(&["rm", "-rf", "/usr/sbin/policy-rc.d", "/var/lib/cni"])?;
        // The runtime's own.
        machine.host.run(&["mkdir", "-p", "/var/lib/cni/results"])?;
    }
    // As kubernetes-cni has it there.
    one.host.write("/opt/cni/bin/bridge", "somebody else's")?;
    one.host.command("nft").args(["-f", "-"]).input(FIREWALL).run()?;
    let before = State::of(one.host)?;
    first_installation_enables_and_waits_for_settings(&one)?;
    ensure!(one.host.read("/opt/cni/bin/bridge.diverted")? == "somebody else's", "another's plugin was overwritten");
    two.install(VERSIONS[0])?;
    set_up(&one)?;
    set_up(&two)?;
    let (mut former, mut former_of_two) = (one.ready()?, two.ready()?);
    let (client, server) = (one.pod()?, two.pod()?);
    let _web = echo::serve(server.pod(), "web", 80)?;
    let apply =
        two.host.command("/usr/bin/ipvs-proxy").args(["apply", "--etcd-endpoints", &etcd.endpoints(), "-f", "-"]);
    apply.input(SERVICE).run()?;
    let service = "192.168.0.10:80".parse()?;
    eventually(soon(), || echo::ask_tcp(client.pod(), service, Duration::from_secs(2)).map(drop))?;
    under_load(client.pod(), |counts| {
        is_replaced(&one, VERSIONS[1], &mut former, counts)?;
        Runtime::new(one.host).run_pod("new")?.stop()?;
        is_replaced(&two, VERSIONS[1], &mut former_of_two, counts)?;
        is_replaced(&one, VERSIONS[0], &mut former, counts)?;
        for (name, settings) in DAEMONS {
            ensure!(one.host.read(format!("/etc/default/{name}"))? == settings, "the settings of {name} were replaced");
        }
        // One that was stopped is not started by an upgrade.
        one.host.run(&["systemctl", "stop", "ipvs-proxy"])?;
        one.install(VERSIONS[1])?;
        ensure!(
            one.property("ipvs-proxy", "ActiveState")? == "inactive",
            "an upgrade started what an operator had stopped"
        );
        one.dpkg(&["-r"])?;
        ensure!(
            one.property("netd", "ActiveState")? == "inactive" && one.host.read("/etc/default/netd")? == DAEMONS[0].1
        );
        flows(counts)?;
        // The settings are there, so it starts by itself.
        one.install(VERSIONS[1])?;
        one.ready().map(drop)
    })?;
    client.stop()?;
    let said = one.dpkg(&["-P"])?;
    let differs = State::of(one.host)?.differs_from(&before);
    ensure!(differs == FORWARDING, "a purge left or took:\n{}\n{said}", differs.join("\n"));
    ensure!(one.host.read("/opt/cni/bin/bridge")? == "somebody else's", "the other's plugin did not come back");
    server.stop()
}

fn main() -> ExitCode {
    let needs = [Need::Vxlan, Need::Nftables];
    lab::harness::Suite::new(&needs)
        .unless(Cluster::boot_obstacle())
        .run(lab::tests![versions_change_without_a_lost_packet_and_a_purge_leaves_nothing])
}
