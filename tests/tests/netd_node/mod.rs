//! Nodes that run netd on the reference cluster with one real etcd member, and Pods joined to them by hand.
//!
//! Invariant: every test has a cluster of its own; nothing here waits without a deadline.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod cleanup;
pub(crate) mod dual;
pub(crate) mod entrance;
pub(crate) mod flowtable;
pub(crate) mod resilience;
pub(crate) mod tls;
pub(crate) mod tracing;
pub(crate) mod traffic;
pub(crate) mod transfer;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Host, Pod, Process, Topology, allowing_for_load, echo, eventually, throughout};

/// What must happen "at once", generous for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What was deleted is back within this time.
pub(crate) const A_SECOND: Duration = Duration::from_secs(1);

/// The Pod network of the reference cluster.
pub(crate) const VXLAN: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// The same without a tunnel.
pub(crate) const HOST_GW: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// A cluster with its store.
pub(crate) struct Net {
    pub(crate) cluster: Cluster,
    pub(crate) etcd: Etcd,
}

impl Net {
    /// The reference cluster with one etcd member, on hdss7-12, that holds `config`.
    pub(crate) fn start(config: &str) -> Result<Self> {
        Self::on(&Topology::reference()?, "hdss7-12", config)
    }

    /// A cluster of any drawing, with etcd on `member`.
    pub(crate) fn on(topology: &Topology, member: &str, config: &str) -> Result<Self> {
        let cluster = Cluster::start(topology)?;
        let etcd = Etcd::start([cluster.host(member)?])?;
        etcd.put("/coreos.com/network/config", config)?;
        Ok(Self { cluster, etcd })
    }

    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.cluster.host(name)
    }

    /// Starts netd on a node, without waiting for anything.
    pub(crate) fn launch(&self, node: &str, extra: &[&str]) -> Result<Process> {
        let endpoints = format!("--etcd-endpoints={}", self.etcd.endpoints());
        let command = self.host(node)?.command(lab::bin("netd")?);
        command.args([endpoints.as_str(), "--iface=eth0", "--ip-masq"]).args(extra).start("netd")
    }

    /// Starts netd on a node and waits until every lease is in the kernel.
    pub(crate) fn netd(&self, node: &str) -> Result<Process> {
        let netd = self.launch(node, &[])?;
        netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
        Ok(netd)
    }

    /// What netd on a node says of itself, as JSON.
    pub(crate) fn status(&self, node: &str) -> Result<serde_json::Value> {
        let netd = lab::bin("netd")?;
        let text = self.host(node)?.command(netd).args(["status", "--json"]).run()?.stdout;
        serde_json::from_str(&text).with_context(|| format!("status of {node}: {text}"))
    }

    /// netd on both nodes, each knowing the other.
    pub(crate) fn both(&self) -> Result<[Process; 2]> {
        let both = [self.launch("hdss7-21", &[])?, self.launch("hdss7-22", &[])?];
        for (node, other) in [("hdss7-21", "172.7.22.0/24"), ("hdss7-22", "172.7.21.0/24")] {
            self.eventually_routes(node, other)?;
        }
        for netd in &both {
            netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
        }
        Ok(both)
    }

    /// Waits until a node has a route of netd to `subnet`.
    pub(crate) fn eventually_routes(&self, node: &str, subnet: &str) -> Result<()> {
        let host = self.host(node)?;
        eventually(SOON, || {
            let route = host.run(&["ip", "route", "show", "proto", "121", subnet])?.stdout;
            ensure!(!route.trim().is_empty(), "{node} has no route to {subnet}");
            Ok(())
        })
    }

    /// Puts another node's lease into the store, as flannel would.
    pub(crate) fn put_lease(&self, key: &str, public_ip: &str, backend: &str) -> Result<()> {
        self.etcd.put(&format!("/coreos.com/network/subnets/{key}"), &lease(public_ip, backend))
    }

    /// Names of the leases in the store.
    pub(crate) fn subnets(&self) -> Result<Vec<String>> {
        let keys = self.etcd.keys("/coreos.com/network/subnets/")?;
        Ok(keys.iter().filter_map(|key| key.rsplit('/').next()).map(str::to_owned).collect())
    }
}

/// The log of a process that has nothing more to say for now.
pub(crate) fn settled_log(process: &Process) -> Result<String> {
    eventually(SOON, || {
        let before = process.log();
        throughout(allowing_for_load(Duration::from_millis(300)), || {
            ensure!(process.log() == before, "it still writes");
            Ok(())
        })?;
        Ok::<_, anyhow::Error>(before)
    })
}

/// A lease's value as flannel writes it; `backend` is a hardware address for vxlan, or the backend's name.
pub(crate) fn lease(public_ip: &str, backend: &str) -> String {
    let backend = match backend {
        "host-gw" => r#""BackendType":"host-gw""#.to_owned(),
        mac => format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}"#),
    };
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,{backend}}}"#)
}

/// A Pod on a bridge with the node's subnet, joined by hand: the second address of `subnet` (`172.7.21`).
pub(crate) fn pod(host: &Host, subnet: &str) -> Result<Pod> {
    let pod = host.pod("web")?;
    let netns = pod.netns().file_name().and_then(|name| name.to_str()).context("name of the Pod's namespace")?;
    let batch = format!(
        "link add cbr0 type bridge\naddress add {subnet}.1/24 dev cbr0\nlink set cbr0 up\n\
         link add pod0 type veth peer name eth0 netns {netns}\nlink set pod0 master cbr0 up\n"
    );
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    let batch = format!(
        "link set lo up\naddress add {subnet}.2/24 dev eth0\nlink set eth0 up\nroute add default via {subnet}.1\n"
    );
    pod.command("ip").args(["-batch", "-"]).input(batch).run()?;
    Ok(pod)
}

/// A connection from the Pod of hdss7-21 to a server in the Pod of hdss7-22, and both Pods.
pub(crate) struct Conversation {
    connection: echo::Connection,
    _server: Process,
    _pods: [Pod; 2],
}

impl Conversation {
    /// Makes the Pods, connects them and asks once.
    pub(crate) fn open(net: &Net) -> Result<Self> {
        let pods = [pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?];
        let server = echo::serve(&pods[1], "web", 80)?;
        let connection = echo::Connection::open(&pods[0], "172.7.22.2:80".parse()?, SOON)?;
        let mut conversation = Self { connection, _server: server, _pods: pods };
        conversation.ask()?;
        Ok(conversation)
    }

    /// Asks over the same connection.
    pub(crate) fn ask(&mut self) -> Result<()> {
        self.connection.ask().map(drop)
    }
}

/// The nodes have the leases of 172.7.21.0/24 and 172.7.22.0/24 and no other, and the subnet file of hdss7-21 says so.
pub(crate) fn both_keep_their_subnets(net: &Net) -> Result<()> {
    ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
    let file = net.host("hdss7-21")?.read("/run/flannel/subnet.env")?;
    ensure!(file.contains("FLANNEL_SUBNET=172.7.21.1/24"), "{file}");
    Ok(())
}

/// The node's kernel state that netd is responsible for, as text that is equal when the state is. Pods and their bridge
/// are left out: they settle in their own time.
pub(crate) fn kernel_state(host: &Host) -> Result<String> {
    let script = "ip -d link show type vxlan | sed 's/^[0-9]*: //; s/qlen.*//'; ip -4 -br address show type vxlan; ip route | grep -v cbr0; ip neigh show nud permanent; \
                  for dev in $(ls /sys/class/net | grep flannel); do bridge fdb show dev $dev; done; nft -s list ruleset";
    let text = host.run(&["sh", "-c", script])?.stdout;
    Ok(text)
}

/// Routes that a predecessor left on hdss7-21, to a subnet that a lease will name and to one that none does.
pub(crate) struct Left {
    pub(crate) named: &'static str,
    pub(crate) unnamed: &'static str,
}

/// Starts netd on hdss7-21, where `script` has made what a predecessor would, before there is a lease of anybody, so that it doubts the
/// store. Then `key` comes with the lease `value`: each route that it names is netd's at once, and the others stay as they are.
pub(crate) fn lease_replaces_what_is_in_doubt(
    net: &Net,
    script: &str,
    (key, value): (&str, &str),
    left: &[Left],
) -> Result<()> {
    let host = net.host("hdss7-21")?;
    host.run(&["sh", "-ec", script])?;
    let routes = |subnet: &str| -> Result<String> {
        let family = if subnet.contains(':') { "-6" } else { "-4" };
        Ok(host.run(&["ip", family, "route", "show", subnet])?.stdout)
    };
    let unnamed = || left.iter().map(|left| routes(left.unnamed)).collect::<Result<Vec<_>>>();
    let before = unnamed()?;
    ensure!(before.iter().all(|text| text.lines().count() == 1), "{before:?}");
    let netd = net.launch("hdss7-21", &[])?;
    netd.wait_for_line("nothing is removed before a second look", SOON)?;
    net.etcd.put(&format!("/coreos.com/network/subnets/{key}"), value)?;
    eventually(SOON, || {
        for left in left {
            let text = routes(left.named)?;
            ensure!(text.lines().count() == 1 && text.contains("proto 121"), "{}: {text}", left.named);
        }
        Ok(())
    })?;
    let log = settled_log(&netd)?;
    ensure!(unnamed()? == before, "{:?} instead of {before:?}", unnamed()?);
    ensure!(!log.contains("in front of netd's") && !log.contains("second look at the store"), "{log}");
    Ok(())
}

/// What `netd status` on a node knows.
pub(crate) fn status(net: &Net, node: &str) -> Result<serde_json::Value> {
    let host = net.host(node)?;
    let text = host.command(lab::bin("netd")?).args(["status", "--json"]).run()?.stdout;
    Ok(serde_json::from_str(&text)?)
}

/// Runs each of `changes` by itself and expects `state` to be what it was within a second.
pub(crate) fn each_is_repaired(host: &Host, state: fn(&Host) -> Result<String>, changes: &[&str]) -> Result<()> {
    each_is_repaired_at_last(host, state, changes, |change, took| {
        ensure!(took < allowing_for_load(A_SECOND), "`{change}` took {took:?} to repair");
        Ok(())
    })
}

/// Runs each of `changes` by itself, expects `state` to be what it was, and has `judge` say whether it was soon enough.
pub(crate) fn each_is_repaired_at_last(
    host: &Host,
    state: fn(&Host) -> Result<String>,
    changes: &[&str],
    judge: fn(&str, Duration) -> Result<()>,
) -> Result<()> {
    let before = state(host)?;
    for change in changes {
        host.run(&["sh", "-ec", change])?;
        let started = Instant::now();
        eventually(SOON, || {
            let now = state(host)?;
            ensure!(now == before, "after `{change}`:\n{now}\n--- instead of\n{before}");
            Ok(())
        })?;
        judge(change, started.elapsed())?;
    }
    Ok(())
}
