//! Real Kubernetes on the reference cluster: API server, controllers and scheduler on one machine, two nodes with kubelet and containerd.
//!
//! Invariant: everything ends with its value. Nothing of flannel or kube-proxy runs unless a test starts it.
#![allow(dead_code, reason = "each test binary uses its part")]

mod collect;
pub(crate) mod equal;
pub(crate) mod load;
pub(crate) mod manifests;
pub(crate) mod node;
pub(crate) mod pods;
pub(crate) mod shared;

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use lab::harness::Suite;
use lab::kubernetes::{ApiServer, ControlPlane, Release};
use lab::{Host, Need, eventually};
use serde_json::{Value, json};

use crate::cni_node::{containerd, ours};
use collect::Collector;
use node::Node;
use pods::Pod;

/// Until a Pod or a Node is what it is to be: containerd copies an image for each container, in the lab kernel for minutes.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
pub(crate) const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];
/// A machine that is no node and runs nothing of Kubernetes.
pub(crate) const OUTSIDE: &str = "hdss7-200";

/// What makes the Pod network and Services of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Programs {
    /// netd and ipvs-proxy, in this mode, as processes of each node, the plugin installed.
    Processes(&'static str),
    /// Our DaemonSets, from this overlay of `configs/kubernetes` and the image of the Containerfile.
    DaemonSets(&'static str),
    /// Nothing but the image: no plugin is installed, and no Node gets ready until the test has seen to it.
    Nothing,
}

/// The networks of Pods and Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Networks {
    pods: &'static str,
    services: &'static str,
    net_conf: &'static str,
}

/// A mode of ipvs-proxy, as its flag names it.
pub(crate) const NFTABLES: &str = "nftables";
pub(crate) const IPVS: &str = "ipvs";

const IPV4: Networks = Networks {
    pods: "172.7.0.0/16",
    services: "192.168.0.0/16",
    net_conf: r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#,
};

/// The same with networks of IPv6 beside them.
const BOTH: Networks = Networks {
    pods: "172.7.0.0/16,fd00:7::/48",
    services: "192.168.0.0/16,fd00:192:168::/112",
    net_conf: r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"}}"#,
};

impl Networks {
    fn has_ipv6(self) -> bool {
        self.pods.contains(':')
    }
}

/// The cluster.
pub(crate) struct Cluster {
    // In the order of their end.
    _collector: Collector,
    pub(crate) nodes: Vec<Node>,
    pub(crate) control: ControlPlane,
    pub(crate) server: ApiServer,
    pub(crate) machines: lab::Cluster,
}

impl Cluster {
    /// Has each Pod of the Deployment at `path` replaced by a new one, and waits until that is done.
    pub(crate) fn roll(&self, path: &str, replicas: usize) -> Result<()> {
        let round = json!({"spec": {"template": {"metadata": {"annotations": {"round": "second"}}}}});
        self.server.patch(path, &round)?;
        eventually(LIMIT, || {
            let found = self.server.get(path)?;
            let counts = ["replicas", "updatedReplicas", "availableReplicas"];
            let is_so = found["status"]["observedGeneration"] == found["metadata"]["generation"]
                && counts.iter().all(|count| found["status"][count] == replicas);
            ensure!(is_so, "{}", found["status"]);
            Ok(())
        })
    }

    /// Starts it. With programs the Nodes are ready then; without they are there.
    pub(crate) fn start(programs: Programs) -> Result<Self> {
        Self::start_with(programs, &[])
    }

    /// The same, with these flags of API server and controllers.
    pub(crate) fn start_with(programs: Programs, flags: &[&str]) -> Result<Self> {
        Self::start_in(IPV4, programs, flags)
    }

    /// Starts one of both families, whose programs are processes of the nodes.
    pub(crate) fn start_dual() -> Result<Self> {
        let services = format!("--service-cluster-ip-range={}", BOTH.services);
        Self::start_in(BOTH, Programs::Processes(NFTABLES), &["--feature-gates=IPv6DualStack=true", &services])
    }

    fn start_in(networks: Networks, programs: Programs, flags: &[&str]) -> Result<Self> {
        let machines = lab::Cluster::reference()?;
        for name in NODES.iter().chain([&OUTSIDE]).filter(|_| networks.has_ipv6()) {
            let address = format!("{}/64", of_ipv6(name));
            machines.host(name)?.run(&["ip", "-6", "address", "add", &address, "dev", "eth0", "nodad"])?;
        }
        // The image is built while the control plane starts, which takes as long.
        let (server, control, nodes) = thread::scope(|scope| {
            let is_image_needed = !matches!(programs, Programs::Processes(_));
            let image = is_image_needed.then(|| scope.spawn(|| manifests::build_image(&machines)));
            let (server, control) = control_plane(machines.host("hdss7-11")?, networks, flags)?;
            let mut nodes = Vec::new();
            for name in NODES {
                nodes.push(Node::start(&server, machines.host(name)?, programs, networks)?);
            }
            if let Some(image) = image {
                image.join().map_err(|_| anyhow!("the building of the image has panicked"))??;
                manifests::give_image(&machines, &nodes)?;
            }
            Ok::<_, anyhow::Error>((server, control, nodes))
        })?;
        let collector = Collector::start(server.another_client())?;
        let cluster = Self { _collector: collector, nodes, control, server, machines };
        match programs {
            Programs::Nothing => return cluster.eventually_nodes("there", |_| true).map(|()| cluster),
            Programs::Processes(_) => {}
            Programs::DaemonSets(overlay) => cluster.deploy(overlay)?,
        }
        cluster.ready()?;
        Ok(cluster)
    }

    /// Waits until both Nodes are ready.
    pub(crate) fn ready(&self) -> Result<()> {
        self.eventually_nodes("ready", |node| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        })
    }

    fn eventually_nodes(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        eventually(LIMIT, || {
            let all = self.items("/api/v1/nodes")?;
            let count = all.iter().filter(|node| is_so(node)).count();
            ensure!(count == NODES.len(), "{count} Nodes are {what}: {}", summary(&all));
            Ok(())
        })
    }

    /// The objects of a collection, such as `/api/v1/nodes`.
    pub(crate) fn items(&self, path: &str) -> Result<Vec<Value>> {
        Ok(self.server.get(path)?["items"].as_array().context("no list")?.clone())
    }

    /// A machine, by its short or its whole name.
    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.machines.host(name)
    }

    /// A node, by its short or its whole name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        let whole = self.host(name)?.name();
        self.nodes.iter().find(|node| node.host.name() == whole).with_context(|| format!("{name} is no node"))
    }

    /// A node whose programs are to be started again.
    pub(crate) fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let whole = self.host(name)?.name().to_owned();
        self.nodes.iter_mut().find(|node| node.host.name() == whole).with_context(|| format!("{name} is no node"))
    }

    /// Makes an object what is written here.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        self.server.put(object).map(drop)
    }

    /// Asks for another number of Pods of a Deployment in the namespace `default`.
    pub(crate) fn scale(&self, deployment: &str, replicas: usize) -> Result<()> {
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{deployment}");
        self.server.patch(&path, &json!({"spec": {"replicas": replicas}})).map(drop)
    }

    /// Has a Service of the namespace `default` offered at a port of each node, which the server chooses, and gives both places.
    pub(crate) fn offer_at_nodes(&self, service: &str) -> Result<[String; 2]> {
        let path = format!("/api/v1/namespaces/default/services/{service}");
        let offered = self.server.patch(&path, &json!({"spec": {"type": "NodePort"}}))?;
        let port = offered["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
        let [one, other] = NODES.map(|name| Ok::<_, anyhow::Error>(format!("{}:{port}", self.host(name)?.address()?)));
        Ok([one?, other?])
    }

    /// Waits until this many Pods are in the namespace `default`, all ready, and gives them.
    pub(crate) fn pods(&self, wanted: usize) -> Result<Vec<Pod>> {
        self.pods_of("", wanted)
    }

    /// The same of the Pods that a label selector such as `app=web` finds.
    pub(crate) fn pods_of(&self, selector: &str, wanted: usize) -> Result<Vec<Pod>> {
        eventually(LIMIT, || {
            let found = self.items(&format!("/api/v1/namespaces/default/pods?labelSelector={selector}"))?;
            let ready = found.iter().filter(|pod| pods::is_ready(pod)).count();
            ensure!(found.len() == wanted && ready == wanted, "{ready} of {} ready: {}", found.len(), summary(&found));
            Ok(found.iter().map(Pod::of).collect())
        })
    }

    /// Waits until each node keeps an address for each of these Pods and for nothing else.
    pub(crate) fn reservations_equal(&self, pods: &[Pod]) -> Result<()> {
        for node in &self.nodes {
            let wanted: BTreeSet<String> =
                pods.iter().filter(|pod| pod.node == node.host.name()).map(|pod| pod.address.clone()).collect();
            eventually(LIMIT, || {
                let kept = node.reservations()?;
                ensure!(kept == wanted, "{} keeps {kept:?}, its Pods have {wanted:?}", node.host.name());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Runs a program in the first container of a Pod and gives what it printed. What one prints that ends at once may be lost.
    pub(crate) fn exec(&self, pod: &Pod, words: &[&str]) -> Result<String> {
        self.node(&pod.node)?.exec(&pod.container, words)
    }

    /// What the image's server at `url` answers to a Pod, as [`cni_node::ask`](crate::cni_node::ask).
    pub(crate) fn ask_from(&self, pod: &Pod, url: &str) -> Result<String> {
        self.node(&pod.node)?.runtime.ask(&pod.container, url)
    }
}

/// The address of IPv6 that a machine of a cluster of both families has.
pub(crate) fn of_ipv6(name: &str) -> String {
    format!("fd00:10:4:7::{}", name.trim_start_matches("hdss7-"))
}

/// API server, controllers and scheduler on a machine.
fn control_plane(host: &Host, networks: Networks, flags: &[&str]) -> Result<(ApiServer, ControlPlane)> {
    host.write("/run/audit.yaml", manifests::audit_policy().to_string())?;
    let audit = ["--audit-policy-file=/run/audit.yaml", &format!("--audit-log-path={}", manifests::AUDIT)];
    let server = ApiServer::start_for_pods(host, &[&audit, flags].concat())?;
    let control = ControlPlane::start_with(&server, networks.pods, flags)?;
    Ok((server, control))
}

/// Conditions and states, for a message.
fn summary(objects: &[Value]) -> String {
    let short = |object: &Value| {
        let status = &object["status"];
        format!("{}: {} {}", object["metadata"]["name"], status["conditions"], status["containerStatuses"])
    };
    objects.iter().map(short).collect::<Vec<_>>().join("\n")
}

/// A suite on such clusters whose programs are DaemonSets.
pub(crate) fn suite() -> Suite {
    Suite::new(&[Need::Vxlan, Need::Nftables])
        .unless(ours::obstacle().or_else(containerd::obstacle))
        .with_kubernetes(Release::V1_20)
        .with_kubernetes_tools()
}
