//! What the filters of the proxy's tables do with packets, on either data path.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, echo, eventually};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};

use super::{Kept, Nodes, SERVICES, SOON, WEB_YAML, families};

const SILENCE: Duration = Duration::from_secs(2);

/// Addresses of the Service networks at which a host behind the router answers, and no Service is.
const NOBODY: [&str; 2] = ["192.168.7.200", "fd09::7:200"];

/// The nodes, with the host outside as router to the Service networks, where it has an address itself.
fn start() -> Result<Nodes> {
    let nodes = families::start()?;
    nodes.node()?.run(&["ip", "route", "add", "192.168.0.0/16", "via", "10.4.7.200"])?;
    nodes.node()?.run(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])?;
    let batch = format!(
        "address add {}/32 dev eth0\naddress add {}/128 dev eth0 nodad\nroute add 172.7.21.0/24 via 10.4.7.21\n",
        NOBODY[0], NOBODY[1]
    );
    nodes.outside()?.command("ip").args(["-batch", "-"]).input(batch).run()?;
    nodes.publish("web.yaml", &families::web("clusterIP: 192.168.0.10", "SingleStack"))?;
    Ok(nodes)
}

fn ask(from: &impl Place, addr: &str, limit: Duration) -> Result<()> {
    echo::ask_tcp(from, SocketAddr::new(addr.parse()?, 80), limit).map(drop)
}

/// A client waits for an answer in vain; a datagram of the node itself is not even sent.
fn ensure_silent(nodes: &Nodes) -> Result<()> {
    for addr in NOBODY {
        for result in [ask(nodes.node()?, addr, SILENCE), ask(nodes.pod("172.7.21.2")?, addr, SILENCE)] {
            let error = result.err().with_context(|| format!("{addr} answered"))?;
            let text = format!("{error:#}");
            ensure!(!text.contains("refused") && !text.contains("reset"), "{addr}: {text}");
        }
        let to = SocketAddr::new(addr.parse()?, 53);
        let sent = nodes.node()?.within(|| {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
            anyhow::Ok(UdpSocket::bind(any)?.send_to(b"x", to))
        })??;
        let kind = sent.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::PermissionDenied), "{to}: {kind:?}");
    }
    Ok(())
}

fn ensure_answered(nodes: &Nodes) -> Result<()> {
    for addr in NOBODY {
        ask(nodes.node()?, addr, SOON).with_context(|| format!("{addr} from the node"))?;
        ask(nodes.pod("172.7.21.2")?, addr, SOON).with_context(|| format!("{addr} from a Pod"))?;
    }
    Ok(())
}

/// As by kube-proxy; a network of the node that lies in the Service network is left alone, from the moment that the node has it.
pub(crate) fn an_address_that_no_service_has_is_silent_unless_a_network_here_has_it(mode: &str) -> Result<()> {
    let nodes = start()?;
    let _server = echo::serve(nodes.outside()?, "nobody", 80)?;
    ensure_answered(&nodes).context("without the proxy")?;
    let _proxy = families::proxy(&nodes, mode, &families::DUAL)?;
    ensure_silent(&nodes)?;
    let networks = ["192.168.7.1/24", "fd09::7:1/112"];
    for network in networks {
        nodes.node()?.run(&["ip", "address", "add", network, "dev", "eth0"])?;
    }
    eventually(SOON, || ensure_answered(&nodes)).context("beside another network")?;
    for network in networks {
        nodes.node()?.run(&["ip", "address", "del", network, "dev", "eth0"])?;
    }
    eventually(SOON, || ensure_silent(&nodes))
}

/// Without it the client would wait until it gives up, a quarter of an hour later.
pub(crate) fn a_connection_that_is_open_when_its_service_goes_is_reset() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = families::proxy(&nodes, "ipvs", &families::DUAL)?;
    let mut kept = [Kept::open(nodes.pod("172.7.21.2")?)?, Kept::open(nodes.outside()?)?];
    for one in &mut kept {
        one.ask()?;
    }
    nodes.node()?.run(&["rm", &format!("{SERVICES}/web.yaml")])?;
    eventually(SOON, || {
        let addresses = nodes.node()?.run(&["ip", "-o", "address"])?.stdout;
        ensure!(!addresses.contains("192.168.0.10"), "{addresses}");
        Ok(())
    })?;
    for mut one in kept {
        let error = one.ask().err().context("it was answered")?;
        ensure!(format!("{error:#}").contains("reset"), "{error:#}");
    }
    Ok(())
}

/// A packet of TCP that no connection tracking takes for one of a connection, or for a connection's first one: SYN and FIN at once.
fn send_impossible(from: &impl Place, to: &str) -> Result<()> {
    let to: SocketAddr = SocketAddr::new(to.parse()?, 4000);
    let mut header = [0_u8; 20];
    header[..4].copy_from_slice(&[0, 80, 0x0f, 0xa0]);
    (header[12], header[13]) = (5 << 4, 0x03);
    from.within(|| {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
        // A raw socket of IPv6 takes no port.
        let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        sendto(socket.as_raw_fd(), &header, &to, MsgFlags::empty())?;
        anyhow::Ok(())
    })?
}

/// How many packets of that kind have arrived at the host outside, in both families.
fn impossible(nodes: &Nodes) -> Result<Vec<String>> {
    let text = nodes.outside()?.run(&["nft", "list", "ruleset"])?.stdout;
    let counted = |line: &str| Some(line.split_once("counter packets ")?.1.split_once(' ')?.0.to_owned());
    Ok(text.lines().filter_map(counted).collect())
}

/// kube-proxy's e2e test (conntrack.go): an answer that is no part of a connection would reach the client with the endpoint's address,
/// and have it reset its connection.
pub(crate) fn packets_of_no_connection_are_dropped_unless_tracking_is_liberal(mode: &str) -> Result<()> {
    let nodes = start()?;
    let rule = "tcp sport 80 tcp dport 4000 counter";
    let probe = ["ip", "ip6"].map(|family| {
        format!("table {family} probe {{ chain arriving {{ type filter hook prerouting priority -400; {rule}; }}\n}}\n")
    });
    nodes.outside()?.command("nft").args(["-f", "-"]).input(probe.concat()).run()?;
    let pod = nodes.pod("172.7.21.2")?;
    for (liberal, expected) in [("false", "0"), ("true", "2")] {
        let switch = format!("--conntrack-tcp-be-liberal={liberal}");
        let proxy = families::proxy(&nodes, mode, &[families::DUAL[0], families::DUAL[1], &switch])?;
        for to in ["10.4.7.200", "fd04:7::200", "10.4.7.200", "fd04:7::200"] {
            send_impossible(pod, to)?;
        }
        // What comes behind them has arrived, so they have or never will.
        echo::ask_tcp(nodes.outside()?, "172.7.21.2:80".parse()?, SOON)?;
        echo::ask_tcp(nodes.outside()?, "[fd07:21::2]:80".parse()?, SOON)?;
        let found = impossible(&nodes)?;
        ensure!(found == [expected, expected], "be-liberal={liberal}: {found:?} packets arrived");
        proxy.terminate(SOON)?;
    }
    Ok(())
}

/// CVE-2020-8558: where the node routes loopback addresses, somebody beside it sends to them.
pub(crate) fn what_listens_at_loopback_is_not_reached_from_elsewhere(mode: &str) -> Result<()> {
    let nodes = start()?;
    let (node, pod) = (nodes.node()?, nodes.pod("172.7.21.2")?);
    let _server = echo::serve(node, "node", 8080)?;
    node.run(&["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])?;
    pod.command("sysctl").args(["-qw", "net.ipv4.conf.all.route_localnet=1"]).run()?;
    pod.command("ip").args(["link", "set", "lo", "down"]).run()?;
    pod.command("ip").args(["route", "add", "127.0.0.1/32", "via", "172.7.21.1"]).run()?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 8080));
    let reached = |limit| echo::ask_tcp(pod, loopback, limit);
    ensure!(reached(SOON).context("without the proxy")?.name == "node");
    for (switch, is_reached) in [("true", false), ("false", true)] {
        let switch = format!("--iptables-localhost-nodeports={switch}");
        let proxy = families::proxy(&nodes, mode, &[families::DUAL[0], families::DUAL[1], &switch])?;
        let found = reached(if is_reached { SOON } else { SILENCE });
        ensure!(found.is_ok() == is_reached, "{switch}: {found:?}");
        ensure!(echo::ask_tcp(node, loopback, SOON)?.name == "node", "the node reaches itself");
        proxy.terminate(SOON)?;
    }
    Ok(())
}

/// An address of the documentation (RFC 5737), which the router sends to the node and the node has not.
const ROUND: &str = "203.0.113.98";

/// With nftables the node has no external address: what nobody serves there would go back to the router, and round.
pub(crate) fn nothing_goes_round_between_the_node_and_a_router() -> Result<()> {
    let nodes = Nodes::start()?;
    let (node, router, client) = (nodes.node()?, nodes.outside()?, nodes.cluster.host("hdss7-22")?);
    node.run(&["ip", "route", "add", "default", "via", "10.4.7.200"])?;
    router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    for host in [router, client] {
        host.run(&["ip", "route", "add", &format!("{ROUND}/32"), "via", "10.4.7.21"])?;
    }
    let probe =
        "table ip probe { chain arriving { type filter hook prerouting priority -400; udp dport 81 counter; }\n}";
    node.command("nft").args(["-f", "-"]).input(probe).run()?;
    let arrived = || -> Result<usize> {
        let text = node.run(&["nft", "list", "table", "ip", "probe"])?.stdout;
        let count =
            text.split_once("counter packets ").and_then(|(_, rest)| rest.split_once(' ')).context("no counter")?;
        Ok(count.0.parse()?)
    };
    let send = || client.within(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (ROUND, 81)));
    nodes.publish("web.yaml", &families::web("clusterIP: 192.168.0.10", "SingleStack"))?;
    let _proxy = nodes.proxy_with(&["--proxy-mode=nftables"])?;
    send()??;
    eventually(SOON, || {
        let count = arrived()?;
        ensure!(count > 10, "nobody has the address: {count} times");
        Ok(())
    })?;
    nodes.publish(
        "web.yaml",
        &families::web(&format!("clusterIP: 192.168.0.10, externalIPs: [{ROUND}]"), "SingleStack"),
    )?;
    eventually(SOON, || echo::ask_tcp(client, format!("{ROUND}:80").parse()?, SOON).map(drop))?;
    let before = arrived()?;
    send()??;
    // Behind the datagram on the same way.
    for _ in 0..3 {
        echo::ask_tcp(client, format!("{ROUND}:80").parse()?, SOON)?;
    }
    let after = arrived()?;
    ensure!(after == before + 1, "it came {} times", after - before);
    Ok(())
}
