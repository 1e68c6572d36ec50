//! The stage: the reference cluster with etcd, the three programs and the Pods, brought up in the order an operator would.
//!
//! Invariant: programs are started as their units start them, and Pods are made as a container runtime makes them. What is
//! shown is what they do, not what the demo does for them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::cni::{Runtime, Sandbox};
use lab::{Cluster, Etcd, Host, Process, bin, echo, eventually};

use crate::Proxy;
use crate::report::{Report, ms};

const PREFIX: &str = "/coreos.com/network";
/// How long a program may take to do its first work; the lab kernel on a busy machine needs most of it.
const READY: Duration = Duration::from_secs(60);

/// A node with what runs on it.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) pods: Vec<Sandbox>,
    processes: Vec<Process>,
}

impl Node {
    fn run_pod(&mut self, runtime: &Runtime, name: &str, report: &mut Report) -> Result<Vec<String>> {
        let started = Instant::now();
        let pod = runtime.run_pod(&format!("{name}-{}", short(&self.host)))?;
        let took = started.elapsed();
        let name = pod.pod().name().to_owned();
        let [.., last] = self.host.address()?.octets();
        let inside = pod.address().to_string().starts_with(&format!("172.7.{last}."));
        let verdict = report.check(inside, &format!("{name} gets an address of its node"));
        let row = vec![name, short(&self.host), pod.address().to_string(), ms(took), verdict];
        self.pods.push(pod);
        Ok(row)
    }
}

/// Everything that is up.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) nodes: Vec<Node>,
    etcd: Etcd,
    servers: Vec<Process>,
}

impl Stage {
    /// Brings everything up and reports each step.
    pub(crate) fn raise(backend: &str, proxy: Proxy, report: &mut Report) -> Result<Self> {
        report.step("five machines on 10.4.7.0/24, etcd on three of them");
        let cluster = Cluster::reference()?;
        let started = Instant::now();
        let etcd = Etcd::start(cluster.with_role("etcd"))?;
        let hosts: Vec<Vec<String>> = cluster
            .hosts()
            .map(|host| Ok(vec![host.name().to_owned(), host.address()?.to_string()]))
            .collect::<Result<_>>()?;
        report.table(&["machine", "address"], &hosts);
        println!("  etcd: {} after {}", etcd.endpoints(), ms(started.elapsed()));
        let net_conf = net_conf(backend)?;
        etcd.put(&format!("{PREFIX}/config"), &net_conf)?;
        println!("  {PREFIX}/config = {net_conf}");
        let nodes = cluster
            .with_role("node")
            .map(|host| Ok(Node { host: host.clone(), pods: Vec::new(), processes: Vec::new() }))
            .collect::<Result<Vec<_>>>()?;
        let mut stage = Self { cluster, nodes, etcd, servers: Vec::new() };
        stage.start_netd(report)?;
        stage.run_pods(report)?;
        stage.serve(proxy, report)?;
        Ok(stage)
    }

    fn start_netd(&mut self, report: &mut Report) -> Result<()> {
        report.step("netd leases a Pod subnet on each node");
        let endpoints = self.etcd.endpoints();
        for node in &mut self.nodes {
            let netd = node.host.command(bin("netd")?);
            let netd = netd.args(["--etcd-endpoints", &endpoints, "--iface", "eth0", "--ip-masq"]);
            node.processes.push(netd.start("netd")?);
        }
        let mut rows = Vec::new();
        for node in &self.nodes {
            let started = Instant::now();
            let file = eventually(READY, || node.host.read("/run/flannel/subnet.env"))
                .with_context(|| format!("netd on {}", node.host.name()))?;
            let subnet = file.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap_or_default();
            let expected = format!("172.7.{}.1/24", node.host.address()?.octets()[3]);
            let verdict = report.check(subnet == expected, &format!("{} leases {expected}", node.host.name()));
            let text = file.trim().replace('\n', " ");
            rows.push(vec![node.host.name().to_owned(), text, ms(started.elapsed()), verdict]);
        }
        report.table(&["node", "/run/flannel/subnet.env", "waited", ""], &rows);
        self.await_routes()?;
        let leases: Vec<Vec<String>> = self
            .etcd
            .keys(&format!("{PREFIX}/subnets/"))?
            .into_iter()
            .map(|key| Ok(vec![key.clone(), self.etcd.get(&key)?.unwrap_or_default()]))
            .collect::<Result<_>>()?;
        report.table(&["lease", "value"], &leases);
        Ok(())
    }

    /// Waits until each node has a route to each other node's Pods.
    fn await_routes(&self) -> Result<()> {
        for node in &self.nodes {
            for other in self.nodes.iter().filter(|other| other.host.name() != node.host.name()) {
                let subnet = format!("172.7.{}.0/24", other.host.address()?.octets()[3]);
                eventually(READY, || {
                    let routes = node.host.run(&["ip", "route", "show", &subnet])?.stdout;
                    ensure!(!routes.trim().is_empty(), "{} has no route to {subnet}", node.host.name());
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// The first node runs flannel's stock list unchanged, the others ours: both are what a cluster may have.
    fn run_pods(&mut self, report: &mut Report) -> Result<()> {
        report.step("a container runtime makes two Pods on each node, with flannel's stock conflist and with ours");
        let plugin = bin("netd-cni")?;
        let (mut lists, mut rows) = (Vec::new(), Vec::new());
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let conflist = if index == 0 { "10-flannel.conflist" } else { "10-netd.conflist" };
            let content = fs::read_to_string(configs().join("cni").join(conflist)).context("read the conflist")?;
            let runtime = Runtime::new(&node.host);
            runtime.install(&plugin, &["netd-cni", "flannel", "portmap"])?;
            runtime.configure(conflist, &content)?;
            let text = content.split_whitespace().collect::<Vec<_>>().join(" ");
            lists.push(vec![short(&node.host), conflist.to_owned(), text]);
            for name in ["a", "b"] {
                rows.push(node.run_pod(&runtime, name, report)?);
            }
        }
        report.table(&["node", "conflist", "content"], &lists);
        report.table(&["Pod", "node", "address", "namespace and ADD", ""], &rows);
        Ok(())
    }

    fn serve(&mut self, mode: Proxy, report: &mut Report) -> Result<()> {
        report.step("a server in each Pod, Services over all four, ipvs-proxy on each node");
        for pod in self.nodes.iter().flat_map(|node| &node.pods) {
            self.servers.push(echo::serve(pod.pod(), pod.pod().name(), 80)?);
        }
        let outside = self.cluster.host("hdss7-200")?;
        self.servers.push(echo::serve(outside, "hdss7-200", 8080)?);
        let endpoints = self.etcd.endpoints();
        let first = self.nodes.first().context("a cluster without nodes")?;
        for name in ["web.yaml", "echo.yaml"] {
            let file = configs().join("services").join(name);
            let apply = first.host.command(bin("ipvs-proxy")?).arg("apply").arg("-f").arg(&file);
            let applied = apply.args(["--etcd-endpoints", &endpoints]).run()?;
            report.text(&format!("ipvs-proxy apply -f configs/services/{name}"), applied.stdout.trim());
        }
        for node in &mut self.nodes {
            let proxy = node.host.command(bin("ipvs-proxy")?);
            let networks = ["--cluster-cidr", "172.7.0.0/16", "--service-cidr", "192.168.0.0/16"];
            let proxy = proxy.args(["--etcd-endpoints", &endpoints, "--proxy-mode", mode.mode()]).args(networks);
            node.processes.push(proxy.start("ipvs-proxy")?);
        }
        if mode == Proxy::Nftables {
            self.route_services()?;
        }
        // What an operator counts: lines of real servers, or of endpoints in the map.
        let (words, of_endpoint): (&[&str], _) = match mode {
            Proxy::Ipvs => (&["ipvsadm", "-Ln"], "Masq"),
            Proxy::Nftables => (&["nft", "list", "map", "ip", "ipvs-proxy", "endpoints"], " : 172.7."),
        };
        for node in &self.nodes {
            eventually(READY, || {
                let count = node.host.run(words)?.stdout.matches(of_endpoint).count();
                ensure!(count == 8, "{} has {count} endpoints of 8", node.host.name());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives nodes the default route that they have in any cluster: without a route to a Service's address a node does not even
    /// try, where the address is not made local as it is for IPVS.
    fn route_services(&self) -> Result<()> {
        let gateway = self.cluster.host("hdss7-200")?.address()?.to_string();
        for node in &self.nodes {
            node.host.run(&["ip", "route", "replace", "default", "via", &gateway])?;
        }
        Ok(())
    }
}

/// The first word of a machine's name.
pub(crate) fn short(host: &Host) -> String {
    host.name().split('.').next().unwrap_or_default().to_owned()
}

fn configs() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("configs")
}

/// The shipped net-conf.json with the backend asked for, on one line.
fn net_conf(backend: &str) -> Result<String> {
    let text = fs::read_to_string(configs().join("net-conf.json")).context("read configs/net-conf.json")?;
    let mut value: serde_json::Value = serde_json::from_str(&text).context("configs/net-conf.json")?;
    if let Some(kind) = value.pointer_mut("/Backend/Type") {
        *kind = backend.into();
    }
    Ok(value.to_string())
}
