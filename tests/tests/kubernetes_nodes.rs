//! Two real kubelets with containerd on the reference cluster, with the Pod network of netd and the plugin, and a whole control plane.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod netd_node;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_node::cri::Cri;
use cni_node::{NATIVE, Nodes, ask, containerd, image};
use lab::harness::Suite;
use lab::kubernetes::{ApiServer, ControlPlane, Kubelet, Release};
use lab::{Host, Need, eventually};
use serde_json::{Value, json};

/// Until a Pod or a Node is what it is to be: containerd copies an image for each container.
const LIMIT: Duration = Duration::from_secs(180);
const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];
/// Where the container of a Pod serves; its sandbox has port 80.
const PORT: u16 = 8080;

struct Cluster {
    // In the order of their end.
    _kubelets: Vec<Kubelet>,
    runtimes: Vec<Cri>,
    _control: ControlPlane,
    server: ApiServer,
    nodes: Nodes,
}

/// What is asked of a Deployment.
fn deployment(replicas: usize) -> Value {
    let port = PORT.to_string();
    let container = json!({"name": "web", "image": image::NAME, "imagePullPolicy": "Never",
        "command": ["httpd", "-f", "-p", port, "-h", "/www"], "ports": [{"containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}});
    let pod =
        json!({"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "containers": [container]});
    let labels = json!({"app": "web"});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}})
}

impl Cluster {
    fn start() -> Result<Self> {
        let nodes = Nodes::start([NATIVE; 2])?;
        let server = ApiServer::start(nodes.host("hdss7-11")?)?;
        let control = ControlPlane::start(&server, "172.7.0.0/16")?;
        let (mut runtimes, mut kubelets) = (Vec::new(), Vec::new());
        for name in NODES {
            let host = nodes.host(name)?;
            runtimes.push(Cri::start(host)?);
            kubelets.push(Kubelet::start(&server, host)?);
        }
        let cluster = Self { _kubelets: kubelets, runtimes, _control: control, server, nodes };
        eventually(LIMIT, || {
            let all = cluster.items("/api/v1/nodes")?;
            let is_ready = |node: &&Value| {
                let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
                conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            let ready = all.iter().filter(is_ready).count();
            ensure!(ready == NODES.len(), "{ready} Nodes are ready: {}", summary(&all));
            Ok(())
        })?;
        Ok(cluster)
    }

    fn items(&self, path: &str) -> Result<Vec<Value>> {
        Ok(self.server.get(path)?["items"].as_array().context("no list")?.clone())
    }

    fn host(&self, node: &str) -> Result<&Host> {
        self.nodes.host(node)
    }

    /// Waits until this many Pods are there, all ready, and gives the node and the address of each.
    fn pods(&self, wanted: usize) -> Result<Vec<(String, String)>> {
        eventually(LIMIT, || {
            let pods = self.items("/api/v1/namespaces/default/pods")?;
            let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
            let count = pods.iter().filter(ready).count();
            ensure!(pods.len() == wanted && count == wanted, "{count} of {} ready: {}", pods.len(), summary(&pods));
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok(pods.iter().map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]))).collect())
        })
    }

    /// Waits until each node keeps an address for its Pods and for nothing else.
    fn reservations_equal(&self, pods: &[(String, String)]) -> Result<()> {
        for name in NODES {
            let host = self.host(name)?;
            let own = pods.iter().filter(|(node, _)| node == host.name());
            let wanted: BTreeSet<String> = own.map(|(_, address)| address.clone()).collect();
            eventually(LIMIT, || {
                let listed = host.run(&["bash", "-c", "cd /var/lib/cni/networks && find . -type f"])?.stdout;
                let names = listed.lines().filter_map(|line| line.rsplit('/').next()).map(str::to_owned);
                let kept: BTreeSet<String> = names.filter(|name| name.starts_with("172.7.")).collect();
                ensure!(kept == wanted, "{name} keeps {kept:?}, its Pods have {wanted:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Conditions and states, for a message.
fn summary(objects: &[Value]) -> String {
    let short = |object: &Value| {
        let status = &object["status"];
        format!("{}: {} {}", object["metadata"]["name"], status["conditions"], status["containerStatuses"])
    };
    objects.iter().map(short).collect::<Vec<_>>().join("\n")
}

fn pods_of_a_deployment_on_two_kubelets_reach_each_other_and_leave_nothing() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.server.put(&deployment(2))?;
    cluster.pods(2)?;
    let scale = |replicas: usize| {
        let path = "/apis/apps/v1/namespaces/default/deployments/web";
        cluster.server.patch(path, &json!({"spec": {"replicas": replicas}}))
    };
    scale(8)?;
    let pods = cluster.pods(8)?;
    let used: BTreeSet<_> = pods.iter().map(|(node, _)| node.as_str()).collect();
    ensure!(used.len() == NODES.len(), "both nodes have Pods: {pods:?}");
    cluster.reservations_equal(&pods)?;
    // Each node's processes reach each Pod, over the tunnel where it is the other's.
    for name in NODES {
        for (_, address) in &pods {
            let said = ask(cluster.host(name)?, &format!("{address}:{PORT}"))?;
            ensure!(said.contains(" web-"), "{address} from {name}: {said}");
        }
    }
    // A Pod reaches every other, and is seen with its own address.
    let here = cluster.host("hdss7-21")?;
    let (_, own) = pods.iter().find(|(node, _)| node == here.name()).context("no Pod there")?;
    let id = sandbox_of(here, own)?;
    for (_, address) in pods.iter().filter(|(_, address)| address != own) {
        let said = cluster.runtimes[0].ask(&id, &format!("{address}:{PORT}"))?;
        ensure!(said.starts_with(&format!("{own} ")), "{address} saw {said}, not {own}");
    }
    scale(2)?;
    let pods = cluster.pods(2)?;
    cluster.reservations_equal(&pods)?;
    scale(0)?;
    cluster.pods(0)?;
    cluster.reservations_equal(&[])
}

/// The ID of the sandbox that has this address.
fn sandbox_of(host: &Host, address: &str) -> Result<String> {
    let printed = host.run(&["ctr", "-n", "k8s.io", "containers", "list", "-q"])?.stdout;
    let has = |id: &&str| {
        let asked =
            host.run(&["ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", "whose", id, "ip", "-o", "address"]);
        asked.is_ok_and(|printed| printed.stdout.contains(&format!(" {address}/")))
    };
    Ok(printed.lines().find(has).context("no container has it")?.to_owned())
}

fn main() -> ExitCode {
    Suite::new(&[Need::Vxlan, Need::Nftables])
        .unless(containerd::obstacle())
        .with_kubernetes(Release::V1_20)
        .run(lab::tests![pods_of_a_deployment_on_two_kubelets_reach_each_other_and_leave_nothing])
}
