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

use crate::report::{Report, ms};

const PREFIX: &str = "/coreos.com/network";
const CONFLIST: &str = "10-flannel.conflist";
/// How long a program may take to do its first work; the lab kernel on a busy machine needs most of it.
const READY: Duration = Duration::from_secs(60);

/// A node with what runs on it.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) pods: Vec<Sandbox>,
    processes: Vec<Process>,
}

/// Everything that is up.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) nodes: Vec<Node>,
    etcd: Etcd,
    servers: Vec<Process>,
}

impl Stage {
    /// Brings everything up and tells of each step.
    pub(crate) fn raise(backend: &str, report: &mut Report) -> Result<Self> {
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
        stage.serve(report)?;
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

    fn run_pods(&mut self, report: &mut Report) -> Result<()> {
        report.step("a container runtime makes two Pods on each node, with flannel's stock conflist");
        let conflist = fs::read_to_string(configs().join("cni").join(CONFLIST)).context("read the conflist")?;
        println!("  {}", conflist.split_whitespace().collect::<Vec<_>>().join(" "));
        let plugin = bin("netd-cni")?;
        let mut rows = Vec::new();
        for node in &mut self.nodes {
            let runtime = Runtime::new(&node.host);
            runtime.install(&plugin, &["flannel", "portmap"])?;
            runtime.configure(CONFLIST, &conflist)?;
            for name in ["a", "b"] {
                let started = Instant::now();
                let pod = runtime.run_pod(&format!("{name}-{}", short(&node.host)))?;
                let took = started.elapsed();
                let subnet = format!("172.7.{}.", node.host.address()?.octets()[3]);
                let inside = pod.address().to_string().starts_with(&subnet);
                let verdict = report.check(inside, &format!("{} gets an address of its node", pod.pod().name()));
                let pod_name = pod.pod().name().to_owned();
                rows.push(vec![pod_name, node.host.name().to_owned(), pod.address().to_string(), ms(took), verdict]);
                node.pods.push(pod);
            }
        }
        report.table(&["Pod", "node", "address", "namespace and ADD", ""], &rows);
        Ok(())
    }

    fn serve(&mut self, report: &mut Report) -> Result<()> {
        report.step("a server in each Pod, Service web 192.168.0.10:80 over all four, ipvs-proxy on each node");
        for pod in self.nodes.iter().flat_map(|node| &node.pods) {
            self.servers.push(echo::serve(pod.pod(), pod.pod().name(), 80)?);
        }
        let outside = self.cluster.host("hdss7-200")?;
        self.servers.push(echo::serve(outside, "hdss7-200", 8080)?);
        let endpoints = self.etcd.endpoints();
        let manifest = configs().join("services").join("web.yaml");
        let first = self.nodes.first().context("a cluster without nodes")?;
        first.host.write("/etc/web.yaml", fs::read(&manifest).context("read configs/services/web.yaml")?)?;
        let applied = first
            .host
            .command(bin("ipvs-proxy")?)
            .args(["apply", "-f", "/etc/web.yaml", "--etcd-endpoints", &endpoints])
            .run()?;
        report.text("ipvs-proxy apply -f web.yaml", applied.stdout.trim());
        for node in &mut self.nodes {
            let proxy = node.host.command(bin("ipvs-proxy")?);
            let proxy = proxy.args(["run", "--etcd-endpoints", &endpoints, "--cluster-cidr", "172.7.0.0/16"]);
            node.processes.push(proxy.start("ipvs-proxy")?);
        }
        for node in &self.nodes {
            eventually(READY, || {
                let table = node.host.run(&["ipvsadm", "-Ln"])?.stdout;
                let real = table.lines().filter(|line| line.trim_start().starts_with("->")).count();
                ensure!(real > 4, "{} has {} real servers of 4", node.host.name(), real.saturating_sub(1));
                Ok(())
            })?;
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
