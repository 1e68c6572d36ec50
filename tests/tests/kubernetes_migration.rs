//! From flannel to netd and from kube-proxy to ipvs-proxy, node by node and back, on a cluster with real kubelets: each command is the one
//! of the document, and not a ping, request or connection is lost from before the first to behind the last.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod kube_migration;
mod netd_node;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use kube_cluster::pods::Pod;
use kube_cluster::{Cluster, LIMIT, NODES, OUTSIDE, Programs};
use kube_migration::document::Document;
use kube_migration::flannel::{self, Flannel};
use kube_migration::load::{self, Connection, Load};
use kube_migration::shell::Shell;
use kube_migration::{kube_proxy, web};
use lab::{Host, echo, eventually};

/// The port of a node by which the first Pod is reached; the others have the next ones.
const FIRST_PORT: u16 = 8000;
/// The node that goes back.
const ONE: &str = NODES[0];

/// Headings of both documents.
const OVER: &str = "One node after another";
const WATCH: &str = "What to watch";
const LAST: &str = "The last step";

/// The cluster that one way over has left to the next.
static KEPT: Mutex<Option<Walk>> = Mutex::new(None);

/// A cluster with flannel, or with netd behind the way from it, kube-proxy, and a Service of two Pods.
struct Walk {
    load: Load,
    pods: Vec<Pod>,
    flannel: Flannel,
    /// What kubelet has in the tables of iptables, on each node.
    kubelets: Vec<BTreeSet<String>>,
    shell: Shell,
    cluster: Cluster,
}

impl Walk {
    fn start() -> Result<Self> {
        let cluster = Cluster::start(Programs::Nothing)?;
        let shell = Shell::open(&cluster)?;
        let flannel = Flannel::bring(&cluster, &shell)?;
        cluster.ready()?;
        let kubelets = NODES.map(|node| kube_proxy::kubelets_rules(cluster.host(node)?));
        let kubelets = kubelets.into_iter().collect::<Result<_>>()?;
        kube_proxy::bring(&cluster, &shell)?;
        cluster.apply(&web::service())?;
        Ok(Self { load: Load::default(), pods: Vec::new(), flannel, kubelets, shell, cluster })
    }

    /// The cluster that was kept, or one with flannel, with its Pods and their clients.
    fn begin() -> Result<Self> {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut walk = kept.map_or_else(Self::start, Ok)?;
        walk.add_pods("old")?;
        walk.load = walk.load()?;
        Ok(walk)
    }

    /// Ends the clients, of which nobody has lost anything, and the Pods, and keeps the cluster.
    fn end(mut self) -> Result<()> {
        println!("{}", std::mem::take(&mut self.load).lost_nothing()?);
        self.delete_pods()?;
        self.pods.clear();
        *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
        Ok(())
    }

    /// One more Pod on each node, with a port of the node.
    fn add_pods(&mut self, name: &str) -> Result<()> {
        for (number, node) in NODES.iter().enumerate() {
            let name = format!("{name}-{}", node.trim_start_matches("hdss7-"));
            let port = FIRST_PORT + u16::try_from(self.pods.len() + number)?;
            self.cluster.apply(&web::pod(&name, self.host(node)?, port)?)?;
        }
        let all = self.cluster.pods(self.pods.len() + NODES.len())?;
        let known: BTreeSet<_> = self.pods.iter().map(|pod| pod.name.clone()).collect();
        let mut added: Vec<_> = all.into_iter().filter(|pod| !known.contains(&pod.name)).collect();
        added.sort_by(|one, other| one.name.cmp(&other.name));
        self.pods.extend(added);
        self.all_are_reached()
    }

    /// Pings between the Pods both ways; requests from each Pod, each node and outside, on connections of their own and on kept ones.
    fn load(&self) -> Result<Load> {
        let mut load = Load::default();
        let [one, other] = [&self.pods[0], &self.pods[1]];
        let outside = self.cluster.host(OUTSIDE)?;
        for (from, to) in [(one, other), (other, one)] {
            load.ping(&web::network(&self.cluster, from)?, &to.address)?;
            load.ask(web::network(&self.cluster, from)?, web::ADDRESS, Connection::New)?;
            load.ask(web::network(&self.cluster, from)?, web::ADDRESS, Connection::Kept)?;
        }
        for (number, node) in NODES.into_iter().enumerate() {
            let host = self.cluster.host(node)?;
            load.ask(host.clone(), web::ADDRESS, Connection::New)?;
            let ports = [web::NODE_PORT, FIRST_PORT + u16::try_from(number)?];
            for port in ports.map(|port| format!("{}:{port}", host.address().unwrap())) {
                load.ask(outside.clone(), &port, Connection::New)?;
            }
            load.ask(outside.clone(), &format!("{}:{}", host.address()?, web::NODE_PORT), Connection::Kept)?;
        }
        Ok(load)
    }

    fn host(&self, node: &str) -> Result<&Host> {
        self.cluster.host(node)
    }

    /// Runs the block of a document in which this stands, for a node.
    fn for_node(&self, document: &Document, heading: &str, part: &str, node: &str) -> Result<String> {
        let said = self.shell.on_node(&document.block(heading, part)?, self.host(node)?.name());
        said.with_context(|| self.cluster.report())
    }

    /// Runs it for the cluster.
    fn for_all(&self, document: &Document, heading: &str, part: &str) -> Result<String> {
        self.shell.run(&document.block(heading, part)?).with_context(|| self.cluster.report())
    }

    /// Every Pod is reached from the first Pod of each node.
    fn all_are_reached(&self) -> Result<()> {
        for from in &self.pods[..NODES.len()] {
            let place = web::network(&self.cluster, from)?;
            for pod in &self.pods {
                let server = format!("{}:8080", pod.address).parse()?;
                let answer = eventually(LIMIT, || echo::ask_tcp(&place, server, load::EARLY))?;
                let seen = answer.client.ip().to_string();
                ensure!(answer.name == pod.name && seen == from.address, "{answer:?} from {from:?} to {pod:?}");
            }
        }
        Ok(())
    }

    /// Deletes every Pod, and waits until no address and no rule of it is left.
    fn delete_pods(&self) -> Result<()> {
        for pod in &self.pods {
            self.cluster.server.delete(&format!("/api/v1/namespaces/default/pods/{}", pod.name))?;
        }
        self.cluster.reservations_equal(&[])?;
        for name in NODES {
            let host = self.host(name)?;
            eventually(LIMIT, || {
                let rules = host.run(&["nft", "list", "ruleset"])?.stdout;
                let is_its = |line: &&str| self.pods.iter().any(|pod| line.contains(&format!("{}:8080", pod.address)));
                let left: Vec<_> = rules.lines().filter(is_its).collect();
                ensure!(left.is_empty(), "rules of Pods are left on {name}: {left:#?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A node goes from flannel to netd.
    fn over_to_netd(&self, document: &Document, node: &str) -> Result<()> {
        let link = |host: &Host| host.read("/sys/class/net/flannel.1/ifindex");
        let before = link(self.host(node)?)?;
        self.for_node(document, OVER, "kubectl label node", node)?;
        self.flannel.annotations_are_its(&self.cluster, node)?;
        ensure!(link(self.host(node)?)? == before, "flannel.1 of {node} was made anew");
        let status = eventually(LIMIT, || self.for_node(document, WATCH, "netd status", node))?;
        ensure!(status.contains("172.7."), "{status}");
        self.load.flows(&format!("{node} has gone over"))
    }

    /// A node goes from kube-proxy to ipvs-proxy.
    fn over_to_ours(&self, document: &Document, node: &str) -> Result<()> {
        let said = self.for_node(document, OVER, "kubectl label node", node)?;
        ensure!(said.contains("chains of nft table ip nat"), "{said}");
        self.has_kubelets_rules(node)?;
        eventually(LIMIT, || self.for_node(document, WATCH, "ipvs-proxy status", node))?;
        self.load.flows(&format!("{node} has gone over"))
    }

    /// A node without a kube-proxy has what kubelet has made, and nothing of kube-proxy's.
    fn has_kubelets_rules(&self, node: &str) -> Result<()> {
        let number = NODES.iter().position(|name| *name == node).context("a node")?;
        let (left, kubelets) = (kube_proxy::rules(self.host(node)?)?, &self.kubelets[number]);
        ensure!(&left == kubelets, "{node} has {left:#?}, and its kubelet made {kubelets:#?}");
        Ok(())
    }
}

fn a_cluster_moves_from_flannel_to_netd_and_a_node_back_without_a_loss() -> Result<()> {
    let mut walk = Walk::begin()?;
    let document = Document::read("migrate-from-flannel.md")?;
    let said = walk.for_all(&document, "Before", "net-conf")?;
    ensure!(said.contains("172.7.0.0/16"), "{said}");
    walk.for_all(&document, OVER, "kubectl apply -k")?;
    walk.load.flows("the roll of flannel")?;
    for node in NODES {
        walk.over_to_netd(&document, node)?;
    }
    walk.add_pods("new")?;
    walk.for_node(&document, "Back", "kubectl label node", ONE)?;
    walk.flannel.starts(&walk.cluster, ONE)?;
    walk.load.flows("a node has gone back")?;
    let host = walk.host(ONE)?.clone();
    host.run(&["sh", "-ec", &document.block("Back", "ip route flush")?])?;
    let left = host.run(&["sh", "-c", "ip route show proto 121; nft list tables | grep -E ' netd$' || true"])?.stdout;
    ensure!(left.is_empty(), "left of netd: {left}");
    walk.load.flows("what netd had put there is gone")?;
    walk.flannel.annotations_are_its(&walk.cluster, ONE)?;
    walk.add_pods("back")?;
    walk.over_to_netd(&document, ONE)?;
    walk.for_all(&document, LAST, "kubectl delete namespace")?;
    for node in NODES {
        let said = walk.for_node(&document, LAST, "--flannel-rules", node)?;
        ensure!(said.contains("FLANNEL-POSTRTG") && said.contains("removed"), "{said}");
        flannel::left_no_rule(walk.host(node)?)?;
    }
    walk.for_all(&document, LAST, "overlays/netd")?;
    for node in NODES {
        walk.host(node)?.run(&["sh", "-ec", &document.block(LAST, "rm ")?])?;
    }
    walk.add_pods("last")?;
    walk.end()
}

fn a_cluster_moves_from_kube_proxy_to_ours_and_a_node_back_without_a_loss() -> Result<()> {
    let mut walk = Walk::begin()?;
    let document = Document::read("migrate-from-kube-proxy.md")?;
    let said = walk.for_all(&document, "Before", "get configmap kube-proxy")?;
    ensure!(said.contains("clusterCIDR: 172.7.0.0/16"), "{said}");
    walk.for_all(&document, "Before", "create configmap kubernetes-api")?;
    walk.for_all(&document, OVER, "kubectl apply -k")?;
    walk.load.flows("the roll of kube-proxy")?;
    for node in NODES {
        walk.over_to_ours(&document, node)?;
    }
    walk.add_pods("new")?;
    walk.for_node(&document, "Back", "service-proxy=both", ONE)?;
    let host = walk.host(ONE)?.clone();
    kube_proxy::serves(&host)?;
    walk.for_node(&document, "Back", "cleanup-NODE", ONE)?;
    let tables = host.run(&["nft", "list", "tables"])?.stdout;
    ensure!(!tables.contains("ipvs-proxy"), "left of ours: {tables}");
    ensure!(kube_proxy::rules(&host)?.iter().any(|rule| rule.contains("KUBE-SVC-")), "kube-proxy has no rules");
    walk.load.flows("a node has gone back")?;
    walk.add_pods("back")?;
    walk.over_to_ours(&document, ONE)?;
    walk.for_all(&document, LAST, "delete daemonset")?;
    walk.add_pods("last")?;
    for node in NODES {
        walk.has_kubelets_rules(node)?;
        walk.host(node)?.run(&["curl", "-fsS", "--max-time", "5", "http://127.0.0.1:10256/healthz"])?;
    }
    walk.end()
}

fn main() -> ExitCode {
    // In this order: the second goes on where the first has ended, or begins with a cluster of its own where it runs alone.
    let suite = kube_cluster::suite().unless(flannel::obstacle()).with_kubernetes_tools().side_by_side(1);
    let verdict = suite.run(lab::tests![
        a_cluster_moves_from_flannel_to_netd_and_a_node_back_without_a_loss,
        a_cluster_moves_from_kube_proxy_to_ours_and_a_node_back_without_a_loss,
    ]);
    drop(KEPT.lock().unwrap_or_else(PoisonError::into_inner).take());
    verdict
}
