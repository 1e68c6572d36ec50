//! The ground: two nodes on one veth pair, each with a bridge and a Pod, and what carries packets between them made by hand.
//!
//! Invariant: two grounds differ in what carries the packets and in nothing else; on a ground made by hand nothing filters or
//! tracks before a step says so.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Pod, Topology};

const DRAWING: &str = "network 10.4.7.0/24\nnode-21 10.4.7.21 etcd\nnode-22 10.4.7.22";
/// Numbers of the two nodes, by which everything is named.
pub(crate) const NUMBERS: [u8; 2] = [21, 22];

/// What carries packets from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Vxlan,
    HostGw,
    IpIp,
    WireGuard,
}

impl Carrier {
    /// The backend's name in net-conf.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::IpIp => "ipip",
            Self::WireGuard => "wireguard",
        }
    }

    /// MTU of the Pods on links of 1500 bytes, as flannel sets it.
    const fn mtu(self) -> u16 {
        match self {
            Self::Vxlan => 1450,
            Self::HostGw => 1500,
            Self::IpIp => 1480,
            Self::WireGuard => 1420,
        }
    }

    /// The lines of `ip -batch` and of `bridge -batch` that make the way from node `own` to node `other`.
    fn lines(self, [own, other]: [u8; 2]) -> (String, String) {
        let (mtu, device) = (self.mtu(), format!("flannel.{}", if self == Self::IpIp { "ipip" } else { "1" }));
        let route = |hop: &str| format!("route add 172.7.{other}.0/24 {hop}\n");
        match self {
            Self::HostGw => (route(&format!("via 10.4.7.{other}")), String::new()),
            Self::WireGuard => (String::new(), String::new()),
            Self::IpIp => {
                let made = format!("link add {device} type ipip local 10.4.7.{own} ttl inherit\n");
                let up = format!("link set {device} mtu {mtu} up\naddress add 172.7.{own}.0/32 dev {device}\n");
                (made + &up + &route(&format!("via 10.4.7.{other} dev {device} onlink")), String::new())
            }
            Self::Vxlan => {
                let made = format!(
                    "link add {device} address 0e:00:00:00:00:{own} type vxlan id 1 dev eth0 local 10.4.7.{own} dstport 8472 nolearning\n"
                );
                let up = format!("link set {device} mtu {mtu} up\naddress add 172.7.{own}.0/32 dev {device}\n");
                let neighbour = format!("neighbour add 172.7.{other}.0 lladdr 0e:00:00:00:00:{other} dev {device}\n");
                let ways = neighbour + &route(&format!("via 172.7.{other}.0 dev {device} onlink"));
                (made + &up + &ways, format!("fdb add 0e:00:00:00:00:{other} dev {device} dst 10.4.7.{other}\n"))
            }
        }
    }
}

/// Two nodes and their Pods; all of it ends with the value.
pub(crate) struct Ground {
    /// Before the machines: a Pod is a file on its machine.
    pub(crate) pods: Vec<Pod>,
    cluster: Cluster,
}

impl Ground {
    /// Makes the nodes and the Pods, which reach nothing but their own node.
    pub(crate) fn new(mtu: Option<Carrier>) -> Result<Self> {
        let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
        let mut ground = Self { pods: Vec::new(), cluster };
        ground.wire()?;
        for number in NUMBERS {
            let pod = ground.pod(number, mtu.map_or(1500, Carrier::mtu))?;
            ground.pods.push(pod);
        }
        Ok(ground)
    }

    /// With `carrier` made by hand, and no rules.
    pub(crate) fn by_hand(carrier: Carrier) -> Result<Self> {
        let ground = Self::new(Some(carrier))?;
        let mut keys = Vec::new();
        for (number, other) in [(21, 22), (22, 21)] {
            let host = ground.node(number)?;
            let (links, entries) = carrier.lines([number, other]);
            host.command("ip").args(["-batch", "-"]).input(links).run()?;
            host.command("bridge").args(["-batch", "-"]).input(entries).run()?;
            if carrier == Carrier::WireGuard {
                keys.push(make_identity(host, number)?);
            }
        }
        for (number, other, key) in NUMBERS.iter().zip([22, 21]).zip(keys.iter().rev()).map(|((a, b), c)| (*a, b, c)) {
            let peer = format!(
                "wg set wg0 peer {key} endpoint 10.4.7.{other}:51820 allowed-ips 172.7.{other}.0/24 && \
                 ip route add 172.7.{other}.0/24 dev wg0"
            );
            ground.node(number)?.run(&["sh", "-c", &peer])?;
        }
        Ok(ground)
    }

    /// The machine of a number.
    pub(crate) fn node(&self, number: u8) -> Result<&Host> {
        self.cluster.host(&format!("node-{number}"))
    }

    /// Both machines.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.cluster.hosts()
    }

    /// One veth pair in place of the switch: the link of the measurement is as bare as can be.
    fn wire(&self) -> Result<()> {
        let ids = self.nodes().map(|host| host.pid().to_string()).collect::<Vec<_>>();
        let [first, second] = ids.as_slice() else { anyhow::bail!("{} nodes", ids.len()) };
        for host in self.nodes() {
            host.run(&["ip", "link", "delete", "eth0"])?;
        }
        let words = ["link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second];
        let made = Command::new("ip").args(words).status().context("ip link add")?;
        ensure!(made.success(), "ip {}: {made}", words.join(" "));
        for host in self.nodes() {
            let address = host.address()?;
            let lines =
                format!("address add {address}/24 dev eth0\nlink set eth0 up\nroute add default via 10.4.7.1\n");
            host.command("ip").args(["-batch", "-"]).input(lines).run()?;
            host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        }
        Ok(())
    }

    fn pod(&self, number: u8, mtu: u16) -> Result<Pod> {
        let host = self.node(number)?;
        let pod = host.pod("web")?;
        let netns = pod.netns().file_name().and_then(|name| name.to_str()).context("name of the Pod's namespace")?;
        let lines = format!(
            "link add cbr0 type bridge\naddress add 172.7.{number}.1/24 dev cbr0\nlink set cbr0 up\n\
             link add pod0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}\nlink set pod0 master cbr0 up\n"
        );
        host.command("ip").args(["-batch", "-"]).input(lines).run()?;
        let lines = format!(
            "link set lo up\naddress add 172.7.{number}.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.7.{number}.1\n"
        );
        pod.command("ip").args(["-batch", "-"]).input(lines).run()?;
        Ok(pod)
    }
}

/// A WireGuard device with a key of its own; returns the public one.
fn make_identity(host: &Host, number: u8) -> Result<String> {
    let script = format!(
        "umask 077; wg genkey >/run/key && ip link add wg0 mtu {} type wireguard && \
         wg set wg0 private-key /run/key listen-port 51820 && ip address add 172.7.{number}.0/32 dev wg0 && \
         ip link set wg0 up && wg pubkey </run/key",
        Carrier::WireGuard.mtu()
    );
    Ok(host.run(&["sh", "-c", &script])?.stdout.trim().to_owned())
}
