//! The address plans that must come up, and what is said of addresses that are in a plan's way.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Cluster, Etcd, Host, Need, Process, Topology, echo, eventually};
use netd_node::{Net, SOON, VXLAN, pod};

const READY: &str = "ready: every lease is in the kernel";

/// Nodes of one plan with an etcd member on the first.
struct Plan {
    cluster: Cluster,
    etcd: Etcd,
}

impl Plan {
    /// Machines `n<last>` on `network`, each with an address that ends in one of `nodes`.
    fn start(network: &str, nodes: &[u8], prefix: &str, config: &str) -> Result<Self> {
        let first = network.split('/').next().unwrap().rsplit_once('.').unwrap().0;
        let machines: String = nodes.iter().map(|n| format!("n{n}.host.com {first}.{n} node\n")).collect();
        let cluster = Cluster::start(&Topology::parse(&format!("network {network}\n{machines}"))?)?;
        let etcd = Etcd::start([cluster.host(&format!("n{}", nodes[0]))?])?;
        etcd.put(&format!("{prefix}/config"), config)?;
        Ok(Self { cluster, etcd })
    }

    fn host(&self, n: u8) -> Result<&Host> {
        self.cluster.host(&format!("n{n}"))
    }

    fn netd(&self, n: u8, extra: &[&str]) -> Result<Process> {
        let endpoints = format!("--etcd-endpoints={}", self.etcd.endpoints());
        let command = self.host(n)?.command(lab::bin("netd")?);
        command.args([endpoints.as_str(), "--iface=eth0", "--ip-masq"]).args(extra).start("netd")
    }

    /// Starts netd on `nodes`, which get these subnets of /24, and lets a Pod of the first ask one of the last.
    fn comes_up(&self, nodes: &[(u8, &str)], extra: &[&str]) -> Result<()> {
        let all = nodes.iter().map(|(n, _)| self.netd(*n, extra)).collect::<Result<Vec<_>>>()?;
        for netd in &all {
            netd.wait_for_line(READY, SOON)?;
        }
        let ((first, from), (last, to)) = (nodes[0], nodes[nodes.len() - 1]);
        let (client, server) = (pod(self.host(first)?, from)?, pod(self.host(last)?, to)?);
        let _server = echo::serve(&server, "web", 80)?;
        // A node is ready with the leases that it knows; those of nodes that start beside it come after.
        let web = format!("{to}.2:80").parse()?;
        let seen = eventually(SOON, || echo::ask_tcp(&client, web, SOON))?.client.ip();
        ensure!(seen.to_string() == format!("{from}.2"), "the server saw {seen}");
        let status = self.host(first)?.command(lab::bin("netd")?).args(["status", "--json"]).run()?.stdout;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        ensure!(status["warnings"] == serde_json::json!([]), "{}", status["warnings"]);
        Ok(())
    }
}

fn plan_of_the_reference_cluster_comes_up() -> Result<()> {
    let plan = Plan::start("10.4.7.0/24", &[21, 22], "/coreos.com/network", VXLAN)?;
    plan.comes_up(&[(21, "172.7.21"), (22, "172.7.22")], &["--service-cidr=192.168.0.0/16"])
}

fn plan_of_kubeadm_comes_up() -> Result<()> {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let plan = Plan::start("192.168.32.0/24", &[11, 12], "/coreos.com/network", config)?;
    plan.comes_up(&[(11, "10.244.11"), (12, "10.244.12")], &["--service-cidr=10.96.0.0/12"])
}

fn plan_with_three_nodes_and_direct_routes_comes_up() -> Result<()> {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let plan = Plan::start("192.168.44.0/24", &[100, 101, 102], "/coreos.com/network", config)?;
    plan.comes_up(&[(100, "10.244.100"), (101, "10.244.101"), (102, "10.244.102")], &[])
}

fn plan_with_the_prefix_of_atomic_hosts_comes_up() -> Result<()> {
    for pods in ["172.7", "172.17"] {
        let config = format!(r#"{{"Network":"{pods}.0.0/16","Backend":{{"Type":"vxlan"}}}}"#);
        let plan = Plan::start("192.168.197.0/24", &[130, 131, 132], "/atomic.io/network", &config)?;
        let [first, second, third] = [130, 131, 132].map(|n| format!("{pods}.{n}"));
        let flags = ["--etcd-prefix=/atomic.io/network", "--service-cidr=192.254.0.0/16"];
        plan.comes_up(&[(130, &first), (131, &second), (132, &third)], &flags)?;
    }
    Ok(())
}

fn networks_that_overlap_are_refused_with_both_names() -> Result<()> {
    for (pods, services, parts) in [
        (
            "10.0.0.0/8",
            "10.96.0.0/12",
            &["node network 10.4.7.0/24", "Pod network 10.0.0.0/8", "Service network 10.96.0.0/12"][..],
        ),
        ("172.7.0.0/16", "10.4.0.0/16", &["node network 10.4.7.0/24 lies inside Service network 10.4.0.0/16"]),
    ] {
        let net = Net::start(&format!(r#"{{"Network":"{pods}","Backend":{{"Type":"vxlan"}}}}"#))?;
        let netd = net.launch("hdss7-21", &[&format!("--service-cidr={services}")])?;
        ensure!(netd.wait(SOON)?.code() == Some(1));
        for part in parts {
            ensure!(netd.log().contains(part), "{}\nlacks {part}", netd.log());
        }
        ensure!(net.subnets()?.is_empty(), "a lease was taken all the same");
    }
    Ok(())
}

fn addresses_of_this_host_inside_the_pod_network_are_reported_while_they_are_there() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    host.run(&["sh", "-c", "ip link add docker0 type bridge && ip address add 172.7.99.1/24 dev docker0"])?;
    let netd = net.netd("hdss7-21")?;
    let _pod = pod(host, "172.7.21")?;
    netd.wait_for_line("docker0 lies inside Pod network 172.7.0.0/16", SOON)?;
    let warnings = || Ok::<_, anyhow::Error>(net.status("hdss7-21")?["warnings"].to_string());
    eventually(SOON, || {
        let warnings = warnings()?;
        ensure!(warnings.contains("node network 172.7.99.0/24 on docker0") && !warnings.contains("cbr0"), "{warnings}");
        Ok(())
    })?;
    host.run(&["ip", "link", "del", "docker0"])?;
    eventually(SOON, || {
        let warnings = warnings()?;
        ensure!(!warnings.contains("docker0"), "{warnings}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            plan_of_the_reference_cluster_comes_up,
            plan_of_kubeadm_comes_up,
            plan_with_three_nodes_and_direct_routes_comes_up,
            plan_with_the_prefix_of_atomic_hosts_comes_up,
            networks_that_overlap_are_refused_with_both_names,
            addresses_of_this_host_inside_the_pod_network_are_reported_while_they_are_there,
        ],
    )
}
