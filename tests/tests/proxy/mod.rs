//! Two nodes with four Pods, an outside host and `ipvs-proxy`: what the tests of the proxy share.
//!
//! Pods are wired by hand, with one bridge per node and a route to the other's Pods: these tests are about the proxy, and no
//! other program of ours may be to blame when one fails.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod cold;
pub(crate) mod configured;
pub(crate) mod counted;
pub(crate) mod exposed;
pub(crate) mod families;
pub(crate) mod filter;
pub(crate) mod killed;
pub(crate) mod node;
pub(crate) mod sctp;

pub(crate) mod affinity;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Place, Pod, Process, Topology, echo, eventually};
use nix::sys::socket::{setsockopt, sockopt};

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const SERVICES: &str = "/run/services";
pub(crate) const WEB: &str = "192.168.0.10:80";

/// A Service with a node port, without endpoints.
pub(crate) const NODE_PORT_WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 192.168.0.10, ports: [{name: http, port: 80, nodePort: 30080}]}
---
";

/// The example that ships with the product.
pub(crate) const WEB_YAML: &str = include_str!("../../../configs/services/web.yaml");

const DRAWING: &str = "network 10.4.7.0/24
hdss7-21.host.com 10.4.7.21
hdss7-22.host.com 10.4.7.22
hdss7-200.host.com 10.4.7.200";

/// The machines; fields end in this order.
pub(crate) struct Nodes {
    servers: Vec<Process>,
    pods: BTreeMap<String, Pod>,
    pub(crate) cluster: Cluster,
}

impl Nodes {
    /// Starts them: Pods 172.7.21.2, .3 and 172.7.22.2, .3, each answering on port 80 with its address as its name.
    pub(crate) fn start() -> Result<Self> {
        let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
        let mut nodes = Self { servers: Vec::new(), pods: BTreeMap::new(), cluster };
        for (own, other) in [(21, 22), (22, 21)] {
            nodes.wire(own, other)?;
        }
        nodes.outside()?.run(&["ip", "route", "add", "192.168.0.0/16", "via", "10.4.7.21"])?;
        Ok(nodes)
    }

    fn wire(&mut self, own: u8, other: u8) -> Result<()> {
        let host = self.cluster.host(&format!("hdss7-{own}"))?.clone();
        host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        let mut batch = format!(
            "link add cbr0 type bridge forward_delay 0\naddress add 172.7.{own}.1/24 dev cbr0\nlink set cbr0 up\n\
             route add 172.7.{other}.0/24 via 10.4.7.{other}\n"
        );
        let pods = [2, 3].map(|last| (format!("172.7.{own}.{last}"), format!("p{last}")));
        for (index, (address, name)) in pods.iter().enumerate() {
            self.pods.insert(address.clone(), host.pod(name)?);
            writeln!(batch, "link add veth{index} type veth peer name eth0 netns cni-{name}")?;
            // Hairpin as the CNI plugin sets it: with br_netfilter the answer of a Pod to itself stays within the bridge.
            writeln!(batch, "link set veth{index} master cbr0 up\nlink set veth{index} type bridge_slave hairpin on")?;
        }
        host.command("ip").args(["-batch", "-"]).input(batch).run()?;
        for (address, _) in &pods {
            let pod = self.pod(address)?;
            let batch =
                format!("address add {address}/24 dev eth0\nlink set eth0 up\nroute add default via 172.7.{own}.1\n");
            pod.command("ip").args(["-batch", "-"]).input(batch).run()?;
            let server = echo::serve(pod, address, 80)?;
            self.servers.push(server);
        }
        // A test that compares the kernel's state must not see the bridge come up.
        eventually(SOON, || {
            let link = host.run(&["ip", "-o", "link", "show", "cbr0"])?.stdout;
            ensure!(link.contains("state UP"), "{link}");
            Ok(())
        })
    }

    /// The node that the tests look at.
    pub(crate) fn node(&self) -> Result<&Host> {
        self.cluster.host("hdss7-21")
    }

    /// The host that is no node.
    pub(crate) fn outside(&self) -> Result<&Host> {
        self.cluster.host("hdss7-200")
    }

    /// The Pod with this address.
    pub(crate) fn pod(&self, address: &str) -> Result<&Pod> {
        self.pods.get(address).with_context(|| format!("no Pod {address}"))
    }

    /// Writes a manifest, whole and at once, into the directory that the proxy watches.
    pub(crate) fn publish(&self, file: &str, content: &str) -> Result<()> {
        let node = self.node()?;
        node.write(format!("/run/new-{file}"), content)?;
        node.run(&["mkdir", "-p", SERVICES])?;
        node.run(&["mv", &format!("/run/new-{file}"), &format!("{SERVICES}/{file}")]).map(drop)
    }

    /// The same without a process for each file, for those who write a hundred in a second.
    pub(crate) fn publish_quickly(&self, file: &str, content: &str) -> Result<()> {
        let node = self.node()?;
        node.write(format!("{SERVICES}/.new"), content)?;
        std::fs::rename(node.path(format!("{SERVICES}/.new")), node.path(format!("{SERVICES}/{file}")))?;
        Ok(())
    }

    /// Starts the proxy on the node and waits until it is ready.
    pub(crate) fn proxy(&self) -> Result<Process> {
        self.proxy_with(&[])
    }

    /// The same with more flags.
    pub(crate) fn proxy_with(&self, flags: &[&str]) -> Result<Process> {
        let command = self.node()?.command(lab::bin("ipvs-proxy")?);
        let command = command.arg(format!("--services-dir={SERVICES}"));
        let command = command.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]).args(flags);
        let proxy = command.start("ipvs-proxy")?;
        proxy.wait_for_line("ready", SOON)?;
        Ok(proxy)
    }

    /// The proxy's status as JSON.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.node()?.read("/run/ipvs-proxy/status.json")?)?)
    }
}

/// A kept-alive connection that ends with a reset: the kernel forgets it after 10 s instead of two minutes.
pub(crate) struct Kept(TcpStream);

impl Kept {
    /// Opens one to [`WEB`].
    pub(crate) fn open(from: &impl Place) -> Result<Self> {
        let stream = from.within(|| TcpStream::connect(WEB))??;
        stream.set_read_timeout(Some(SOON))?;
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        Ok(Self(stream))
    }

    /// The name of who answers on it.
    pub(crate) fn ask(&mut self) -> Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let mut text = String::new();
        while !text.contains("\"name\"") || !text.trim_end().ends_with('}') {
            let mut bytes = [0; 1024];
            let length = self.0.read(&mut bytes)?;
            ensure!(length > 0, "closed after {text:?}");
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        let name = text.split("\"name\":\"").nth(1).and_then(|rest| rest.split('"').next());
        Ok(name.context("an answer without a name")?.to_owned())
    }
}

/// Asks `count` times and counts who answered; the value is the source address that each saw last.
pub(crate) fn spread(from: &impl Place, count: usize) -> Result<BTreeMap<String, (usize, String)>> {
    let server: SocketAddr = WEB.parse()?;
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let answer = echo::ask_tcp(from, server, SOON)?;
        let entry = answers.entry(answer.name).or_insert((0, String::new()));
        *entry = (entry.0 + 1, answer.client.ip().to_string());
    }
    Ok(answers)
}

/// What `ipvsadm -Sn` prints, sorted: every virtual and real server with its options.
pub(crate) fn servers(host: &Host) -> Result<Vec<String>> {
    let text = host.run(&["ipvsadm", "-Sn"])?.stdout;
    let mut lines: Vec<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    Ok(lines)
}

/// How long something deleted may be away: a second, and what looking at it costs on this machine, which may have other work.
pub(crate) fn away(host: &Host) -> Result<Duration> {
    let begun = Instant::now();
    servers(host)?;
    Ok(Duration::from_secs(3) + begun.elapsed() * 30)
}

/// Waits until the real servers of `web` with their weights are these.
pub(crate) fn await_reals(host: &Host, expected: &[(&str, u32)]) -> Result<()> {
    let mut expected: Vec<_> =
        expected.iter().map(|(addr, weight)| format!("-a -t {WEB} -r {addr}:80 -m -w {weight}")).collect();
    expected.sort();
    eventually(SOON, || {
        let mut found = servers(host)?;
        found.retain(|line| line.starts_with(&format!("-a -t {WEB}")));
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
}

/// The slice of `web` with these endpoints, as a manifest of its own.
pub(crate) fn slice(endpoints: &[&str]) -> String {
    let mut text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
        ports: [{name: http, port: 80}]\nendpoints:\n"
        .to_owned();
    for endpoint in endpoints {
        text.push_str(&format!("- addresses: [{endpoint}]\n"));
    }
    text
}

/// A hundred changes of endpoints, and the last one in the kernel.
pub(crate) fn churn(nodes: &Nodes) -> Result<()> {
    for turn in 0..100 {
        let pods = if turn % 2 == 0 { ["172.7.21.3", "172.7.22.2"] } else { ["172.7.21.2", "172.7.22.3"] };
        nodes.publish_quickly("slice.yaml", &slice(&pods))?;
    }
    await_reals(nodes.node()?, &[("172.7.21.2", 1), ("172.7.22.3", 1)])
}

/// The Service `web` alone.
pub(crate) const WEB_SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 192.168.0.10, ports: [{name: http, port: 80}]}
";

/// A Service of UDP with these endpoints, as a manifest.
pub(crate) fn dns(endpoints: &[&str]) -> String {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\n\
        spec: {clusterIP: 192.168.0.53, ports: [{name: dns, port: 53, protocol: UDP}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: dns-1, labels: {kubernetes.io/service-name: dns}}\n\
        ports: [{name: dns, port: 80, protocol: UDP}]\nendpoints:\n"
        .to_owned();
    for endpoint in endpoints {
        text.push_str(&format!("- addresses: [{endpoint}]\n"));
    }
    text
}

/// Its address.
pub(crate) const DNS: &str = "192.168.0.53:53";

/// Sends a datagram on a socket that is kept, and answers the name of who answered.
pub(crate) fn ask(socket: &UdpSocket) -> Result<String> {
    socket.send(b"who are you?\n")?;
    let mut bytes = [0; 512];
    let length = socket.recv(&mut bytes).context("no answer")?;
    let answer: serde_json::Value = serde_json::from_slice(&bytes[..length])?;
    Ok(answer["name"].as_str().unwrap_or_default().to_owned())
}

/// A socket of UDP that is connected to [`DNS`].
pub(crate) fn client(from: &impl Place) -> Result<UdpSocket> {
    let opened = from.within(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(DNS)?;
        Ok::<_, std::io::Error>(socket)
    })?;
    Ok(opened?)
}

/// Keeps a flow to [`DNS`] whose endpoints are 172.7.21.3 and 172.7.22.2, takes its endpoint out, and returns the other one, which must
/// answer the flow then.
pub(crate) fn flow_moves_on(nodes: &Nodes) -> Result<&'static str> {
    let socket = client(nodes.pod("172.7.21.2")?)?;
    let first = ask(&socket)?;
    ensure!(ask(&socket)? == first, "a flow stays with its endpoint");
    let other = if first == "172.7.21.3" { "172.7.22.2" } else { "172.7.21.3" };
    nodes.publish("dns.yaml", &dns(&[other]))?;
    eventually(SOON, || {
        let name = ask(&socket)?;
        ensure!(name == other, "{name}");
        Ok(())
    })?;
    Ok(other)
}
