//! The oracle's machines: two nodes with their Pods, a host outside, and a gateway that drops everything.
//!
//! Invariant: both directions of every flow pass n1. What leaves a Pod of n2 goes to n1 first, even to its neighbour.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Place, Pod, Topology, eventually};

use super::server::{self, Server};

const SOON: Duration = Duration::from_secs(60);

const DRAWING: &str = "network 10.4.7.0/24
n1 10.4.7.21
n2 10.4.7.22
outside 10.4.7.200
gateway 10.4.7.254";

/// Pods of n1 and of n2 with the last number of their addresses. The first of each is a client, the others are endpoints.
const PODS: [(u8, [(&str, u8); 4]); 2] = [
    (21, [("c1", 50), ("p11", 11), ("p12", 12), ("p13", 13)]),
    (22, [("c2", 50), ("p21", 11), ("p22", 12), ("p23", 13)]),
];

/// Every machine forwards, answers errors at any rate, and neither sends nor follows redirects.
const PARAMETERS: [&str; 18] = [
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.conf.eth0.rp_filter=0",
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.default.send_redirects=0",
    "net.ipv4.conf.eth0.send_redirects=0",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv4.icmp_msgs_per_sec=1000000",
    "net.ipv4.icmp_msgs_burst=1000000",
    "net.ipv6.icmp.ratelimit=0",
    "net.ipv4.ping_group_range=0 2147483647",
    "net.bridge.bridge-nf-call-iptables=1",
    "net.bridge.bridge-nf-call-ip6tables=1",
    "net.netfilter.nf_conntrack_max=262144",
];

/// The machines; fields end in this order.
pub(crate) struct Machines {
    _servers: Server,
    pods: BTreeMap<&'static str, Pod>,
    cluster: Cluster,
}

impl Machines {
    /// Starts and wires them, with an echo server behind every address that may be an endpoint.
    pub(crate) fn start() -> Result<Self> {
        let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
        let mut pods = BTreeMap::new();
        for host in cluster.hosts() {
            parameters(host)?;
        }
        for (own, other) in [(21, 22), (22, 21)] {
            let (host, node) = (cluster.host(&format!("n{}", own - 20))?, PODS[usize::from(own - 21)]);
            wire_node(host, own, other)?;
            for (name, last) in node.1 {
                pods.insert(name, wire_pod(host, name, (own, last))?);
            }
        }
        wire_others(&cluster)?;
        let _servers = serve(&cluster, &pods)?;
        let machines = Self { _servers, pods, cluster };
        machines.await_links()?;
        Ok(machines)
    }

    /// The node under test.
    pub(crate) fn n1(&self) -> Result<&Host> {
        self.cluster.host("n1")
    }

    /// Runs `work` where a client of the recorded probes is.
    pub(crate) fn at<T: Send>(&self, client: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        match client {
            "pod-n1" => self.pod("c1")?.within(work),
            "pod-n2" => self.pod("c2")?.within(work),
            "node-n1" => self.n1()?.within(work),
            "outside" => self.cluster.host("outside")?.within(work),
            other => self.pod(other)?.within(work),
        }
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("no client {name}"))
    }

    /// An address of IPv6 can be used only when nobody else was found to have it, which takes a second for those of the links.
    fn await_links(&self) -> Result<()> {
        eventually(SOON, || {
            for host in self.cluster.hosts() {
                let tentative = host.run(&["ip", "-6", "-o", "address", "show", "tentative"])?.stdout;
                ensure!(tentative.is_empty(), "{}: {tentative}", host.name());
                let down = host.run(&["ip", "-o", "link", "show", "type", "bridge"])?.stdout;
                ensure!(!down.contains("state DOWN"), "{}: {down}", host.name());
            }
            Ok(())
        })
    }
}

fn parameters(place: &impl Place) -> Result<()> {
    // What a kernel does not have, or not for each network, is left as it is.
    place.run(&[&["sysctl", "-eqw"], &PARAMETERS[..]].concat()).map(drop)
}

fn batch(place: &impl Place, family: &str, lines: String) -> Result<()> {
    place.command("ip".as_ref()).args([family, "-batch", "-"]).input(lines).run().map(drop)
}

fn wire_node(host: &Host, own: u8, other: u8) -> Result<()> {
    let mut v4 = format!(
        "link add cbr0 type bridge forward_delay 0 mcast_snooping 0\naddress add 172.7.{own}.1/24 dev cbr0\n\
         link set cbr0 up\nroute add 172.7.{other}.0/24 via 10.4.7.{other}\nroute add default via 10.4.7.254\n"
    );
    let mut v6 = format!(
        "address add fd00:7:{own}::1/64 dev cbr0 nodad\naddress add fd00:4:7::{own}/64 dev eth0 nodad\n\
         route add fd00:7:{other}::/64 via fd00:4:7::{other}\nroute add default via fd00:4:7::254\n"
    );
    if own == 21 {
        v4.push_str("address add 10.4.7.121/24 dev eth0\n");
        // Deprecated: what n1 sends has the other one.
        v6.push_str("address add fd00:4:7::121/64 dev eth0 nodad preferred_lft 0\n");
    } else {
        v4.push_str("route add default via 10.4.7.21 table 100\nrule add iif cbr0 lookup 100\n");
        v6.push_str("route add default via fd00:4:7::21 table 100\nrule add iif cbr0 lookup 100\n");
    }
    batch(host, "-4", v4)?;
    batch(host, "-6", v6)
}

/// A Pod on its node's bridge. Those of n2 know nobody on their link but the gateway.
fn wire_pod(host: &Host, name: &str, (node, last): (u8, u8)) -> Result<Pod> {
    let pod = host.pod(name)?;
    let link = format!(
        "link add v{name} type veth peer name eth0 netns cni-{name}\nlink set v{name} master cbr0 up\n\
         link set v{name} type bridge_slave hairpin on\n"
    );
    batch(host, "-4", link)?;
    let (v4_len, v6_len) = if node == 21 { (24, 64) } else { (32, 128) };
    let mut v4 = format!("link set lo up\naddress add 172.7.{node}.{last}/{v4_len} dev eth0\nlink set eth0 up\n");
    let mut v6 = format!("address add fd00:7:{node}::{last}/{v6_len} dev eth0 nodad\n");
    if node == 22 {
        writeln!(v4, "route add 172.7.{node}.1 dev eth0")?;
        writeln!(v6, "route add fd00:7:{node}::1 dev eth0")?;
    }
    writeln!(v4, "route add default via 172.7.{node}.1")?;
    writeln!(v6, "route add default via fd00:7:{node}::1")?;
    batch(&pod, "-4", v4)?;
    batch(&pod, "-6", v6)?;
    parameters(&pod)?;
    Ok(pod)
}

fn wire_others(cluster: &Cluster) -> Result<()> {
    let outside = cluster.host("outside")?;
    let (mut v4, mut v6) = (String::new(), "address add fd00:4:7::200/64 dev eth0 nodad\n".to_owned());
    for (network, twin) in
        [("10.96.0.0/16", "fd00:10:96::/112"), ("203.0.113.0/24", "fd00:203::/64"), ("172.7.0.0/16", "fd00:7::/32")]
    {
        writeln!(v4, "route add {network} via 10.4.7.21")?;
        writeln!(v6, "route add {twin} via fd00:4:7::21")?;
    }
    batch(outside, "-4", v4)?;
    batch(outside, "-6", v6)?;
    let gateway = cluster.host("gateway")?;
    batch(gateway, "-4", "route add blackhole default\n".to_owned())?;
    // The default route of a machine that has none answers; this one is silent.
    batch(gateway, "-6", "address add fd00:4:7::254/64 dev eth0 nodad\nroute add blackhole default\n".to_owned())
}

fn serve(cluster: &Cluster, pods: &BTreeMap<&'static str, Pod>) -> Result<Server> {
    let mut sockets = Vec::new();
    for (node, all) in PODS {
        for (name, last) in &all[1..] {
            let addresses = [v4([172, 7, node, *last]), format!("fd00:7:{node}::{last}").parse()?];
            let opened = pods.get(name).context("no such Pod")?.within(|| server::open(name, &addresses))?;
            sockets.extend(opened.with_context(|| format!("listen in {name}"))?);
        }
        let (host, name) = (cluster.host(&format!("n{}", node - 20))?, format!("n{}-host", node - 20));
        let addresses = [v4([10, 4, 7, node]), format!("fd00:4:7::{node}").parse()?];
        sockets.extend(host.within(|| server::open(&name, &addresses))?.with_context(|| format!("listen as {name}"))?);
    }
    Server::start(sockets)
}

fn v4(octets: [u8; 4]) -> IpAddr {
    octets.into()
}
