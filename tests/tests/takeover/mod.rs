//! A node that goes from a real kube-proxy to ours and back while clients are connected and connect.
//!
//! Invariant: every new connection is counted, and one that fails fails the test.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use lab::{ApiServer, Host, KubeProxy, Place, Process, echo, eventually};
use serde_json::{Value, json};

use crate::proxy::{Kept, Nodes, SOON, WEB, ask, client};

pub(crate) const PODS: [&str; 2] = ["172.7.21.3", "172.7.22.2"];

/// A Service that the API has and we do not: kube-proxy's leftover.
const LEFT: &str = "192.168.0.77";

/// The nodes with what both proxies serve.
pub(crate) struct Takeover {
    pub(crate) nodes: Nodes,
    pub(crate) api: ApiServer,
}

fn service(name: &str, addr: &str, (port, node_port, protocol): (u16, u16, &str)) -> Value {
    let port = json!({"name": "main", "port": port, "targetPort": 80, "nodePort": node_port, "protocol": protocol});
    let spec = json!({"type": "NodePort", "clusterIP": addr, "clusterIPs": [addr], "ports": [port], "sessionAffinity": "None"});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// The slice of a Service, as kube-proxy's API has it and as ours reads it from a file.
fn slices(name: &str, protocol: &str, pods: &[&str]) -> [Value; 2] {
    let endpoints: Vec<_> = pods.iter().map(|pod| json!({"addresses": [pod], "conditions": {"ready": true}})).collect();
    ["discovery.k8s.io/v1beta1", "discovery.k8s.io/v1"].map(|version| {
        json!({"apiVersion": version, "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "main", "port": 80, "protocol": protocol}]})
    })
}

/// Starts the machines; without any route to a Service's address a node does not even try.
pub(crate) fn nodes() -> Result<Nodes> {
    let nodes = Nodes::start()?;
    let route = "link add up0 type veth peer name down0\nlink set up0 up\nlink set down0 up\naddress add 10.9.9.21/24 dev up0\n\
        neigh add 10.9.9.1 lladdr 02:00:00:00:00:01 dev up0\nroute add default via 10.9.9.1\n";
    nodes.node()?.command("ip").args(["-batch", "-"]).input(route).run()?;
    Ok(nodes)
}

/// Does something while three clients connect again and again; returns how often each did.
pub(crate) fn under_load(nodes: &Nodes, work: impl FnOnce() -> Result<()>) -> Result<Vec<usize>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = [
            scope.spawn(|| connect(nodes.outside()?, &stop)),
            scope.spawn(|| connect(nodes.node()?, &stop)),
            scope.spawn(|| connect(nodes.pod("172.7.21.2")?, &stop)),
        ];
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        let connected = clients.into_iter().map(|client| client.join().unwrap()).collect::<Result<Vec<_>>>();
        worked?;
        connected
    })
}

/// What `ipvs-proxy` says when it is called with this flag.
pub(crate) fn call(nodes: &Nodes, flag: &str) -> Result<String> {
    Ok(nodes.node()?.command(lab::bin("ipvs-proxy")?).arg(flag).run()?.stdout)
}

/// Ours with these flags, beside whatever runs, with everything in place.
pub(crate) fn ours(nodes: &Nodes, flags: &[&str]) -> Result<Process> {
    let proxy = nodes.proxy_with(&[&["--healthz-bind-address=127.0.0.1:10256"], flags].concat())?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["ok"] == true && status["services"] == 2, "{status}");
        Ok(())
    })?;
    Ok(proxy)
}

impl Takeover {
    /// Starts the machines, and an API server with what both proxies serve.
    pub(crate) fn start() -> Result<Self> {
        let nodes = nodes()?;
        let api = ApiServer::start(nodes.node()?)?;
        let cluster = Self { nodes, api };
        for (name, addr, ports) in
            [("web", "192.168.0.10", (80, 30080, "TCP")), ("dns", "192.168.0.53", (53, 30053, "UDP"))]
        {
            cluster.put(service(name, addr, ports), slices(name, ports.2, &PODS))?;
        }
        cluster.api.put(&service("left", LEFT, (80, 30077, "TCP")))?;
        cluster.api.put(&slices("left", "TCP", &PODS)[0])?;
        Ok(cluster)
    }

    /// Puts a Service where either proxy reads it.
    fn put(&self, service: Value, slices: [Value; 2]) -> Result<()> {
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        self.nodes.publish(&format!("{name}.yaml"), &format!("{service}\n---\n{}\n", slices[1]))?;
        self.api.put(&service)?;
        self.api.put(&slices[0]).map(drop)
    }

    /// [`under_load`] on its nodes.
    pub(crate) fn under_load(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<usize>> {
        under_load(&self.nodes, work)
    }

    /// [`call`] on its node.
    pub(crate) fn call(&self, flag: &str) -> Result<String> {
        call(&self.nodes, flag)
    }

    /// Ours in this mode, beside whatever runs, with everything in place.
    pub(crate) fn ours(&self, mode: &str) -> Result<Process> {
        ours(&self.nodes, &[&format!("--proxy-mode={mode}")])
    }

    /// Ours in the mode ipvs from the objects in the API that kube-proxy has, beside it, with everything in place.
    pub(crate) fn ours_from_the_api(&self) -> Result<Process> {
        let node = self.nodes.node()?;
        node.write("/run/kubeconfig", self.api.kubeconfig().to_string())?;
        let command = node.command(lab::bin("ipvs-proxy")?).args(["--kubeconfig=/run/kubeconfig", "--proxy-mode=ipvs"]);
        let command = command.args(["--cluster-cidr=172.7.0.0/16", "--healthz-bind-address=127.0.0.1:10256"]);
        let proxy = command.arg(format!("--hostname-override={}", node.name())).start("ipvs-proxy")?;
        let served = self.api.get("/api/v1/services")?["items"].as_array().map_or(0, Vec::len);
        eventually(SOON, || {
            let status = self.nodes.status()?;
            ensure!(status["ok"] == true && status["services"] == served, "{served} {status}");
            Ok(())
        })?;
        Ok(proxy)
    }

    /// Deletes the Service that only kube-proxy has: both have the same objects from here on.
    pub(crate) fn without_left(&self) -> Result<()> {
        self.api.delete("/apis/discovery.k8s.io/v1beta1/namespaces/default/endpointslices/left-1")?;
        self.api.delete("/api/v1/namespaces/default/services/left")
    }

    /// Gives the Service `web` these endpoints in the API.
    pub(crate) fn web_is(&self, pods: &[&str]) -> Result<()> {
        self.api.put(&slices("web", "TCP", pods)[0]).map(drop)
    }

    /// Ends a kube-proxy, as its DaemonSet does.
    pub(crate) fn end(kube_proxy: &KubeProxy) -> Result<()> {
        kube_proxy.process().terminate(SOON).map(drop)
    }
}

/// Connects until it is time to stop; returns how often.
fn connect(from: &impl Place, stop: &AtomicBool) -> Result<usize> {
    let mut connected = 0;
    while !stop.load(Ordering::Relaxed) {
        echo::ask_tcp(from, WEB.parse()?, SOON).with_context(|| format!("connection {connected}"))?;
        connected += 1;
    }
    Ok(connected)
}

/// What is open while the proxies change, and who answers on it.
pub(crate) struct Open {
    streams: Vec<(Kept, String)>,
    flow: std::net::UdpSocket,
    answering: String,
}

impl Open {
    /// Opens a stream from everywhere, and a flow of UDP.
    pub(crate) fn start(nodes: &Nodes) -> Result<Self> {
        let opened = [Kept::open(nodes.outside()?)?, Kept::open(nodes.node()?)?, Kept::open(nodes.pod("172.7.21.2")?)?];
        let mut streams = Vec::new();
        for mut stream in opened {
            let name = stream.ask()?;
            streams.push((stream, name));
        }
        let flow = client(nodes.pod("172.7.21.2")?)?;
        let answering = ask(&flow)?;
        Ok(Self { streams, flow, answering })
    }

    /// Everything goes on with whom it began.
    pub(crate) fn goes_on(&mut self, after: &str) -> Result<()> {
        self.streams_go_on(after)?;
        let answered = ask(&self.flow).with_context(|| format!("the flow after {after}"))?;
        ensure!(answered == self.answering, "the flow after {after}: {answered}, not {}", self.answering);
        Ok(())
    }

    /// The same behind the start of a kube-proxy, which has every flow of UDP begin anew with the first endpoints that it sees.
    pub(crate) fn goes_on_with_kube_proxy(&mut self, after: &str) -> Result<()> {
        self.streams_go_on(after)?;
        let answered = ask(&self.flow).with_context(|| format!("the flow after {after}"))?;
        ensure!(PODS.contains(&answered.as_str()), "the flow after {after}: {answered}");
        Ok(())
    }

    fn streams_go_on(&mut self, after: &str) -> Result<()> {
        for (index, (stream, name)) in self.streams.iter_mut().enumerate() {
            let answered = stream.ask().with_context(|| format!("stream {index} after {after}"))?;
            ensure!(answered == *name, "stream {index} after {after}: {answered}, not {name}");
        }
        Ok(())
    }
}

/// Rules, sets and tables of others, and what a kubelet 1.20 keeps: two of its chains have the names of kube-proxy's.
const STRANGERS: &str = "*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:OTHERS - [0:0]
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A PREROUTING -p tcp -m tcp --dport 9 -j OTHERS
-A OTHERS -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
";

/// Brings them in.
pub(crate) fn bring_strangers(node: &Host) -> Result<()> {
    node.command("iptables-nft-restore").arg("--noflush").input(STRANGERS).run()?;
    node.run(&["nft", "add table ip others; add chain ip others services"]).map(drop)
}

/// Fails when anything of a kube-proxy is left in rules, or something of others is not.
pub(crate) fn check_rules(node: &Host) -> Result<()> {
    let left = node.run(&["iptables-nft-save"])?.stdout
        + &node.run(&["ip6tables-nft-save"])?.stdout
        + &node.run(&["nft", "list", "tables"])?.stdout;
    let its: BTreeSet<&str> = left
        .lines()
        .filter_map(|line| line.strip_prefix(":"))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|chain| chain.starts_with("KUBE-"))
        .collect();
    let kubelets = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"];
    ensure!(its == BTreeSet::from(kubelets), "{its:?} in {left}");
    for others in [
        "-A INPUT -j KUBE-FIREWALL",
        "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-j KUBE-POSTROUTING",
        "-A PREROUTING -p tcp -m tcp --dport 9 -j OTHERS",
        "table ip others",
    ] {
        ensure!(left.contains(others), "{others}: {left}");
    }
    Ok(())
}
