//! A real Docker beside `ipvs-proxy` on one node: a swarm of one whose ingress balances by IPVS and firewall marks in a namespace of its own, and
//! a container with a published port. Through everything that the proxy does both stay as Docker made them and answer, and ours does beside
//! them.
//!
//! Runs in the lab kernel only: containers make cgroups, which would stay on the real machine.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Absent;
use lab::harness::Suite;
use lab::{Host, Need, Process, echo, eventually};
use nix::sys::signal::Signal;
use proxy::{Nodes, SOON, WEB, WEB_SERVICE, configured, servers, slice};

/// Docker in the lab kernel: some thirty programs are started until a task runs.
const LONG: Duration = Duration::from_secs(120);

/// Where the swarm publishes, and where the container does.
const PUBLISHED: [&str; 2] = ["http://10.4.7.21:9001/", "http://10.4.7.21:9002/"];
const SERVER: [&str; 7] = ["/busybox", "httpd", "-f", "-p", "80", "-h", "/"];

/// The daemon with all that it has made.
struct Docker {
    daemon: Process,
    /// What it had made when everything was up.
    before: String,
}

impl Docker {
    /// Starts it on the node, makes it a swarm, and publishes two ports.
    fn start(nodes: &Nodes) -> Result<Self> {
        let node = nodes.node()?;
        node.run(&["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])?;
        // A new network takes what it forwards from the kernel's first one, where Docker runs on a real machine and has turned it on.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward in the first network")?;
        let daemon = node.command("dockerd").args(["--storage-driver=vfs"]).start("dockerd")?;
        daemon.wait_for_line("API listen on", LONG)?;
        docker(node, &["swarm", "init", "--advertise-addr=10.4.7.21"])?;
        node.run(&["mkdir", "/run/image"])?;
        node.write("/run/image/index.html", "docker\n")?;
        node.run(&["cp", "/bin/busybox", "/run/image/"])?;
        node.run(&["tar", "-cf", "/run/image.tar", "-C", "/run/image", "."])?;
        docker(node, &["import", "/run/image.tar", "task:1"])?;
        let service =
            ["service", "create", "--detach", "--no-resolve-image", "--name=task", "--publish=9001:80", "task:1"];
        docker(node, &[&service[..], &SERVER].concat())?;
        docker(node, &[&["run", "--detach", "--name=plain", "--publish=9002:80", "task:1"][..], &SERVER].concat())?;
        let mut docker = Self { daemon, before: String::new() };
        eventually(LONG, || docker.answers(nodes))?;
        docker.before = state(node)?;
        for part in [
            "-A -f 256 -s rr",
            "-a -f 256 -r 10.0.0.",
            "-A DOCKER-INGRESS -p tcp",
            "--dport 9002 -j DNAT",
            "docker_gwbridge",
        ] {
            ensure!(docker.before.contains(part), "{part}: {}", docker.before);
        }
        Ok(docker)
    }

    /// What is published answers a client outside.
    fn answers(&self, nodes: &Nodes) -> Result<()> {
        ensure!(self.daemon.is_running(), "{}", self.daemon.log());
        for url in PUBLISHED {
            let said = nodes.outside()?.run(&["curl", "-sS", "-m", "10", url]).context(url)?.stdout;
            ensure!(said == "docker\n", "{url}: {said:?}");
        }
        Ok(())
    }

    /// Nothing of it has changed, and it answers.
    fn is_well(&self, nodes: &Nodes, after: &str) -> Result<()> {
        let now = state(nodes.node()?)?;
        ensure!(now == self.before, "after {after}:\n{now}\n--- instead of\n{}", self.before);
        self.answers(nodes).with_context(|| format!("after {after}"))
    }
}

fn docker(node: &Host, words: &[&str]) -> Result<String> {
    Ok(node.command("docker").args(words).limit(LONG).run()?.stdout)
}

/// Everything that Docker has made: IPVS, rules and addresses of the ingress, and the node's rules, bridges and their addresses.
fn state(node: &Host) -> Result<String> {
    let ingress = ["nsenter", "--net=/run/docker/netns/ingress_sbox"];
    let mut text = node.run(&[&ingress[..], &["ipvsadm", "-Sn"]].concat())?.stdout;
    for rules in [node.run(&[&ingress[..], &["iptables-save"]].concat())?, node.run(&["iptables-save"])?] {
        let rules = rules.stdout;
        let rules = rules.lines().filter(|line| line.starts_with(['-', ':']) && !line.contains("ipvs-proxy"));
        // A chain's line ends with what it has counted.
        rules.for_each(|line| text = format!("{text}{}\n", line.split(" [").next().unwrap_or_default()));
    }
    text += &node.run(&[&ingress[..], &["ip", "-o", "-4", "address"]].concat())?.stdout;
    text += &node.run(&[&ingress[..], &["sysctl", "net.ipv4.vs.conntrack", "net.ipv4.ip_forward"]].concat())?.stdout;
    for bridge in ["docker0", "docker_gwbridge"] {
        text += &node.run(&["ip", "-o", "-4", "address", "show", "dev", bridge])?.stdout;
    }
    Ok(text)
}

/// A client outside is served by a Pod through the Service.
fn ours_answers(nodes: &Nodes) -> Result<()> {
    let answer = echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON)?;
    ensure!(answer.name.starts_with("172.7."), "{answer:?}");
    Ok(())
}

fn a_real_swarm_and_a_published_container_are_never_touched() -> Result<()> {
    if !lab::lab_kernel::is_inside() {
        let how = "containers would leave cgroups on this machine: NETD_LAB_WHERE=guest runs it in the lab kernel";
        return Err(Absent::CannotBeHad(how.to_owned()).into());
    }
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    if let Err(error) = node.run(&["dockerd", "--version"]).and_then(|_| node.run(&["docker", "--version"])) {
        return Err(Absent::Missing(format!("{error:#}: tests/setup run installs it")).into());
    }
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.3"]))?;
    let docker = Docker::start(&nodes)?;
    let proxy = configured::start(&nodes, "ipvs")?;
    configured::await_mode(&nodes, "ipvs")?;
    ours_answers(&nodes)?;
    docker.is_well(&nodes, "the start")?;
    proxy::churn(&nodes)?;
    docker.is_well(&nodes, "a hundred changes")?;
    // Everything is compared, and what was flushed is made again.
    node.run(&["ipvsadm", "-C"])?;
    proxy.signal(Signal::SIGHUP)?;
    proxy::await_reals(node, &[("172.7.21.2", 1), ("172.7.22.3", 1)])?;
    docker.is_well(&nodes, "a flush and an audit")?;
    for mode in ["nftables", "ipvs"] {
        configured::write_mode(&nodes, mode)?;
        configured::await_mode(&nodes, mode)?;
        ours_answers(&nodes)?;
        docker.is_well(&nodes, mode)?;
    }
    ensure!(proxy.terminate(SOON)?.success());
    let again = configured::start(&nodes, "ipvs")?;
    configured::await_mode(&nodes, "ipvs")?;
    ours_answers(&nodes)?;
    docker.is_well(&nodes, "a restart")?;
    ensure!(again.terminate(SOON)?.success());
    node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
    docker.is_well(&nodes, "the clean-up")?;
    let left = servers(node)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn main() -> ExitCode {
    let needs = [Need::IpVs, Need::Nftables, Need::Dummy, Need::Vxlan];
    Suite::new(&needs).memory(2048).run(lab::tests![a_real_swarm_and_a_published_container_are_never_touched])
}
