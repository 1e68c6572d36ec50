//! Two nodes with a Pod each: `ipvs-proxy` where the client is, nginx and an echo where the server is.
//!
//! Invariant: every Service but one has endpoints that nobody asks.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::{Pod, Process, bin, eventually};

use super::Way;
use crate::path::ground::{Carrier, Ground};
use crate::path::load::{self, Ends};

const LIMIT: Duration = Duration::from_secs(120);
const DIRECTORY: &str = "/run/services";
/// The Pod on the second node, and the virtual address of the Service that leads to it.
const SERVER: [u8; 4] = [172, 7, 22, 2];
const VIRTUAL: [u8; 4] = [192, 168, 250, 10];
/// The address that a rule by hand leads to the same Pod: what the kernel takes for it without a Service.
const BY_HAND: [u8; 4] = [10, 250, 0, 10];
/// The ports of nginx and of the Service in front of it.
const NGINX: u16 = 8080;
const HTTP: u16 = 80;

/// What runs on the nodes; it ends with the value.
pub(super) struct Served {
    /// Before the machines they run on.
    _processes: [Process; 2],
    ground: Ground,
}

impl Served {
    /// Starts the proxy in this mode with so many Services.
    pub(super) fn start(mode: &str, services: usize) -> Result<Self> {
        let ground = Ground::by_hand(Carrier::HostGw)?;
        let node = ground.node(21)?;
        node.run(&["mkdir", "-p", DIRECTORY])?;
        // The lab kernel tracks 8,192 connections, and wrk makes more of them in the time that they would be remembered.
        node.run(&["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1"])?;
        node.write(format!("{DIRECTORY}/services.yaml"), manifests(services))?;
        let proxy = node.command(bin("ipvs-proxy")?).arg(format!("--services-dir={DIRECTORY}"));
        let proxy = proxy.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16", "--proxy-mode", mode]);
        node.command("nft").args(["-f", "-"]).input(rule_by_hand()).run()?;
        let proxy = proxy.start("ipvs-proxy")?;
        proxy.wait_for_line("ready", LIMIT)?;
        let server = ground.pods.get(1).context("two Pods expected")?;
        let nginx = nginx(server)?;
        let client = ground.pods.first().context("two Pods expected")?;
        client.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"])?;
        // The clock of a connection's time stamps begins anew for each address that is connected to. To the server all ways are one address: a
        // port that was used on another way a minute ago seems to come from the past, and each such connection waits a second.
        client.run(&["sysctl", "-qw", "net.ipv4.tcp_timestamps=2"])?;
        let served = Self { _processes: [proxy, nginx], ground };
        let (from, _) = served.ends()?;
        for way in Way::ALL {
            eventually(LIMIT, || lab::echo::fetch(from, served.web(way), "/", Duration::from_secs(2)).map(drop))?;
        }
        Ok(served)
    }

    /// The client and the server.
    pub(super) fn ends(&self) -> Result<(&Pod, &Pod)> {
        let [client, server] = self.ground.pods.as_slice() else { bail!("two Pods expected") };
        Ok((client, server))
    }

    /// Where nginx is.
    pub(super) fn web(&self, way: Way) -> SocketAddr {
        match way {
            Way::Direct => SocketAddr::new(SERVER.into(), NGINX),
            Way::ByHand => SocketAddr::new(BY_HAND.into(), HTTP),
            Way::Virtual => SocketAddr::new(VIRTUAL.into(), HTTP),
        }
    }

    /// Where the ends of a load are.
    pub(super) fn echo(&self, way: Way) -> Result<Ends> {
        let addr: IpAddr = match way {
            Way::Direct => SERVER.into(),
            Way::ByHand => BY_HAND.into(),
            Way::Virtual => VIRTUAL.into(),
        };
        Ok(Ends { listens_at: SERVER.into(), reached_at: addr })
    }
}

/// The rules of a table of nobody's.
fn rule_by_hand() -> String {
    let [from, to] = [BY_HAND, SERVER].map(IpAddr::from);
    format!(
        "table ip by-hand {{\n chain prerouting {{\n type nat hook prerouting priority dstnat;\n \
         ip daddr {from} tcp dport {HTTP} dnat to {to}:{NGINX}\n ip daddr {from} dnat to {to}\n }}\n}}\n"
    )
}

/// A Service that leads to the server, and as many more as make them `count`.
fn manifests(count: usize) -> String {
    let ports = |port: &str| {
        format!(
            "{{name: http, port: {HTTP}, targetPort: {NGINX}}}, {{name: stream, port: {port}}}, {{name: echo, port: {port}, protocol: UDP}}"
        )
    };
    let port = load::PORT.to_string();
    let of_slice = format!(
        "{{name: http, port: {NGINX}}}, {{name: stream, port: {port}}}, {{name: echo, port: {port}, protocol: UDP}}"
    );
    let mut text = manifest("server", VIRTUAL.into(), (&ports(&port), &of_slice), &[SERVER.into()]);
    for number in (1..count).filter_map(|number| u16::try_from(number).ok()) {
        let [high, low] = number.to_be_bytes();
        let pods = (10..15).map(|last| IpAddr::from([172, 7, 128 + high, last])).collect::<Vec<_>>();
        let one = "{name: http, port: 80}";
        text += &manifest(&format!("s{number}"), [192, 168, high, low].into(), (one, one), &pods);
    }
    text
}

fn manifest(name: &str, addr: IpAddr, (ports, of_slice): (&str, &str), endpoints: &[IpAddr]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {addr}, ports: [{ports}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\nports: [{of_slice}]\nendpoints:\n"
    );
    for endpoint in endpoints {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "- {{addresses: [{endpoint}], nodeName: elsewhere}}");
    }
    text + "---\n"
}

fn nginx(pod: &Pod) -> Result<Process> {
    let folder = "/run/nginx";
    pod.host().run(&["mkdir", "-p", folder])?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};"))
        .concat();
    let configuration = format!(
        "daemon off; master_process off; pid {folder}/pid; error_log stderr warn;\nevents {{ worker_connections 512; }}\n\
         http {{ access_log off; keepalive_requests 1000000; {temporary}\n\
         server {{ listen {NGINX} backlog=1024; location / {{ return 200 \"pod\\n\"; }} }} }}\n"
    );
    pod.host().write(format!("{folder}/nginx.conf"), configuration)?;
    pod.command("nginx").args(["-p", folder, "-e", "stderr", "-c", &format!("{folder}/nginx.conf")]).start("nginx")
}
