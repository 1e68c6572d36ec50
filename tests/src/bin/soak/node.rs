//! A node of the cluster: its machine, its daemons, its container runtime, and what is foreign on it.
//!
//! Invariant: daemons are started as their units start them. A reboot keeps `/etc`, `/opt` and `/var`, and nothing else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cni::{Network, Runtime};
use lab::{Host, Process, bin, eventually};

use crate::bounds::PROGRAM;
use crate::options::Options;

/// What somebody else has on each node: a link with an address, routes (one of them inside the Pod network), a neighbour, a rule set, and
/// files beside the plugin's.
const FOREIGN: &str = "
ip link add theirs0 type bridge; ip address add 10.77.0.1/24 dev theirs0; ip link set theirs0 up
ip route add 10.88.0.0/16 via 10.77.0.2 dev theirs0 proto static
ip route add 172.7.250.0/24 via 10.77.0.2 dev theirs0 proto static
ip neigh add 10.77.0.9 lladdr 02:00:00:00:77:09 dev theirs0 nud permanent
mkdir -p /var/lib/cni/networks/theirs; echo somebody >/var/lib/cni/networks/theirs/10.99.0.2
";

/// The rule set among it.
pub(crate) const FOREIGN_RULES: &str = "nft add table inet theirs
nft add set inet theirs denied '{ type ipv4_addr; elements = { 203.0.113.7, 203.0.113.8 }; }'
nft add chain inet theirs input '{ type filter hook input priority 5; policy accept; }'
nft add rule inet theirs input ip saddr @denied drop
";

/// All of it as text.
const FOREIGN_STATE: &str = "ip -4 -o address show dev theirs0 | sed 's/ valid_lft.*//; s/^[0-9]*: //'; ip route show dev theirs0; \
    ip neigh show dev theirs0 nud permanent; nft -s list table inet theirs; cd /var/lib/cni/networks/theirs && grep . *";

/// State of a node's files in memory: small, so that it can be full.
const DISKS: &str = "for folder in cni netd ipvs-proxy; do mkdir -p /var/lib/$folder; \
    mount -t tmpfs -o size=2m,mode=755 tmpfs /var/lib/$folder; done; mount -o remount,size=8m /run";

/// What a reboot does to network and memory. Links of the kernel's own cannot be deleted.
const WIPE: &str = "for link in $(ls /sys/class/net | grep -v -e '^lo$' -e '^eth0$'); do ip link delete $link 2>/dev/null || true; done
nft flush ruleset; ip route flush table main proto 121; ip route flush table local proto 122 2>/dev/null || true
ipvsadm -C 2>/dev/null || true
rm -rf /run/netd /run/flannel /run/ipvs-proxy /run/filler; sysctl -qw net.ipv4.ip_forward=0";

/// A machine that is a node, or may become one.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: Host,
    /// Whether it is part of the cluster.
    pub(crate) joined: bool,
    pub(crate) netd: Option<Process>,
    pub(crate) proxy: Option<Process>,
    pub(crate) runtime: Runtime,
    /// What daemons wrote that have ended, with their names.
    pub(crate) logs: Vec<(String, String)>,
    /// Lines of the running daemons that were judged already.
    pub(crate) read: [usize; 2],
    /// What daemons that have been ended wrote behind the lines that were judged.
    unread: Vec<String>,
    /// Daemons that were to be ended, and had ended by themselves.
    ended_before: Vec<&'static str>,
    /// The foreign things as they must stay.
    pub(crate) foreign: String,
    /// The network's configuration, for GC.
    pub(crate) network: Option<Network>,
}

impl Node {
    /// Prepares a machine as an operator would who has not started anything yet.
    pub(crate) fn prepare(host: &Host, gateway: &str) -> Result<Self> {
        let runtime = Runtime::new(host);
        host.run(&["sh", "-ec", DISKS])?;
        runtime.install(&bin("netd-cni")?, &["netd-cni"])?;
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/cni/10-netd.conflist");
        runtime.configure("10-netd.conflist", &std::fs::read_to_string(list).context("read the conflist")?)?;
        let network = Some(runtime.network()?);
        let name = host.name().to_owned();
        let (host, logs) = (host.clone(), Vec::new());
        let mut node = Self {
            name,
            host,
            joined: false,
            netd: None,
            proxy: None,
            runtime,
            logs,
            read: [0; 2],
            unread: Vec::new(),
            ended_before: Vec::new(),
            foreign: String::new(),
            network,
        };
        node.boot(gateway)?;
        Ok(node)
    }

    /// What a machine has after it came up: a default route, and what is foreign.
    fn boot(&mut self, gateway: &str) -> Result<()> {
        self.sh(&format!("ip route replace default via {gateway} dev eth0"))?;
        self.sh(FOREIGN)?;
        self.sh(FOREIGN_RULES)?;
        self.foreign = self.foreign_now()?;
        ensure!(self.foreign.contains("172.7.250.0/24"), "foreign things of {}: {}", self.name, self.foreign);
        Ok(())
    }

    /// Runs a script of shell.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        Ok(self.host.run(&["sh", "-ec", script])?.stdout)
    }

    pub(crate) fn foreign_now(&self) -> Result<String> {
        Ok(self.host.command("sh").args(["-c", FOREIGN_STATE]).output()?.stdout)
    }

    pub(crate) fn start_netd(&mut self, endpoints: &str) -> Result<()> {
        let netd = self.host.command(bin("netd")?);
        self.netd = Some(netd.args(["--etcd-endpoints", endpoints, "--iface", "eth0", "--ip-masq"]).start("netd")?);
        self.read[0] = 0;
        Ok(())
    }

    pub(crate) fn start_proxy(&mut self, endpoints: &str, options: &Options) -> Result<()> {
        let proxy = self.host.command(bin("ipvs-proxy")?);
        let networks = ["--cluster-cidr", "172.7.0.0/16", "--service-cidr", "192.168.0.0/16"];
        let proxy = proxy.args(["--etcd-endpoints", endpoints, "--proxy-mode", &options.proxy]).args(networks);
        self.proxy = Some(proxy.start("ipvs-proxy")?);
        self.read[1] = 0;
        Ok(())
    }

    /// Waits until both daemons have done their first work.
    pub(crate) fn await_ready(&self, limit: Duration) -> Result<()> {
        if let Some(netd) = &self.netd {
            netd.wait_for_line("ready: every lease is in the kernel", limit)?;
        }
        self.proxy.as_ref().map_or(Ok(()), |proxy| proxy.wait_for_line("ready", limit).map(drop))
    }

    /// Ends a daemon: in order, or as a crash does.
    pub(crate) fn end(&mut self, daemon: Daemon, in_order: bool) -> Result<()> {
        let slot = if daemon == Daemon::Netd { &mut self.netd } else { &mut self.proxy };
        let Some(process) = slot.take() else { return Ok(()) };
        if !process.is_running() {
            self.ended_before.push(daemon.name());
        }
        let ended = if in_order {
            process.terminate(PROGRAM).and_then(|status| {
                ensure!(status.success(), "{} on {} ended with {status}", daemon.name(), self.name);
                Ok(())
            })
        } else {
            process.kill()
        };
        let log = process.log();
        let read = self.read.get(daemon.index()).copied().unwrap_or_default();
        self.unread.extend(log.lines().skip(read).map(|line| format!("{}: {line}", self.name)));
        let mut tail: Vec<&str> = log.lines().rev().take(2000).collect();
        tail.reverse();
        self.logs.push((daemon.name().to_owned(), tail.join("\n")));
        ended
    }

    /// Everything that a loss of power takes away, Pods aside.
    pub(crate) fn wipe(&mut self, gateway: &str) -> Result<()> {
        self.sh(WIPE)?;
        eventually(PROGRAM, || {
            let links = self.sh("ls /sys/class/net | grep -c -e veth -e flannel -e cbr0 || true")?;
            ensure!(links.trim() == "0", "{links} links are left");
            Ok(())
        })?;
        self.boot(gateway)
    }

    /// This node's subnet as its file names it.
    pub(crate) fn subnet(&self) -> Result<String> {
        let file = self.host.read("/run/flannel/subnet.env")?;
        let line = file.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        Ok(line.with_context(|| format!("no subnet in {file}"))?.to_owned())
    }

    /// Names of the daemons that have ended though nobody ended them.
    pub(crate) fn ended(&mut self) -> Vec<&'static str> {
        let mut ended = std::mem::take(&mut self.ended_before);
        for (daemon, process) in [(Daemon::Netd, &self.netd), (Daemon::Proxy, &self.proxy)] {
            if process.as_ref().is_some_and(|process| !process.is_running()) {
                ended.push(daemon.name());
            }
        }
        ended
    }

    /// The lines of the daemons that were not judged yet, those that have been ended meanwhile included.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let mut new = std::mem::take(&mut self.unread);
        for (daemon, process) in [(Daemon::Netd, &self.netd), (Daemon::Proxy, &self.proxy)] {
            let (Some(process), Some(read)) = (process, self.read.get_mut(daemon.index())) else { continue };
            let log = process.log();
            let lines = log.lines().count();
            new.extend(log.lines().skip(*read).map(|line| format!("{}: {line}", self.name)));
            *read = lines;
        }
        new
    }
}

/// One of the two daemons of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Daemon {
    Netd,
    Proxy,
}

impl Daemon {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Netd => "netd",
            Self::Proxy => "ipvs-proxy",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Netd => 0,
            Self::Proxy => 1,
        }
    }
}
