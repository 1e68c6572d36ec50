//! Who is seen as whom: Pods, nodes and others, in both families, and what of that an operator changes while nodes run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::net::UdpSocket;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Need, Pod, Process, echo, eventually};
use netd_node::dual::{DUAL, both, net, pod, routes, seen};
use netd_node::{Net, SOON, each_is_repaired};

const CONFIG: &str = "/coreos.com/network/config";
/// The server outside in both families, and a second address of it in networks of its own.
const OUTSIDE: [&str; 2] = ["10.4.7.200:8080", "[fd00:10:4:7::200]:8080"];
const ELSEWHERE: [&str; 2] = ["10.9.9.9:8080", "[fd00:10:9::9]:8080"];
/// As which the first node and its Pod are seen.
const NODE: [&str; 2] = ["10.4.7.21", "fd00:10:4:7::21"];
const POD: [&str; 2] = ["172.7.21.2", "fd00:7:0:21::2"];

/// net-conf for both families with further members, each with a comma in front.
fn config(more: &str) -> String {
    format!("{}{more}}}", DUAL.trim_end_matches('}').to_owned() + "}")
}

/// Two nodes with a Pod each, and a server outside that knows the way to the Pods of the first node.
struct Outside {
    pods: [Pod; 2],
    _server: Process,
    netd: Vec<Process>,
    net: Net,
}

impl Outside {
    fn start(more: &str) -> Result<Self> {
        let net = net(&config(more))?;
        let netd = both(&net, [&["172.7.22.0/24", "fd00:7:0:22::/64"], &["172.7.21.0/24", "fd00:7:0:21::/64"]])?;
        let (outside, host) = (net.host("hdss7-200")?, net.host("hdss7-21")?);
        let lines = "address add 10.9.9.9/32 dev lo\naddress add fd00:10:9::9/128 dev lo\n\
                     route add 172.7.0.0/16 via 10.4.7.21\nroute add fd00:7::/48 via fd00:10:4:7::21\n";
        outside.command("ip").args(["-batch", "-"]).input(lines).run()?;
        let lines = "route add 10.9.9.9/32 via 10.4.7.200\nroute add fd00:10:9::9/128 via fd00:10:4:7::200\n";
        host.command("ip").args(["-batch", "-"]).input(lines).run()?;
        let pods = [pod(host, "21")?, pod(net.host("hdss7-22")?, "22")?];
        let server = echo::serve(outside, "outside", 8080)?;
        Ok(Self { pods, _server: server, netd, net })
    }

    fn outside(&self) -> Result<&Host> {
        self.net.host("hdss7-200")
    }

    /// The configuration in the store becomes this one.
    fn configure(&self, more: &str) -> Result<()> {
        self.net.etcd.put(CONFIG, &config(more))
    }

    /// Waits until the Pod is seen as these by the server at each of `at`.
    fn eventually_seen(&self, at: [&str; 2], expected: [&str; 2]) -> Result<()> {
        eventually(SOON, || {
            for (server, expected) in at.iter().zip(expected) {
                // By TCP: a UDP server with two addresses may answer from the other one.
                let found = echo::ask_tcp(&self.pods[0], server.parse()?, SOON)?.client.ip().to_string();
                ensure!(found == expected, "{server} saw {found} instead of {expected}");
            }
            Ok(())
        })
    }
}

fn switches_of_each_family_are_followed_and_open_connections_keep_their_address() -> Result<()> {
    let cluster = Outside::start("")?;
    cluster.eventually_seen(OUTSIDE, NODE)?;
    let mut open = echo::Connection::open(&cluster.pods[0], OUTSIDE[0].parse()?, SOON)?;
    let [node_v4, node_v6] = NODE;
    let [pod_v4, pod_v6] = POD;
    for (more, expected) in [
        (r#","MasqueradeIPv6":false"#, [node_v4, pod_v6]),
        (r#","MasqueradeIPv4":false"#, [pod_v4, node_v6]),
        (r#","MasqueradeIPv4":false,"MasqueradeIPv6":false"#, POD),
        ("", NODE),
    ] {
        cluster.configure(more)?;
        cluster.eventually_seen(OUTSIDE, expected).with_context(|| more.to_owned())?;
        let still = open.ask().with_context(|| more.to_owned())?.client.ip().to_string();
        ensure!(still == node_v4, "after {more:?} the open connection comes from {still}");
    }
    Ok(())
}

fn networks_without_masquerade_are_followed_and_a_bad_one_costs_the_others_nothing() -> Result<()> {
    let cluster = Outside::start("")?;
    cluster.eventually_seen(OUTSIDE, NODE)?;
    cluster.configure(r#","NonMasqueradeCIDRs":["10.4.7.0/24","fd00:10:4:7::/64"]"#)?;
    cluster.eventually_seen(OUTSIDE, POD)?;
    cluster.eventually_seen(ELSEWHERE, NODE)?;
    cluster.configure(r#","NonMasqueradeCIDRs":["10.9.9.9/32","fd00:10:9::/48"]"#)?;
    cluster.eventually_seen(ELSEWHERE, POD)?;
    cluster.eventually_seen(OUTSIDE, NODE)?;
    let bad = r#","NonMasqueradeCIDRs":["10.4.7.0/24","10.4.7.0",7,"fd00:10:4:7::/64"]"#;
    cluster.configure(bad)?;
    cluster.eventually_seen(OUTSIDE, POD)?;
    for named in [r#"NonMasqueradeCIDRs: "10.4.7.0" is left out"#, "NonMasqueradeCIDRs: 7 is left out"] {
        cluster.netd[0].wait_for_line(named, SOON)?;
    }
    // The check names it as well.
    let host = cluster.net.host("hdss7-21")?;
    host.write("/run/net-conf.json", config(bad))?;
    let checked = host.command(lab::bin("netd")?).args(["config", "check", "--file", "/run/net-conf.json"]).output()?;
    let text = checked.stdout + &checked.stderr;
    ensure!(text.contains(r#"NonMasqueradeCIDRs: "10.4.7.0" is left out"#), "{text}");
    Ok(())
}

/// The rules as flannel has them, with packets: Pod to Pod and outside to a Pod of this node keep their source, the node and whoever it
/// forwards to another node's Pod are seen as this node.
fn everybody_else_is_seen_as_flannel_has_it() -> Result<()> {
    let cluster = Outside::start("")?;
    let (host, [first, second]) = (cluster.net.host("hdss7-21")?, &cluster.pods);
    let _servers = [echo::serve(first, "here", 80)?, echo::serve(second, "there", 80)?];
    for (here, there, own, gateway, outside) in [
        ("172.7.21.2:80", "172.7.22.2:80", POD[0], "172.7.21.0", "10.4.7.200"),
        ("[fd00:7:0:21::2]:80", "[fd00:7:0:22::2]:80", POD[1], "fd00:7:0:21::", "fd00:10:4:7::200"),
    ] {
        // The bridge and the Pod's link have just been made, and what has no address of the Pod yet answers that there is no way.
        eventually(SOON, || seen(first, there))?;
        let cases: [(&str, String, &str); 4] = [
            ("a Pod to another node's", seen(first, there)?, own),
            ("the node to another node's Pod", seen(host, there)?, gateway),
            ("the outside to a Pod of the node", seen(cluster.outside()?, here)?, outside),
            ("the outside by way of the node to another node's Pod", seen(cluster.outside()?, there)?, gateway),
        ];
        for (who, found, expected) in cases {
            ensure!(found == expected, "{who} is seen as {found} instead of {expected}");
        }
    }
    Ok(())
}

/// netd with these flags on both nodes, each with a route to the other.
fn start_both(net: &Net, flags: &[&str]) -> Result<Vec<Process>> {
    let all = ["hdss7-21", "hdss7-22"].map(|node| net.launch(node, flags));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    all.iter().try_for_each(|netd| netd.wait_for_line("ready: every lease is in the kernel", SOON).map(drop))?;
    routes(net, "21", "172.7.22.0/24")?;
    routes(net, "22", "172.7.21.0/24")?;
    Ok(all)
}

/// What is left untracked as it arrives, as the nft tool lists it; nothing where the table is not there.
fn arriving(host: &Host) -> Result<String> {
    let tables = host.run(&["nft", "list", "tables", "netdev"])?.stdout;
    if tables.trim().is_empty() {
        return Ok(String::new());
    }
    Ok(host.run(&["nft", "list", "table", "netdev", "netd"])?.stdout)
}

fn eventually_arriving(host: &Host, expected: &str) -> Result<()> {
    eventually(SOON, || {
        // As nftables 1.1 has it.
        let found = arriving(host)?.replace("0x3fff == 0x0", "16383 == 0");
        ensure!(found == expected, "{found}\n--- instead of\n{expected}");
        Ok(())
    })
}

/// The table of node 21 while this is its link to the other nodes.
fn untracked_by(link: &str) -> String {
    format!(
        "table netdev netd {{\n\tchain arriving {{\n\t\ttype filter hook ingress device \"{link}\" priority filter; policy accept;\n\
         \t\tip daddr 10.4.7.21 ip frag-off & 16383 == 0 udp dport 8472 notrack\n\
         \t\tip6 daddr fd00:10:4:7::21 exthdr frag missing udp dport 8472 notrack\n\t}}\n}}\n"
    )
}

fn tunnels_own_packets_are_tracked_or_not_and_those_of_pods_always() -> Result<()> {
    let net = net(DUAL)?;
    let hosts = [net.host("hdss7-21")?, net.host("hdss7-22")?];
    // The entries of both nodes for the tunnel and for the Pod's connection.
    let tracked = || -> Result<[usize; 2]> {
        let listed = hosts.iter().map(|host| Ok(host.run(&["conntrack", "-L"])?.stdout)).collect::<Result<String>>()?;
        Ok(["dport=8472", "src=172.7.21.2 dst=172.7.22.2"]
            .map(|part| listed.lines().filter(|line| line.contains(part)).count()))
    };
    let mut netd = start_both(&net, &["--untracked-tunnel"])?;
    let pods = [pod(hosts[0], "21")?, pod(hosts[1], "22")?];
    let _server = echo::serve(&pods[1], "there", 80)?;
    let there = "172.7.22.2:80".parse()?;
    eventually(SOON, || echo::ask_tcp(&pods[0], there, SOON).map(drop))?;
    let mut open = echo::Connection::open(&pods[0], there, SOON)?;
    for (flags, is_tracked) in [([].as_slice(), false), (&["--untracked-tunnel"], true)] {
        hosts.iter().try_for_each(|host| host.run(&["conntrack", "-F"]).map(drop))?;
        ensure!(open.ask()?.client.ip().to_string() == POD[0], "translated");
        let [tunnel, connection] = tracked()?;
        ensure!(
            (tunnel > 0, connection > 0) == (is_tracked, true),
            "{tunnel} and {connection} entries before {flags:?}"
        );
        for node in std::mem::take(&mut netd) {
            ensure!(node.terminate(SOON)?.success(), "{}", node.log());
        }
        netd = start_both(&net, flags)?;
        eventually_arriving(hosts[0], &if is_tracked { untracked_by("eth0") } else { String::new() })?;
    }
    open.ask().map(drop).context("the connection that was open all the time")
}

fn what_is_left_untracked_is_put_back_and_follows_the_interface() -> Result<()> {
    let net = net(DUAL)?;
    let host = net.host("hdss7-21")?;
    let _netd = start_both(&net, &["--untracked-tunnel", "--iface=up0"])?;
    eventually_arriving(host, &untracked_by("eth0"))?;
    let damages = [
        "nft delete table netdev netd",
        "nft delete chain netdev netd arriving",
        "nft flush chain netdev netd arriving",
        "nft add rule netdev netd arriving udp dport 53 drop",
    ];
    each_is_repaired(host, arriving, &damages)?;
    for (before, after) in [("eth0", "up0"), ("up0", "eth0")] {
        rename(host, before, after)?;
        eventually_arriving(host, &untracked_by(after))?;
    }
    Ok(())
}

/// Gives a link another name, which older kernels refuse while it is up.
fn rename(host: &Host, before: &str, after: &str) -> Result<()> {
    if host.run(&["ip", "link", "set", before, "name", after]).is_ok() {
        return Ok(());
    }
    let batch = format!("link set {before} down\nlink set {before} name {after}\nlink set {after} up\n");
    host.command("ip").args(["-batch", "-"]).input(batch).run().map(drop)
}

/// The kernel tracks a packet in fragments when it has all of them: one that were left out would cost it the whole.
fn tunnels_packets_in_fragments_are_put_together_where_whole_ones_are_untracked() -> Result<()> {
    let net = net(DUAL)?;
    let (host, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _netd = start_both(&net, &["--untracked-tunnel"])?;
    eventually_arriving(host, &untracked_by("eth0"))?;
    for (family, from, to) in [("ipv4", "0.0.0.0:0", "10.4.7.21:8472"), ("ipv6", "[::]:0", "[fd00:10:4:7::21]:8472")] {
        let send = |bytes: usize| -> Result<()> {
            other.within(|| UdpSocket::bind(from)?.send_to(&vec![0; bytes], to).map(drop))??;
            Ok(())
        };
        let address = to.parse::<std::net::SocketAddr>()?.ip();
        let entries = || -> Result<usize> {
            let listed = host.run(&["conntrack", "-L", "-f", family])?.stdout;
            let wanted = format!("dst={address} ");
            Ok(listed.lines().filter(|line| line.contains(&wanted) && line.contains("dport=8472")).count())
        };
        eventually(SOON, || {
            send(3000)?;
            ensure!(entries()? > 0, "{family}: a packet in fragments is lost before it is tracked");
            Ok(())
        })?;
        host.run(&["conntrack", "-F"])?;
        send(1000)?;
        ensure!(entries()? == 0, "{family}: a whole packet is tracked");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            switches_of_each_family_are_followed_and_open_connections_keep_their_address,
            networks_without_masquerade_are_followed_and_a_bad_one_costs_the_others_nothing,
            everybody_else_is_seen_as_flannel_has_it,
            tunnels_own_packets_are_tracked_or_not_and_those_of_pods_always,
            what_is_left_untracked_is_put_back_and_follows_the_interface,
            tunnels_packets_in_fragments_are_put_together_where_whole_ones_are_untracked,
        ],
    )
}
