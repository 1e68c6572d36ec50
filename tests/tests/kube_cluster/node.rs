//! A node: a machine of the lab with containerd, kubelet and, where asked for, our programs as its processes.
//!
//! Invariant: what a node needs beside its programs is the same whoever makes the network.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use lab::kubernetes::{ApiServer, Kubelet};
use lab::{Host, Process, eventually};

use super::{IPVS, LIMIT, NFTABLES, Networks, Programs, of_ipv6};
use crate::cni_node::cri::Cri;
use crate::cni_node::{self, NATIVE, image};

const KUBECONFIG: &str = "/run/kubernetes/kubeconfig";

/// kube-proxy's default, which counts where a file configures ipvs-proxy.
const CLOSE_WAIT: &str = "--conntrack-tcp-timeout-close-wait=1h";

/// A node.
pub(crate) struct Node {
    // In the order of their end.
    pub(crate) kubelet: Kubelet,
    pub(crate) runtime: Cri,
    /// netd, then ipvs-proxy, where they are processes.
    pub(crate) daemons: Vec<Process>,
    pub(crate) host: Host,
    /// Of ipvs-proxy: its mode first.
    flags: [String; 3],
    asked: AtomicU32,
}

impl Node {
    pub(super) fn start(server: &ApiServer, host: &Host, programs: Programs, networks: Networks) -> Result<Self> {
        cni_node::show_empty_folders(host)?;
        host.run(&["ip", "route", "add", "default", "via", "10.4.7.11"])?;
        if networks.has_ipv6() {
            host.run(&["ip", "-6", "route", "add", "default", "via", &of_ipv6("hdss7-11")])?;
        }
        let flags = networks.flags(if let Programs::Processes(mode) = programs { mode } else { NFTABLES });
        let daemons = match programs {
            Programs::Nothing | Programs::DaemonSets(_) => Vec::new(),
            Programs::Processes(_) => {
                cni_node::install(host, NATIVE)?;
                processes(server, host, networks, &flags)?.into()
            }
        };
        let runtime = Cri::start_with(host, image::PAUSE)?;
        let kubelet = Kubelet::start(server, host)?;
        Ok(Self { kubelet, runtime, daemons, host: host.clone(), flags, asked: AtomicU32::new(0) })
    }

    /// Starts netd again, where it was a process and has ended.
    pub(crate) fn start_netd(&mut self) -> Result<()> {
        self.daemons[0] = netd(&self.host)?;
        Ok(())
    }

    /// Starts ipvs-proxy again, where it was a process and has ended.
    pub(crate) fn start_proxy(&mut self) -> Result<()> {
        self.daemons[1] = proxy(&self.host, KUBECONFIG, &self.flags)?;
        Ok(())
    }

    /// The same, from the server of this kubeconfig, which says itself where Services have their addresses.
    pub(crate) fn start_proxy_from(&mut self, kubeconfig: &str) -> Result<()> {
        self.daemons[1] = proxy(&self.host, kubeconfig, &self.flags[..2])?;
        Ok(())
    }

    /// Whether IPVS carries its Services.
    pub(crate) fn is_on_ipvs(&self) -> bool {
        self.flags[0].ends_with(IPVS)
    }

    /// The addresses that the plugin keeps for Pods.
    pub(crate) fn reservations(&self) -> Result<BTreeSet<String>> {
        let script = "mkdir -p /var/lib/cni/networks && cd /var/lib/cni/networks && find . -type f";
        let listed = self.host.run(&["bash", "-c", script])?.stdout;
        let names = listed.lines().filter_map(|line| line.rsplit('/').next()).map(str::to_owned);
        Ok(names.filter(|name| name.starts_with("172.7.")).collect())
    }

    /// Ends the first process of the container of this name as a crash does, where one runs, and says whether.
    pub(crate) fn kill_container(&self, name: &str) -> Result<bool> {
        let ctr =
            |words: &[&str]| Ok::<_, anyhow::Error>(self.host.run(&[&["ctr", "-n", "k8s.io"], words].concat())?.stdout);
        let filter = format!("labels.\"io.kubernetes.container.name\"=={name}");
        let known = ctr(&["containers", "list", "-q", &filter])?;
        let tasks = ctr(&["tasks", "list"])?;
        let runs = |id: &&str| tasks.lines().any(|task| task.starts_with(id) && task.ends_with("RUNNING"));
        let Some(id) = known.lines().find(runs) else { return Ok(false) };
        ctr(&["tasks", "kill", "--signal=SIGKILL", id]).map(|_| true)
    }

    /// Takes what a power loss takes: every process, every link but the machine's own and every rule, and the state of programs in `/run`.
    pub(crate) fn lose_power(&mut self) -> Result<()> {
        self.kubelet.process().kill()?;
        self.runtime.containerd().process().kill()?;
        // The machine's first process stands for its kernel; what is asked here is there as well, and ends by itself.
        let ids = "for id in $(ls /proc | grep -x '[0-9]*'); do [ $id -le 1 ] || [ $id = $$ ] || kill -9 $id 2>/dev/null; done; true";
        self.host.run(&["bash", "-c", ids])?;
        eventually(LIMIT, || {
            let left = self.host.run(&["bash", "-c", "cat /proc/[0-9]*/comm 2>/dev/null || true"])?;
            ensure!(!left.stdout.contains("shim"), "{}", left.stdout);
            Ok(())
        })?;
        let script = "cut -d' ' -f2 /proc/mounts | grep -E '^(/run/containerd|/run/netns|/var/lib/kubelet)/' | sort -r | xargs -r umount -l; \
            rm -rf /run/containerd /run/netns/* /run/netd /run/flannel /run/ipvs-proxy /run/cni; nft flush ruleset; \
            for link in $(ip -o link show | cut -d' ' -f2 | cut -d: -f1 | cut -d@ -f1); do \
              case $link in lo|eth0) ;; *) ip link delete $link 2>/dev/null || true ;; esac; done; \
            echo 0 >/proc/sys/net/ipv4/ip_forward";
        self.host.run(&["bash", "-c", script]).map(drop)
    }

    /// Starts what a machine starts when it gets power.
    pub(crate) fn get_power(&mut self) -> Result<()> {
        self.runtime.containerd_mut().start_again()?;
        self.kubelet.start_again()
    }

    /// Runs a program in a container.
    pub(crate) fn exec(&self, container: &str, words: &[&str]) -> Result<String> {
        let number = format!("test-{}", self.asked.fetch_add(1, Ordering::Relaxed));
        let exec = ["ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", &number, container];
        Ok(self.host.run(&[&exec[..], words].concat())?.stdout)
    }
}

/// netd and ipvs-proxy of a node, both from the API server, with one kubeconfig.
fn processes(server: &ApiServer, host: &Host, networks: Networks, flags: &[String]) -> Result<[Process; 2]> {
    host.write(KUBECONFIG, server.kubeconfig().to_string())?;
    host.write("/etc/kube-flannel/net-conf.json", networks.net_conf)?;
    Ok([netd(host)?, proxy(host, KUBECONFIG, flags)?])
}

impl Networks {
    /// What ipvs-proxy is told of them.
    fn flags(self, mode: &str) -> [String; 3] {
        [
            format!("--proxy-mode={mode}"),
            format!("--cluster-cidr={}", self.pods),
            format!("--service-cidr={}", self.services),
        ]
    }
}

fn netd(host: &Host) -> Result<Process> {
    let netd = host.command(lab::bin("netd")?).env("NODE_NAME", host.name());
    let flags = ["--kube-subnet-mgr", "--ip-masq", "--iface=eth0", &format!("--kubeconfig-file={KUBECONFIG}")];
    netd.args(flags).start("netd")
}

fn proxy(host: &Host, kubeconfig: &str, more: &[String]) -> Result<Process> {
    let proxy = host.command(lab::bin("ipvs-proxy")?).arg(CLOSE_WAIT).args(more);
    let proxy = proxy.args([format!("--kubeconfig={kubeconfig}"), format!("--hostname-override={}", host.name())]);
    proxy.start("ipvs-proxy")
}
