//! A node: a machine of the lab with containerd, kubelet and, where asked for, our programs as its processes.
//!
//! Invariant: what a node needs beside its programs is the same whoever makes the network.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use lab::kubernetes::{ApiServer, Kubelet};
use lab::{Host, Process};

use super::Programs;
use crate::cni_node::cri::Cri;
use crate::cni_node::{self, NATIVE, image};

const KUBECONFIG: &str = "/run/kubernetes/kubeconfig";

const SERVICES: &str = "--service-cidr=192.168.0.0/16";

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
    asked: AtomicU32,
}

impl Node {
    pub(super) fn start(server: &ApiServer, host: &Host, programs: Programs) -> Result<Self> {
        cni_node::show_empty_folders(host)?;
        host.run(&["ip", "route", "add", "default", "via", "10.4.7.11"])?;
        let daemons = match programs {
            Programs::Nothing | Programs::DaemonSets(_) => Vec::new(),
            Programs::Processes => {
                cni_node::install(host, NATIVE)?;
                processes(server, host)?.into()
            }
        };
        let runtime = Cri::start_with(host, image::PAUSE)?;
        let kubelet = Kubelet::start(server, host)?;
        Ok(Self { kubelet, runtime, daemons, host: host.clone(), asked: AtomicU32::new(0) })
    }

    /// Starts netd again, where it was a process and has ended.
    pub(crate) fn start_netd(&mut self) -> Result<()> {
        self.daemons[0] = netd(&self.host)?;
        Ok(())
    }

    /// Starts ipvs-proxy again, where it was a process and has ended.
    pub(crate) fn start_proxy(&mut self) -> Result<()> {
        self.daemons[1] = proxy(&self.host, KUBECONFIG, &[SERVICES])?;
        Ok(())
    }

    /// The same, from the server of this kubeconfig, which says itself where Services have their addresses.
    pub(crate) fn start_proxy_from(&mut self, kubeconfig: &str) -> Result<()> {
        self.daemons[1] = proxy(&self.host, kubeconfig, &[])?;
        Ok(())
    }

    /// The addresses that the plugin keeps for Pods.
    pub(crate) fn reservations(&self) -> Result<BTreeSet<String>> {
        let script = "mkdir -p /var/lib/cni/networks && cd /var/lib/cni/networks && find . -type f";
        let listed = self.host.run(&["bash", "-c", script])?.stdout;
        let names = listed.lines().filter_map(|line| line.rsplit('/').next()).map(str::to_owned);
        Ok(names.filter(|name| name.starts_with("172.7.")).collect())
    }

    /// Runs a program in a container.
    pub(crate) fn exec(&self, container: &str, words: &[&str]) -> Result<String> {
        let number = format!("test-{}", self.asked.fetch_add(1, Ordering::Relaxed));
        let exec = ["ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", &number, container];
        Ok(self.host.run(&[&exec[..], words].concat())?.stdout)
    }
}

/// netd and ipvs-proxy of a node, both from the API server, with one kubeconfig.
fn processes(server: &ApiServer, host: &Host) -> Result<[Process; 2]> {
    host.write(KUBECONFIG, server.kubeconfig().to_string())?;
    host.write("/etc/kube-flannel/net-conf.json", r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
    Ok([netd(host)?, proxy(host, KUBECONFIG, &[SERVICES])?])
}

fn netd(host: &Host) -> Result<Process> {
    let netd = host.command(lab::bin("netd")?).env("NODE_NAME", host.name());
    let flags = ["--kube-subnet-mgr", "--ip-masq", "--iface=eth0", &format!("--kubeconfig-file={KUBECONFIG}")];
    netd.args(flags).start("netd")
}

fn proxy(host: &Host, kubeconfig: &str, more: &[&str]) -> Result<Process> {
    let flags = ["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16", CLOSE_WAIT];
    let proxy = host.command(lab::bin("ipvs-proxy")?).args(flags).args(more);
    let proxy = proxy.args([format!("--kubeconfig={kubeconfig}"), format!("--hostname-override={}", host.name())]);
    proxy.start("ipvs-proxy")
}
