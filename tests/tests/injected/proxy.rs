//! `ipvs-proxy` with a directory as its source, on either data path.
//!
//! Invariant: the data path is part of what is named, never of the words of the walk.

use std::cell::RefCell;
use std::net::UdpSocket;

use anyhow::{Context, Result};
use injection::launcher;
use lab::{Command, Etcd, Host};

use super::{DENSE, Scene, rules, says_all_in_place};
use crate::proxy::{Nodes, SERVICES, ask, client, families};

/// What differs from one data path to the other.
pub(crate) struct DataPath {
    pub(crate) mode: &'static str,
    /// Prints what the kernel has of it.
    state: &'static str,
    signs: [&'static str; 2],
}

pub(crate) const NFTABLES: DataPath =
    DataPath { mode: "--proxy-mode=nftables", state: "true", signs: ["172.7.21.2 .", "172.7.21.3 ."] };

pub(crate) const IPVS: DataPath = DataPath {
    mode: "--proxy-mode=ipvs",
    state: "ipvsadm -Sn | sort; ip -br address show dev kube-ipvs0; sysctl net.ipv4.vs.conntrack",
    signs: ["-r 172.7.21.2:80", "-r 172.7.21.3:80"],
};

/// A Service of both families whose clients stay, at a virtual address and at a port of each node.
const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 192.168.0.10
  clusterIPs: [192.168.0.10, \"fd09::10\"]
  ipFamilyPolicy: RequireDualStack
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{name: http, port: 80, nodePort: 30080}]
";

/// One of UDP in both families.
const DNS: &str = "apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  clusterIP: 192.168.0.53
  clusterIPs: [192.168.0.53, \"fd09::53\"]
  ipFamilyPolicy: RequireDualStack
  ports: [{name: dns, port: 53, protocol: UDP}]
";

/// One that comes, or goes.
fn passing(name: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: 192.168.0.{last}, ports: [{{name: http, port: 80}}]}}\n{}",
        slice(name, ("IPv4", "http", "TCP"), &["172.7.22.2"])
    )
}

/// A slice of a Service.
fn slice(service: &str, (family, port, protocol): (&str, &str, &str), pods: &[&str]) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
         metadata: {{name: {service}-{}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         ports: [{{name: {port}, port: 80, protocol: {protocol}}}]\nendpoints:\n",
        family.to_lowercase()
    );
    for pod in pods {
        text.push_str(&format!("- addresses: [\"{pod}\"]\n"));
    }
    text
}

/// Services before the change or behind it, each by its name; one that is not there has no text.
fn services(is_changed: bool) -> [(&'static str, Option<String>); 4] {
    let last = if is_changed { 3 } else { 2 };
    let [here, there, here6] = [format!("172.7.21.{last}"), format!("172.7.22.{last}"), format!("fd07:21::{last}")];
    let web =
        slice("web", ("IPv4", "http", "TCP"), &[&here, &there]) + &slice("web", ("IPv6", "http", "TCP"), &[&here6]);
    let dns = slice("dns", ("IPv4", "dns", "UDP"), &[&there]) + &slice("dns", ("IPv6", "dns", "UDP"), &[&here6]);
    [
        ("web", Some(format!("{WEB}{web}"))),
        ("dns", Some(format!("{DNS}{dns}"))),
        ("old", (!is_changed).then(|| passing("old", 77))),
        ("new", is_changed.then(|| passing("new", 78))),
    ]
}

/// A node with Pods and Services, and a client that goes on asking.
pub(crate) struct Proxy {
    nodes: Nodes,
    path: &'static DataPath,
    /// Where the Services are, unless they are files.
    etcd: Option<Etcd>,
    /// A flow of UDP that is older than the change.
    flow: RefCell<Option<UdpSocket>>,
}

impl Proxy {
    /// With files as its source.
    pub(crate) fn start(path: &'static DataPath) -> Result<Self> {
        Ok(Self { nodes: families::start()?, path, etcd: None, flow: RefCell::new(None) })
    }

    /// With etcd as its source.
    pub(crate) fn start_with_etcd(path: &'static DataPath) -> Result<Self> {
        let mut proxy = Self::start(path)?;
        proxy.etcd = Some(Etcd::start([proxy.nodes.outside()?])?);
        Ok(proxy)
    }

    /// The flag for its source.
    fn source(&self) -> String {
        let etcd = self.etcd.as_ref().map(|etcd| format!("--etcd-endpoints={}", etcd.endpoints()));
        etcd.unwrap_or_else(|| format!("--services-dir={SERVICES}"))
    }

    fn publish(&self, is_changed: bool) -> Result<()> {
        for (name, text) in services(is_changed) {
            match (&self.etcd, text) {
                (None, Some(text)) => self.nodes.publish(&format!("{name}.yaml"), &text)?,
                (None, None) => self.nodes.node()?.run(&["rm", "-f", &format!("{SERVICES}/{name}.yaml")]).map(drop)?,
                (Some(_), text) => {
                    let (verb, of_it) =
                        if text.is_some() { ("apply", text) } else { ("delete", Some(passing(name, 7))) };
                    let command = self.nodes.node()?.command(lab::bin("ipvs-proxy")?).arg(self.source());
                    // What is not there is deleted.
                    command.args([verb, "-f", "-"]).input(of_it.unwrap_or_default()).output()?;
                }
            }
        }
        Ok(())
    }

    /// Who answers the flow.
    fn answers(&self) -> String {
        let flow = self.flow.borrow();
        flow.as_ref().context("no flow").and_then(ask).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Scene for Proxy {
    /// Beside IPVS, which is compared each second, a try of the tables has more operations than elsewhere.
    fn apart(&self) -> usize {
        if self.path.mode == IPVS.mode { 61 } else { DENSE }
    }

    fn signs(&self) -> [&'static str; 2] {
        self.path.signs
    }

    fn daemon(&self) -> Result<Command> {
        let command = self.node()?.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin("ipvs-proxy")?);
        Ok(command
            .args([self.source().as_str(), self.path.mode, "--nodeport-addresses=10.4.7.0/24,fd04:7::/64"])
            .args(families::DUAL))
    }

    fn node(&self) -> Result<&Host> {
        self.nodes.node()
    }

    fn state(&self) -> Result<String> {
        let common = "ip -br link | cut -d' ' -f1; ip -4 route show table all; \
                      ip -6 route show table all | grep -v fe80 | sort; ls /run/ipvs-proxy | grep -v http.sock; \
                      sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding";
        let state = self.node()?.command("sh").args(["-c", &format!("{}\n{common}", self.path.state)]).output()?.stdout;
        Ok(format!("{}{state}{} answers\n", rules(self.node()?)?, self.answers()))
    }

    fn clear(&self) -> Result<()> {
        self.node()?.command(lab::bin("ipvs-proxy")?).arg("--cleanup").output()?;
        let script = "rm -rf /run/ipvs-proxy; sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0";
        self.node()?.run(&["sh", "-c", script])?;
        self.flow.replace(Some(client(self.nodes.pod("172.7.21.2")?)?));
        self.publish(false)
    }

    fn change(&self) -> Result<()> {
        self.publish(true)
    }

    fn is_in_place(&self) -> Result<()> {
        says_all_in_place(self.node()?, "ipvs-proxy")
    }
}
