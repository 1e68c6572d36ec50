//! `Flowtable: true` on a kernel that has flowtables: which flows take the short way, and what it must not break.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Need, Pod, Process, echo, eventually};
use netd_node::flowtable::{eventually_links, links};
use netd_node::traffic::Traffic;
use netd_node::transfer::transfer;
use netd_node::{Net, SOON, VXLAN, each_is_repaired, pod, settled_log};

const CONFIG: &str = "/coreos.com/network/config";
const FLOWS: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"},"Flowtable":true}"#;
const FLOWS_HOST_GW: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"},"Flowtable":true}"#;
/// The flowtable's links with VXLAN.
const LINKS: &[&str] = &["cbr0", "eth0", "flannel.1"];
/// Where the second Pod takes transfers.
const SERVER: &str = "172.7.22.2:5001";
const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

/// Both nodes with a Pod each, and netd.
struct Nodes {
    pods: Vec<Pod>,
    _netd: [Process; 2],
    net: Net,
}

impl Nodes {
    fn start(config: &str) -> Result<Self> {
        let net = Net::start(config)?;
        let netd = net.both()?;
        let pods = vec![pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?];
        Ok(Self { pods, _netd: netd, net })
    }

    fn node(&self) -> Result<&Host> {
        self.net.host(NODES[0])
    }
}

/// Nodes on which every flow of a Pod that is established takes the short way.
fn with_flowtable(config: &str, links: &[&str]) -> Result<Nodes> {
    let nodes = Nodes::start(config)?;
    NODES.iter().try_for_each(|name| eventually_links(nodes.net.host(name)?, links))?;
    Ok(nodes)
}

/// Connections that take the short way, as conntrack lists them.
fn offloaded(host: &Host) -> Result<Vec<String>> {
    let listed = host.run(&["conntrack", "-L"])?.stdout;
    Ok(listed.lines().filter(|line| line.contains("[OFFLOAD]")).map(str::to_owned).collect())
}

fn eventually_offloaded(host: &Host, what: &str) -> Result<()> {
    eventually(SOON, || {
        let found = offloaded(host)?;
        ensure!(found.iter().any(|line| what.split(' ').all(|word| line.contains(word))), "no {what}: {found:#?}");
        Ok(())
    })
}

/// Counts packets from the first Pod to port 80 that meet the forward hook.
fn count_forwarded(host: &Host) -> Result<()> {
    let table = "table ip probe { chain forward { type filter hook forward priority 10; \
                 ip saddr 172.7.21.2 tcp dport 80 counter; }\n}\n";
    let table = table.replace("; }", ";\n}");
    host.command("nft").args(["-f", "-"]).input(table).run().map(drop)
}

fn forwarded(host: &Host) -> Result<u64> {
    let text = host.run(&["nft", "list", "table", "ip", "probe"])?.stdout;
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").context("no counter")?;
    Ok(words[at + 1].parse()?)
}

/// None of the connection's packets meets the rules for ten answers. Whatever changes a route, an address or a link of the node, a carrier
/// that the kernel announces up to a second late included, makes the kernel look each flow's route up anew, with one packet by the rules.
fn eventually_takes_the_short_way(host: &Host, traffic: &Traffic) -> Result<()> {
    eventually(SOON, || {
        let before = forwarded(host)?;
        traffic.flows()?;
        // Datagrams are new connections each; only TCP is counted.
        let met = forwarded(host)? - before;
        ensure!(met == 0, "{met} packets met the forward hook");
        Ok(())
    })
}

/// Connection and datagrams go on while the short way comes, goes, comes again and netd is started anew.
fn established_flows_take_the_short_way_and_survive_its_end() -> Result<()> {
    let Nodes { mut pods, _netd: [first, second], net } = Nodes::start(VXLAN)?;
    let host = net.host(NODES[0])?;
    let traffic = Traffic::start(pods.remove(0), &pods[0], "172.7.22.2")?;
    ensure!(offloaded(host)?.is_empty() && links(host)?.is_empty(), "it is off by default");
    net.etcd.put(CONFIG, FLOWS)?;
    eventually_links(host, LINKS)?;
    eventually_offloaded(host, "tcp dst=172.7.22.2 dport=80")?;
    eventually_offloaded(net.host(NODES[1])?, "tcp dst=172.7.22.2 dport=80")?;
    count_forwarded(host)?;
    eventually_takes_the_short_way(host, &traffic)?;
    let before = numbered(host)?;
    first.terminate(SOON)?;
    let _again = net.netd(NODES[0])?;
    eventually_links(host, LINKS)?;
    eventually_takes_the_short_way(host, &traffic)?;
    ensure!(numbered(host)? == before, "the restart made the table anew: {before} {}", numbered(host)?);
    net.etcd.put(CONFIG, VXLAN)?;
    eventually_links(host, &[])?;
    let before = forwarded(host)?;
    traffic.flows()?;
    ensure!(forwarded(host)? >= before + 10, "the connection takes the ordinary way again");
    net.etcd.put(CONFIG, FLOWS)?;
    eventually_offloaded(host, "tcp dst=172.7.22.2 dport=80")?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    second.terminate(SOON)?;
    let there = net.host(NODES[1])?;
    ensure!(!links(there)?.is_empty(), "the data path outlives the program");
    there.command(lab::bin("netd")?).args(["cleanup", "--yes"]).run()?;
    ensure!(!there.run(&["nft", "list", "tables"])?.stdout.contains("netd"), "cleanup left the table");
    Ok(())
}

/// The table with the kernel's numbers of its parts: what is made anew has others.
fn numbered(host: &Host) -> Result<String> {
    Ok(host.run(&["nft", "--handle", "list", "table", "inet", "netd"])?.stdout)
}

/// A link that comes up changes the routes, by which each flow is looked up anew, once.
fn flows_leave_for_a_packet_when_routes_change_and_come_back() -> Result<()> {
    let Nodes { mut pods, _netd: _running, net } = Nodes::start(FLOWS)?;
    let host = net.host(NODES[0])?;
    let traffic = Traffic::start(pods.remove(0), &pods[0], "172.7.22.2")?;
    eventually_offloaded(host, "tcp dst=172.7.22.2 dport=80")?;
    count_forwarded(host)?;
    eventually_takes_the_short_way(host, &traffic)?;
    let before = forwarded(host)?;
    host.run(&["sh", "-c", "ip link add other type dummy && ip link set other up"])?;
    eventually(SOON, || {
        ensure!(forwarded(host)? > before, "the flow kept a route that may have changed");
        Ok(())
    })?;
    eventually_takes_the_short_way(host, &traffic)?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    Ok(())
}

/// Where the interface towards the others is a bridge, the kernel may follow that to its port.
fn flows_take_the_short_way_through_an_interface_that_is_a_bridge() -> Result<()> {
    let net = Net::start(FLOWS_HOST_GW)?;
    for (node, address) in NODES.iter().zip(["10.4.7.21/24", "10.4.7.22/24"]) {
        let batch = format!(
            "address del {address} dev eth0\nlink add br0 type bridge\nlink set eth0 master br0\nlink set br0 up\n\
             address add {address} dev br0\n"
        );
        net.host(node)?.command("ip").args(["-batch", "-"]).input(batch).run()?;
    }
    let start = |node: &str| {
        let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
        net.host(node)?.command(lab::bin("netd")?).args([&endpoints, "--iface=br0", "--ip-masq"]).start("netd")
    };
    let _netd = [start(NODES[0])?, start(NODES[1])?];
    net.eventually_routes(NODES[0], "172.7.22.0/24")?;
    net.eventually_routes(NODES[1], "172.7.21.0/24")?;
    let host = net.host(NODES[0])?;
    let pods = [pod(host, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?];
    let [client, server] = pods;
    let traffic = Traffic::start(client, &server, "172.7.22.2")?;
    eventually_offloaded(host, "tcp dst=172.7.22.2 dport=80")?;
    eventually_offloaded(net.host(NODES[1])?, "tcp dst=172.7.22.2 dport=80")?;
    count_forwarded(host)?;
    eventually_takes_the_short_way(host, &traffic)?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    Ok(())
}

/// The nft table of the short way and the links that it needs.
fn table(host: &Host) -> Result<String> {
    let listed = host.command("nft").args(["-s", "list", "table", "inet", "netd"]).output()?;
    Ok(listed.stdout)
}

fn deleted_parts_and_links_made_anew_come_back() -> Result<()> {
    let nodes = with_flowtable(FLOWS, LINKS)?;
    let parts = [
        "nft delete table inet netd",
        "nft flush chain inet netd forward",
        "nft 'flush chain inet netd forward; delete flowtable inet netd pods'",
    ];
    each_is_repaired(nodes.node()?, table, &parts)?;
    // On the other node: a table that somebody has undone three times in a row is put back more slowly.
    let links = [
        "ip link delete flannel.1",
        "ip link delete cbr0; ip link add cbr0 type bridge; ip address add 172.7.22.1/24 dev cbr0; ip link set cbr0 up; \
         ip link set pod0 master cbr0",
    ];
    let host = nodes.net.host(NODES[1])?;
    each_is_repaired(host, table, &links)?;
    // A node without Pods has nothing to send the short way.
    host.run(&["ip", "link", "delete", "cbr0"])?;
    eventually_links(host, &[])?;
    // Until the bridge is known to be gone, the kernel refuses the table for it; and the status is written after the pass.
    eventually(SOON, || {
        let warnings = nodes.net.status(NODES[1])?["warnings"].to_string();
        ensure!(!warnings.contains("Flowtable"), "{warnings}");
        Ok(())
    })
}

/// A tunnel that becomes narrower, large transfers before and after, and a packet that is too large.
fn large_packets_and_a_narrower_tunnel_pass() -> Result<()> {
    let nodes = with_flowtable(FLOWS, LINKS)?;
    let (first, second) = (&nodes.pods[0], &nodes.pods[1]);
    transfer(first, second, SERVER.parse()?, 20 << 20)?;
    ensure!(first.run(&["ping", "-c1", "-W2", "-M", "do", "-s", "1450", "172.7.22.2"]).is_err());
    let narrow = FLOWS.replace(r#""vxlan""#, r#""vxlan","MTU":1300"#);
    nodes.net.etcd.put(CONFIG, &narrow)?;
    eventually(SOON, || {
        let mtu = nodes.node()?.read("/sys/class/net/flannel.1/mtu")?;
        ensure!(mtu.trim() == "1250", "{mtu}");
        Ok(())
    })?;
    transfer(first, second, SERVER.parse()?, 20 << 20)?;
    eventually_links(nodes.node()?, LINKS)
}

/// Without the interface below it the tunnel device cannot be made, and nothing that stands on it: that is one line.
fn interface_that_goes_is_one_line_in_the_log() -> Result<()> {
    let Nodes { _netd: [first, _second], net, pods: _pods } = with_flowtable(FLOWS, LINKS)?;
    let before = settled_log(&first)?.lines().count();
    let host = net.host(NODES[0])?;
    host.run(&["ip", "link", "delete", "eth0"])?;
    first.wait_for_line("link eth0 does not exist", SOON)?;
    // The status is written after the pass and its lines.
    eventually(SOON, || {
        let tables = net.status(NODES[0])?["tables"].clone();
        ensure!(tables["routes"]["done"] == 0, "{tables}");
        Ok(())
    })?;
    let log = first.log();
    let warnings: Vec<&str> = log.lines().skip(before).filter(|line| line.contains(" WARN ")).collect();
    let of_tables = |line: &&&str| {
        ["links: ", "routes: ", "fdb: ", "addresses: ", "neighbours: ", "sysctls: ", "ingress: "]
            .iter()
            .any(|table| line.contains(table))
    };
    let lines: Vec<&&str> = warnings.iter().filter(of_tables).collect();
    ensure!(
        lines.len() == 1 && lines[0].contains("links: set link flannel.1") && lines[0].contains("waiting="),
        "{warnings:#?}"
    );
    Ok(())
}

/// A Pod's limit is a queue on its link, which stays on the way.
fn limits_of_a_pod_still_hold() -> Result<()> {
    let nodes = with_flowtable(FLOWS, LINKS)?;
    let there = nodes.net.host(NODES[1])?;
    there.run(&[
        "tc", "qdisc", "add", "dev", "pod0", "root", "tbf", "rate", "8mbit", "burst", "32k", "latency", "300ms",
    ])?;
    let begun = Instant::now();
    transfer(&nodes.pods[0], &nodes.pods[1], SERVER.parse()?, 3 << 20)?;
    // 3 MiB at 8 Mbit/s take 3.1 s.
    ensure!(begun.elapsed() > Duration::from_secs(2), "3 MiB took {:?}", begun.elapsed());
    Ok(())
}

/// A Pod talks to the outside: translated on the way out and back, on the short way as well.
fn masqueraded_connections_stay_translated() -> Result<()> {
    for (config, links) in [(FLOWS, LINKS), (FLOWS_HOST_GW, &["cbr0", "eth0"])] {
        let nodes = with_flowtable(config, links)?;
        let outside = nodes.net.host("hdss7-200")?;
        let _server = echo::serve(outside, "outside", 8080)?;
        let mut connection = echo::Connection::open(&nodes.pods[0], "10.4.7.200:8080".parse()?, SOON)?;
        for _ in 0..20 {
            let seen = connection.ask()?.client.ip().to_string();
            ensure!(seen == "10.4.7.21", "the server saw {seen}");
        }
        eventually_offloaded(nodes.node()?, "tcp src=172.7.21.2 dst=10.4.7.200 dport=8080 dst=10.4.7.21")?;
        let seen = connection.ask()?.client.ip().to_string();
        ensure!(seen == "10.4.7.21", "the server saw {seen}");
    }
    Ok(())
}

/// Between Pods of one node a bridge carries the packets; with br_netfilter they come by the forward hook all the same.
fn pods_of_one_node_stay_on_their_bridge() -> Result<()> {
    let nodes = with_flowtable(FLOWS, LINKS)?;
    let host = nodes.node()?;
    host.run(&["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
    let neighbour = host.pod("neighbour")?;
    let batch = "link add pod1 type veth peer name eth0 netns cni-neighbour\nlink set pod1 master cbr0 up\n";
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    let batch = "link set lo up\naddress add 172.7.21.3/24 dev eth0\nlink set eth0 up\n";
    neighbour.command("ip").args(["-batch", "-"]).input(batch).run()?;
    let _server = echo::serve(&neighbour, "neighbour", 80)?;
    let mut connection = echo::Connection::open(&nodes.pods[0], "172.7.21.3:80".parse()?, SOON)?;
    for _ in 0..20 {
        connection.ask()?;
    }
    let listed = host.run(&["conntrack", "-L", "-d", "172.7.21.3"])?.stdout;
    ensure!(listed.contains("ESTABLISHED") && !listed.contains("[OFFLOAD]"), "{listed}");
    Ok(())
}

/// A Service of IPVS on the same node: requests and answers are translated by IPVS, on each packet.
fn services_of_ipvs_are_translated_as_before() -> Result<()> {
    let nodes = with_flowtable(FLOWS, LINKS)?;
    let host = nodes.node()?;
    let _servers = [echo::serve(&nodes.pods[1], "there", 80)?, echo::serve(&nodes.pods[0], "here", 80)?];
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
        spec: {clusterIP: 192.168.0.10, ports: [{name: http, port: 80}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
        ports: [{name: http, port: 80}]\nendpoints:\n- addresses: [172.7.22.2]\n- addresses: [172.7.21.2]\n";
    host.write("/run/services/web.yaml", manifest)?;
    let proxy = host.command(lab::bin("ipvs-proxy")?).arg("--services-dir=/run/services");
    let proxy = proxy.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    // From a Pod, to itself and to another node's, and from the node: four connections that stay open.
    let web: SocketAddr = "192.168.0.10:80".parse()?;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(echo::Connection::open(&nodes.pods[0], web, SOON)?);
        open.push(echo::Connection::open(host, web, SOON)?);
    }
    for _ in 0..20 {
        for connection in &mut open {
            connection.ask()?;
        }
    }
    let of_service = |line: &&String| line.contains("192.168.0.10");
    ensure!(!offloaded(host)?.iter().any(|line| of_service(&line)), "{:#?}", offloaded(host)?);
    // On the other node they are connections of Pods like any other.
    eventually_offloaded(nodes.net.host(NODES[1])?, "tcp dst=172.7.22.2 dport=80")
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Flowtable, Need::Vxlan, Need::Nftables, Need::IpVs],
        lab::tests![
            established_flows_take_the_short_way_and_survive_its_end,
            flows_leave_for_a_packet_when_routes_change_and_come_back,
            flows_take_the_short_way_through_an_interface_that_is_a_bridge,
            deleted_parts_and_links_made_anew_come_back,
            large_packets_and_a_narrower_tunnel_pass,
            interface_that_goes_is_one_line_in_the_log,
            limits_of_a_pod_still_hold,
            masqueraded_connections_stay_translated,
            pods_of_one_node_stay_on_their_bridge,
            services_of_ipvs_are_translated_as_before,
        ],
    )
}
