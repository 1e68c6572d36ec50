//! Others that balance beside `ipvs-proxy`: a real keepalived, and docker swarm's way with firewall marks, in the same network namespace and
//! in another. Through everything that the proxy does they are never touched, and it is never touched by them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process, echo, eventually};
use nix::sys::signal::Signal;
use proxy::{Nodes, SOON, WEB, WEB_SERVICE, configured, servers, slice};

/// keepalived's virtual server at an address of the node, with two Pods that it checks.
const KEEPALIVED: &str = "virtual_server 10.4.7.21 8080 {
    delay_loop 1
    lvs_sched rr
    lvs_method NAT
    protocol TCP
    real_server 172.7.21.2 80 {
        weight 1
        TCP_CHECK {
            connect_timeout 3
        }
    }
    real_server 172.7.22.2 80 {
        weight 1
        TCP_CHECK {
            connect_timeout 3
        }
    }
}
";

/// Swarm's ingress: what it marks goes to the virtual server of the mark.
const MARKED: &str = "-A -f 256 -s rr\n-a -f 256 -r 172.7.22.3:80 -m -w 1\n";
const MARKS: &str = "add table ip swarm
add chain ip swarm ingress { type filter hook prerouting priority mangle; }
add rule ip swarm ingress ip daddr 10.4.7.21 tcp dport 9000 meta mark set 256
add chain ip swarm out { type nat hook postrouting priority srcnat; }
add rule ip swarm out ip saddr 10.4.7.200 ip daddr 172.7.0.0/16 tcp dport 80 masquerade
";

/// What others have in IPVS of the node's network namespace.
const THEIRS: [&str; 5] = [
    "-A -f 256 -s rr",
    "-A -t 10.4.7.21:8080 -s rr",
    "-a -f 256 -r 172.7.22.3:80 -m -w 1",
    "-a -t 10.4.7.21:8080 -r 172.7.21.2:80 -m -w 1",
    "-a -t 10.4.7.21:8080 -r 172.7.22.2:80 -m -w 1",
];

fn is_theirs(line: &str) -> bool {
    line.contains("-f 256") || line.contains("10.4.7.21:8080")
}

/// keepalived with this configuration, without its part for addresses.
fn keepalived(node: &Host, configuration: &str) -> Result<Process> {
    node.write("/run/keepalived.conf", configuration)?;
    let words = ["--dont-fork", "--log-console", "--log-detail", "--check", "--use-file=/run/keepalived.conf"];
    let files = ["--pid=/run/keepalived.pid", "--checkers_pid=/run/checkers.pid"];
    node.command("keepalived").args(words).args(files).start("keepalived")
}

/// The others: in this namespace, and in one of their own.
struct Others {
    keepalived: Process,
}

impl Others {
    fn start(nodes: &Nodes) -> Result<Self> {
        let node = nodes.node()?;
        // Their connections are translated as ours are.
        node.run(&["sysctl", "-qw", "net.ipv4.vs.conntrack=1"])?;
        node.command("ipvsadm").arg("-R").input(MARKED).run()?;
        node.command("nft").args(["-f", "-"]).input(MARKS).run()?;
        // Swarm's sandbox: the network namespace of a Pod, with a virtual server and a mark of its own.
        let sandbox = nodes.pod("172.7.21.3")?;
        sandbox.command("ipvsadm").arg("-R").input(MARKED).run()?;
        let others = Self { keepalived: keepalived(node, KEEPALIVED)? };
        eventually(SOON, || {
            ensure!(others.rows(nodes)? == THEIRS, "{:?} {}", others.rows(nodes)?, others.keepalived.log());
            Ok(())
        })?;
        Ok(others)
    }

    fn rows(&self, nodes: &Nodes) -> Result<Vec<String>> {
        Ok(servers(nodes.node()?)?.into_iter().filter(|line| is_theirs(line)).collect())
    }

    /// Everything of theirs stands and carries.
    fn are_well(&self, nodes: &Nodes, after: &str) -> Result<()> {
        ensure!(self.keepalived.is_running(), "{}", self.keepalived.log());
        let rows = self.rows(nodes)?;
        ensure!(rows == THEIRS, "after {after}: {rows:?}");
        let sandbox = nodes.pod("172.7.21.3")?.command("ipvsadm").arg("-Sn").run()?.stdout;
        ensure!(sandbox.lines().count() == 2 && sandbox.contains("-f 256"), "after {after}: {sandbox}");
        for (server, pods) in
            [("10.4.7.21:8080", &["172.7.21.2", "172.7.22.2"][..]), ("10.4.7.21:9000", &["172.7.22.3"])]
        {
            let answer =
                echo::ask_tcp(nodes.outside()?, server.parse()?, SOON).with_context(|| format!("after {after}"))?;
            ensure!(pods.contains(&answer.name.as_str()), "after {after}: {answer:?}");
        }
        Ok(())
    }
}

/// A hundred changes of endpoints, and the last one in the kernel.
fn churn(nodes: &Nodes) -> Result<()> {
    for turn in 0..100 {
        let pods = if turn % 2 == 0 { ["172.7.21.3", "172.7.22.2"] } else { ["172.7.21.2", "172.7.22.3"] };
        nodes.publish_quickly("slice.yaml", &slice(&pods))?;
    }
    proxy::await_reals(nodes.node()?, &[("172.7.21.2", 1), ("172.7.22.3", 1)])
}

fn others_that_balance_are_never_touched() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.3"]))?;
    let others = Others::start(&nodes)?;
    let proxy = configured::start(&nodes, "ipvs")?;
    configured::await_mode(&nodes, "ipvs")?;
    others.are_well(&nodes, "the start")?;
    churn(&nodes)?;
    others.are_well(&nodes, "a hundred changes")?;
    // Everything is compared, and one of ours is made again.
    proxy.signal(Signal::SIGHUP)?;
    node.run(&["ipvsadm", "-D", "-t", WEB])?;
    proxy::await_reals(node, &[("172.7.21.2", 1), ("172.7.22.3", 1)])?;
    others.are_well(&nodes, "an audit")?;
    for mode in ["nftables", "ipvs"] {
        configured::write_mode(&nodes, mode)?;
        configured::await_mode(&nodes, mode)?;
        others.are_well(&nodes, mode)?;
        echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON)?;
    }
    ensure!(proxy.terminate(SOON)?.success());
    others.are_well(&nodes, "the end")?;
    node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
    others.are_well(&nodes, "the clean-up")?;
    let left = servers(node)?;
    ensure!(left == THEIRS, "{left:?}");
    Ok(())
}

fn others_that_change_their_own_never_touch_ours() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.3"]))?;
    let _proxy = nodes.proxy_with(&["--proxy-mode=ipvs"])?;
    let reals = [("172.7.21.2", 1), ("172.7.22.3", 1)];
    proxy::await_reals(node, &reals)?;
    let others = Others::start(&nodes)?;
    // keepalived finds a real server dead, reads its file anew, and ends.
    node.write("/run/keepalived.conf", KEEPALIVED.replace("172.7.22.2 80", "172.7.22.2 81"))?;
    others.keepalived.signal(Signal::SIGHUP)?;
    eventually(SOON, || {
        let rows = others.rows(&nodes)?;
        ensure!(!rows.iter().any(|line| line.contains("172.7.22.2")), "{rows:?}");
        Ok(())
    })?;
    proxy::await_reals(node, &reals)?;
    ensure!(others.keepalived.terminate(SOON)?.success());
    let ours: Vec<_> = servers(node)?.into_iter().filter(|line| !is_theirs(line)).collect();
    ensure!(ours.len() == 3 && nodes.status()?["ok"] == true, "{ours:?} {}", nodes.status()?);
    echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON).map(drop)
}

/// keepalived at the address and port of the Service.
const CONFLICT: &str = "virtual_server 192.168.0.10 80 {
    delay_loop 1
    lvs_sched wlc
    lvs_method NAT
    protocol TCP
    real_server 172.7.21.2 80 {
        weight 7
        TCP_CHECK {
            connect_timeout 3
        }
    }
}
";

fn a_virtual_server_of_a_living_keepalived_at_a_services_place_is_named_and_left_alone() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    let theirs = ["-A -t 192.168.0.10:80 -s wlc", "-a -t 192.168.0.10:80 -r 172.7.21.2:80 -m -w 7"];
    let keepalived = keepalived(node, CONFLICT)?;
    eventually(SOON, || {
        ensure!(servers(node)? == theirs, "{:?} {}", servers(node)?, keepalived.log());
        Ok(())
    })?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.22.3"]))?;
    nodes.publish("api.yaml", &WEB_SERVICE.replace("web", "api").replace("0.10", "0.11"))?;
    let proxy = nodes.proxy_with(&["--proxy-mode=ipvs"])?;
    let named = |status: &serde_json::Value| {
        let text = status.to_string();
        ensure!(text.contains("keepalived (process ") && text.contains("is left alone"), "{text}");
        ensure!(status["ok"] == false, "{text}");
        Ok(())
    };
    eventually(SOON, || named(&nodes.status()?))?;
    let of_theirs = || -> Result<Vec<String>> {
        Ok(servers(node)?.into_iter().filter(|line| line.contains("192.168.0.10:")).collect())
    };
    ensure!(of_theirs()? == theirs, "{:?}", of_theirs()?);
    ensure!(servers(node)?.iter().any(|line| line.contains("192.168.0.11:80")), "other Services are served");
    // An endpoint changes, everything is compared.
    nodes.publish("slice.yaml", &slice(&["172.7.21.3"]))?;
    proxy.signal(Signal::SIGHUP)?;
    lab::throughout(std::time::Duration::from_secs(3), || {
        ensure!(of_theirs()? == theirs, "{:?}", of_theirs()?);
        Ok(())
    })?;
    // It ends, and takes its own along: the Service is served.
    ensure!(keepalived.terminate(SOON)?.success());
    eventually(std::time::Duration::from_secs(90), || {
        let ours = of_theirs()?;
        ensure!(ours == ["-A -t 192.168.0.10:80 -s rr", "-a -t 192.168.0.10:80 -r 172.7.21.3:80 -m -w 1"], "{ours:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            others_that_balance_are_never_touched,
            others_that_change_their_own_never_touch_ours,
            a_virtual_server_of_a_living_keepalived_at_a_services_place_is_named_and_left_alone,
        ],
    )
}
