//! Two real kubelets with containerd on the reference cluster: control plane of Kubernetes, network and Services of our three programs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod netd_node;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_node::cri::Cri;
use cni_node::{NATIVE, ask, containerd, furnish, image};
use lab::harness::Suite;
use lab::kubernetes::{ApiServer, ControlPlane, Kubelet, Release};
use lab::{Host, Need, Process, eventually};
use serde_json::{Value, json};

/// Until a Pod or a Node is what it is to be: containerd copies an image for each container.
const LIMIT: Duration = Duration::from_secs(180);
const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];
/// Where the container of a Pod serves; its sandbox has port 80.
const PORT: u16 = 8080;

/// The address of the Service, which no route but the default one leads to.
const WEB: &str = "192.168.0.10:80";
const KUBECONFIG: &str = "/run/kubernetes/kubeconfig";

struct Cluster {
    // In the order of their end.
    _kubelets: Vec<Kubelet>,
    runtimes: Vec<Cri>,
    _control: ControlPlane,
    server: ApiServer,
    // The programs of both nodes: netd, then ipvs-proxy.
    daemons: Vec<Process>,
    machines: lab::Cluster,
}

/// What is asked of a Deployment.
fn deployment(replicas: usize) -> Value {
    let port = PORT.to_string();
    let container = json!({"name": "web", "image": image::NAME, "imagePullPolicy": "Never",
        "command": ["httpd", "-f", "-p", port, "-h", "/www"], "ports": [{"containerPort": PORT}],
        // Clients that chose it before its end is known everywhere are still served.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}});
    let pod =
        json!({"terminationGracePeriodSeconds": 8, "automountServiceAccountToken": false, "containers": [container]});
    let labels = json!({"app": "web"});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}})
}

impl Cluster {
    fn start() -> Result<Self> {
        let machines = lab::Cluster::reference()?;
        let server = ApiServer::start(machines.host("hdss7-11")?)?;
        let control = ControlPlane::start(&server, "172.7.0.0/16")?;
        let (mut runtimes, mut kubelets) = (Vec::new(), Vec::new());
        let mut daemons = Vec::new();
        for name in NODES {
            let host = machines.host(name)?;
            furnish(host, NATIVE)?;
            host.run(&["ip", "route", "add", "default", "via", "10.4.7.11"])?;
            daemons.extend(programs(&server, host)?);
            runtimes.push(Cri::start(host)?);
            kubelets.push(Kubelet::start(&server, host)?);
        }
        let cluster = Self { _kubelets: kubelets, runtimes, _control: control, server, daemons, machines };
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
        self.machines.host(node)
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

/// netd and ipvs-proxy of a node, both from the API server, with a kubeconfig each.
fn programs(server: &ApiServer, host: &Host) -> Result<[Process; 2]> {
    host.write(KUBECONFIG, server.kubeconfig().to_string())?;
    host.write("/etc/kube-flannel/net-conf.json", r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
    let netd = host.command(lab::bin("netd")?).env("NODE_NAME", host.name());
    let netd =
        netd.args(["--kube-subnet-mgr", "--ip-masq", "--iface=eth0", &format!("--kubeconfig-file={KUBECONFIG}")]);
    let flags = ["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"];
    let proxy = host.command(lab::bin("ipvs-proxy")?).args(flags);
    let proxy = proxy.args([format!("--kubeconfig={KUBECONFIG}"), format!("--hostname-override={}", host.name())]);
    Ok([netd.start("netd")?, proxy.start("ipvs-proxy")?])
}

/// Conditions and states, for a message.
fn summary(objects: &[Value]) -> String {
    let short = |object: &Value| {
        let status = &object["status"];
        format!("{}: {} {}", object["metadata"]["name"], status["conditions"], status["containerStatuses"])
    };
    objects.iter().map(short).collect::<Vec<_>>().join("\n")
}

fn a_deployment_on_two_kubelets_is_scaled_under_load_without_a_failed_request() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.server.put(&deployment(2))?;
    cluster.server.put(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "192.168.0.10",
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": PORT}]}}))?;
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
    let stop = AtomicBool::new(false);
    let (served, pods) = thread::scope(|scope| {
        let clients = [scope.spawn(|| requests(here, &stop)), scope.spawn(|| requests(cluster.host(NODES[1])?, &stop))];
        let scaled = scale(2).and_then(|_| cluster.pods(2)).and_then(|_| scale(6)).and_then(|_| cluster.pods(6));
        stop.store(true, Ordering::Relaxed);
        let served: Result<Vec<usize>> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        Ok::<_, anyhow::Error>((served?, scaled?))
    })?;
    ensure!(served.iter().all(|count| *count >= 20), "requests under the changes: {served:?}");
    cluster.reservations_equal(&pods)?;
    ensure!(cluster.daemons.iter().all(Process::is_running), "our programs run");
    scale(0)?;
    cluster.pods(0)?;
    cluster.reservations_equal(&[])
}

/// Asks the Service again and again; the first request that fails is an error. Returns how many were answered.
fn requests(from: &Host, stop: &AtomicBool) -> Result<usize> {
    let mut served = 0;
    eventually(LIMIT, || ask(from, WEB)).context("the Service")?;
    while !stop.load(Ordering::Relaxed) {
        ask(from, WEB).with_context(|| format!("request {served} from {}", from.name()))?;
        served += 1;
    }
    Ok(served)
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
        .run(lab::tests![a_deployment_on_two_kubelets_is_scaled_under_load_without_a_failed_request])
}
