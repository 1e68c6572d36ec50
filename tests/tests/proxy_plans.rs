//! The address plans that must come up: Services between two nodes of each, on both data paths.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Need, Place, Pod, Process, Topology, echo, eventually};

const SOON: Duration = Duration::from_secs(60);

/// An address plan: the network of the nodes and two of them, the Pod network, the Service network and an address in it.
struct Plan {
    nodes: &'static str,
    last: [u8; 2],
    pods: &'static str,
    services: &'static str,
    service: &'static str,
}

const REFERENCE: Plan =
    Plan { nodes: "10.4.7", last: [21, 22], pods: "172.7", services: "192.168.0.0/16", service: "192.168.0.10" };

const KUBEADM: Plan =
    Plan { nodes: "192.168.32", last: [11, 12], pods: "10.244", services: "10.96.0.0/12", service: "10.96.0.10" };

/// The nodes lie inside the Service network, which is named and harms nobody.
const INSIDE: Plan =
    Plan { nodes: "192.168.44", last: [100, 102], pods: "10.244", services: "192.168.0.0/16", service: "192.168.0.10" };

const ATOMIC: Plan =
    Plan { nodes: "192.168.197", last: [130, 132], pods: "172.7", services: "192.254.0.0/16", service: "192.254.0.10" };

impl Plan {
    fn comes_up(&self) -> Result<()> {
        let (nodes, [first, second]) = (self.nodes, self.last);
        let drawing = format!("network {nodes}.0/24\na {nodes}.{first}\nb {nodes}.{second}\noutside {nodes}.250");
        let cluster = Cluster::start(&Topology::parse(&drawing)?)?;
        let pods = [self.node(cluster.host("a")?, first, second)?, self.node(cluster.host("b")?, second, first)?];
        cluster.host("outside")?.run(&["ip", "route", "add", self.services, "via", &format!("{nodes}.{first}")])?;
        let _servers = [echo::serve(&pods[0], "local", 80)?, echo::serve(&pods[1], "remote", 80)?];
        for mode in ["nftables", "ipvs"] {
            let proxy = self.proxy(cluster.host("a")?, mode)?;
            self.ask(&cluster, &pods[0]).with_context(|| format!("by {mode}"))?;
            ensure!(proxy.terminate(SOON)?.success());
            cluster.host("a")?.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
        }
        Ok(())
    }

    /// Gives a node a Pod, and a route to the Pod of the other.
    fn node(&self, host: &Host, own: u8, other: u8) -> Result<Pod> {
        let (pods, nodes) = (self.pods, self.nodes);
        host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        let pod = host.pod("web")?;
        let lines = format!(
            "link add cbr0 type bridge forward_delay 0\naddress add {pods}.{own}.1/24 dev cbr0\nlink set cbr0 up\n\
             link add veth0 type veth peer name eth0 netns cni-web\nlink set veth0 master cbr0 up\n\
             link set veth0 type bridge_slave hairpin on\nroute add {pods}.{other}.0/24 via {nodes}.{other}\n\
             route add default via {nodes}.250\n"
        );
        host.command("ip").args(["-batch", "-"]).input(lines).run()?;
        let lines =
            format!("address add {pods}.{own}.2/24 dev eth0\nlink set eth0 up\nroute add default via {pods}.{own}.1\n");
        pod.command("ip").args(["-batch", "-"]).input(lines).run()?;
        Ok(pod)
    }

    fn proxy(&self, host: &Host, mode: &str) -> Result<Process> {
        let (pods, [first, second]) = (self.pods, self.last);
        let objects = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n\
             spec: {{type: NodePort, clusterIP: {}, ports: [{{name: http, port: 80, nodePort: 30080}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\nports: [{{name: http, port: 80}}]\n\
             endpoints:\n- addresses: [{pods}.{first}.2]\n- addresses: [{pods}.{second}.2]\n",
            self.service
        );
        host.write("/run/services/web.yaml", objects)?;
        let (pods, services) = (format!("--cluster-cidr={pods}.0.0/16"), format!("--service-cidr={}", self.services));
        let mode = format!("--proxy-mode={mode}");
        let flags = ["--services-dir=/run/services", &pods, &services, &mode];
        let proxy = host.command(lab::bin("ipvs-proxy")?).args(flags).start("ipvs-proxy")?;
        proxy.wait_for_line("ready", SOON)?;
        Ok(proxy)
    }

    /// A Pod, the node and a host outside reach both endpoints, at the Service's address and at the node port.
    fn ask(&self, cluster: &Cluster, pod: &Pod) -> Result<()> {
        let (node, outside) = (cluster.host("a")?, cluster.host("outside")?);
        for to in [format!("{}:80", self.service), format!("{}.{}:30080", self.nodes, self.last[0])] {
            let to: SocketAddr = to.parse()?;
            reaches_both(pod, to)?;
            reaches_both(node, to)?;
            reaches_both(outside, to)?;
        }
        Ok(())
    }
}

fn reaches_both(from: &impl Place, to: SocketAddr) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    // Choice may be at random: that one of two is not chosen in 60 tries happens once in 10^18.
    for _ in 0..60 {
        seen.insert(eventually(SOON, || echo::ask_tcp(from, to, SOON))?.name);
        if seen.len() == 2 {
            return Ok(());
        }
    }
    anyhow::bail!("{} reaches only {seen:?} at {to}", from.label())
}

fn services_of_the_reference_cluster_are_reached() -> Result<()> {
    REFERENCE.comes_up()
}

fn services_of_a_cluster_of_kubeadm_are_reached() -> Result<()> {
    KUBEADM.comes_up()
}

fn services_whose_network_holds_that_of_the_nodes_are_reached() -> Result<()> {
    INSIDE.comes_up()
}

fn services_of_a_cluster_of_atomic_hosts_are_reached() -> Result<()> {
    ATOMIC.comes_up()
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            services_of_the_reference_cluster_are_reached,
            services_of_a_cluster_of_kubeadm_are_reached,
            services_whose_network_holds_that_of_the_nodes_are_reached,
            services_of_a_cluster_of_atomic_hosts_are_reached,
        ],
    )
}
