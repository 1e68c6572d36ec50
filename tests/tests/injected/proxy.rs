//! `ipvs-proxy` with a directory as its source, on either data path.
//!
//! Invariant: the data path is part of what is named, never of the words of the walk.

use anyhow::Result;
use injection::launcher;
use lab::{Command, Host};

use super::Scene;
use crate::proxy::{Nodes, SERVICES, WEB_SERVICE, slice};

/// What differs from one data path to the other.
pub(crate) struct DataPath {
    mode: &'static str,
    /// Prints what the kernel has of it.
    state: &'static str,
    signs: [&'static str; 2],
}

pub(crate) const NFTABLES: DataPath =
    DataPath { mode: "--proxy-mode=nftables", state: "true", signs: ["172.7.21.2 .", "172.7.21.3 ."] };

pub(crate) const IPVS: DataPath = DataPath {
    mode: "--proxy-mode=ipvs",
    state: "ipvsadm -Sn | sort; ip -4 -br address show dev kube-ipvs0; sysctl net.ipv4.vs.conntrack",
    signs: ["-r 172.7.21.2:80", "-r 172.7.21.3:80"],
};

/// A node with Pods and a Service.
pub(crate) struct Proxy {
    nodes: Nodes,
    path: &'static DataPath,
}

impl Proxy {
    pub(crate) fn start(path: &'static DataPath) -> Result<Self> {
        Ok(Self { nodes: Nodes::start()?, path })
    }
}

impl Scene for Proxy {
    fn signs(&self) -> [&'static str; 2] {
        self.path.signs
    }

    fn daemon(&self) -> Result<Command> {
        let command = self.node()?.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin("ipvs-proxy")?);
        let command = command.arg(format!("--services-dir={SERVICES}"));
        Ok(command.args([self.path.mode, "--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]))
    }

    fn node(&self) -> Result<&Host> {
        self.nodes.node()
    }

    fn state(&self) -> Result<String> {
        let common = "nft -s list ruleset | sed 's,whole since [0-9]*,whole,'; ip -br link | cut -d' ' -f1; ip -4 route show table all; ls /run/ipvs-proxy | grep -v http.sock; \
                      sysctl net.ipv4.ip_forward";
        Ok(self.node()?.command("sh").args(["-c", &format!("{}\n{common}", self.path.state)]).output()?.stdout)
    }

    fn clear(&self) -> Result<()> {
        self.node()?.command(lab::bin("ipvs-proxy")?).arg("--cleanup").output()?;
        self.node()?.run(&["sh", "-c", "rm -rf /run/ipvs-proxy; sysctl -qw net.ipv4.ip_forward=0"])?;
        self.nodes.publish("web.yaml", WEB_SERVICE)?;
        self.nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.2"]))
    }

    fn change(&self) -> Result<()> {
        self.nodes.publish("slice.yaml", &slice(&["172.7.21.3", "172.7.22.3"]))
    }

    fn is_in_place(&self) -> Result<bool> {
        let status = self.node()?.command(lab::bin("ipvs-proxy")?).arg("status").output()?;
        Ok(status.status.success())
    }
}
