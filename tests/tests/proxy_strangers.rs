//! Others that balance beside `ipvs-proxy`: a real keepalived, and firewall marks, in the same network namespace; and docker swarm's ingress
//! as it makes it, by hand: `ingress_sbox` with its own IPVS, `docker_gwbridge`, the chains DOCKER-INGRESS. Through everything that the proxy does they are never touched, and it is never touched by them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Pod, Process, echo, eventually};
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

/// A virtual server of a firewall mark in the network namespace of the node.
const MARKED: &str = "-A -f 256 -s rr\n-a -f 256 -r 172.7.22.3:80 -m -w 1\n";
const MARKS: &str = "add table ip marks
add chain ip marks ingress { type filter hook prerouting priority mangle; }
add rule ip marks ingress ip daddr 10.4.7.21 tcp dport 9000 meta mark set 256
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

/// Swarm on a node: its sandbox between `docker_gwbridge` and the network `ingress`, where a task serves what is published at port 9001.
struct Swarm {
    sandbox: Pod,
    _task: (Pod, Process),
    before: String,
}

/// The node's side: https://docs.docker.com/engine/swarm/ingress/, libnetwork's service_linux.go.
const SWARM: &str = "*nat
:DOCKER-INGRESS - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS
-A POSTROUTING -o docker_gwbridge -m addrtype --src-type LOCAL -j MASQUERADE
-A POSTROUTING -s 172.18.0.0/16 ! -o docker_gwbridge -j MASQUERADE
-A DOCKER-INGRESS -p tcp -m tcp --dport 9001 -j DNAT --to-destination 172.18.0.2:9001
-A DOCKER-INGRESS -j RETURN
COMMIT
*filter
:DOCKER-INGRESS - [0:0]
-A FORWARD -j DOCKER-INGRESS
-A DOCKER-INGRESS -p tcp -m tcp --dport 9001 -j ACCEPT
-A DOCKER-INGRESS -p tcp -m state --state RELATED,ESTABLISHED -m tcp --sport 9001 -j ACCEPT
-A DOCKER-INGRESS -j RETURN
COMMIT
";
const SANDBOX: &str = "*mangle
-A PREROUTING -p tcp -m tcp --dport 9001 -j MARK --set-xmark 0x101/0xffffffff
-A INPUT -d 10.0.0.4/32 -j MARK --set-xmark 0x101/0xffffffff
COMMIT
*nat
-A POSTROUTING -d 10.0.0.0/24 -m ipvs --ipvs -j SNAT --to-source 10.0.0.2
COMMIT
";
const TASK: &str = "*nat\n-A PREROUTING -d 10.0.0.5/32 -p tcp -m tcp --dport 9001 -j REDIRECT --to-ports 80\nCOMMIT\n";

impl Swarm {
    fn start(node: &Host) -> Result<Self> {
        let (sandbox, task) = (node.pod("ingress_sbox")?, node.pod("task")?);
        let links = "link add docker_gwbridge type bridge forward_delay 0\naddress add 172.18.0.1/16 dev docker_gwbridge\n\
            link set docker_gwbridge up\nlink add gateway type veth peer name eth1 netns cni-ingress_sbox\n\
            link set gateway master docker_gwbridge up\nlink add eth2 netns cni-ingress_sbox type veth peer name eth0 netns cni-task\n";
        node.command("ip").args(["-batch", "-"]).input(links).run()?;
        let links = "link set lo up\naddress add 172.18.0.2/16 dev eth1\nlink set eth1 up\naddress add 10.0.0.2/24 dev eth2\n\
            address add 10.0.0.4/32 dev lo\nlink set eth2 up\nroute add default via 172.18.0.1\n";
        sandbox.command("ip").args(["-batch", "-"]).input(links).run()?;
        let links = "address add 10.0.0.5/24 dev eth0\nlink set eth0 up\n";
        task.command("ip").args(["-batch", "-"]).input(links).run()?;
        let rules = |place: &dyn Fn() -> lab::Command, text: &str| {
            place().args(["--noflush"]).input(text.to_owned()).run().map(drop)
        };
        rules(&|| node.command("iptables-nft-restore"), SWARM)?;
        rules(&|| sandbox.command("iptables-nft-restore"), SANDBOX)?;
        rules(&|| task.command("iptables-nft-restore"), TASK)?;
        sandbox.command("sysctl").args(["-qw", "net.ipv4.vs.conntrack=1", "net.ipv4.ip_forward=1"]).run()?;
        sandbox.command("ipvsadm").arg("-R").input("-A -f 257 -s rr\n-a -f 257 -r 10.0.0.5 -m -w 1\n").run()?;
        let server = echo::serve(&task, "task", 80)?;
        let mut swarm = Self { sandbox, _task: (task, server), before: String::new() };
        swarm.before = swarm.state(node)?;
        for part in ["-A -f 257 -s rr", "-r 10.0.0.5:0 -m", "-A DOCKER-INGRESS -p tcp", "172.18.0.1/16", "10.0.0.4/32"]
        {
            ensure!(swarm.before.contains(part), "{part}: {}", swarm.before);
        }
        Ok(swarm)
    }

    /// Everything of it: the sandbox's IPVS, rules and addresses, and the node's chains and bridge.
    fn state(&self, node: &Host) -> Result<String> {
        let mut text = self.sandbox.command("ipvsadm").arg("-Sn").run()?.stdout;
        for place in [self.sandbox.command("iptables-nft-save"), node.command("iptables-nft-save")] {
            let rules = place.run()?.stdout;
            let rules = rules.lines().filter(|line| line.starts_with("-A ") && !line.contains("ipvs-proxy"));
            rules.for_each(|line| text = format!("{text}{line}\n"));
        }
        let addresses = self.sandbox.command("ip").args(["-o", "-4", "address"]).run()?.stdout;
        let bridge = node.run(&["ip", "-o", "-4", "address", "show", "dev", "docker_gwbridge"])?.stdout;
        let marks = self.sandbox.command("sysctl").arg("net.ipv4.vs.conntrack").run()?.stdout;
        Ok(text + &addresses + &bridge + &marks)
    }

    /// Nothing of it has changed, and what it publishes is served through the node.
    fn is_well(&self, nodes: &Nodes) -> Result<()> {
        let now = self.state(nodes.node()?)?;
        ensure!(now == self.before, "{now}\n--- instead of\n{}", self.before);
        let answer = echo::ask_tcp(nodes.outside()?, "10.4.7.21:9001".parse()?, SOON)?;
        // Its sandbox is who asks.
        ensure!(answer.name == "task" && answer.client.ip().to_string() == "10.0.0.2", "{answer:?}");
        Ok(())
    }
}

/// The others: in this namespace, and in one of their own.
struct Others {
    keepalived: Process,
    swarm: Swarm,
}

impl Others {
    fn start(nodes: &Nodes) -> Result<Self> {
        let node = nodes.node()?;
        // Their connections are translated as ours are.
        node.run(&["sysctl", "-qw", "net.ipv4.vs.conntrack=1"])?;
        node.command("ipvsadm").arg("-R").input(MARKED).run()?;
        node.command("nft").args(["-f", "-"]).input(MARKS).run()?;
        // What comes from outside is answered the way it came.
        let back = "add table ip back; add chain ip back out { type nat hook postrouting priority srcnat; }; \
            add rule ip back out ip saddr 10.4.7.200 ip daddr 172.7.0.0/16 tcp dport 80 masquerade";
        node.run(&["nft", back])?;
        let others = Self { keepalived: keepalived(node, KEEPALIVED)?, swarm: Swarm::start(node)? };
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
        self.swarm.is_well(nodes).with_context(|| format!("swarm after {after}"))?;
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

fn others_that_balance_are_never_touched() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.3"]))?;
    let others = Others::start(&nodes)?;
    let proxy = configured::start(&nodes, "ipvs")?;
    configured::await_mode(&nodes, "ipvs")?;
    others.are_well(&nodes, "the start")?;
    proxy::churn(&nodes)?;
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
