//! Rules that deny what arrives for this host, found without a packet, against what becomes of a real one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::fs;
use std::net::UdpSocket;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use common::{cases, feed, ip, sh};
use kernel::nft::Nft;
use kernel::nft::arrival::{Arrival, Arrivals};

const PORT: u16 = 8472;

/// A neighbour behind the test's namespace, with addresses of both families.
struct Neighbour(Child);

impl Neighbour {
    fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "600"]).spawn().unwrap();
        let (pid, own) = (child.id(), fs::read_link("/proc/thread-self/ns/net").unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == own) {
            assert!(Instant::now() < deadline, "no namespace");
            std::thread::yield_now();
        }
        let neighbour = Self(child);
        ip(&format!("link add eth0 type veth peer name eth0 netns {pid}"));
        for address in ["10.4.7.21/24", "fd00:4:7::21/64 nodad"] {
            ip(&format!("addr add {address} dev eth0"));
        }
        ip("link set eth0 up");
        neighbour
            .run("ip addr add 10.4.7.22/24 dev eth0; ip addr add fd00:4:7::22/64 dev eth0 nodad; ip link set eth0 up");
        neighbour
    }

    fn run(&self, script: &str) {
        let status =
            Command::new("nsenter").args(["-t", &self.0.id().to_string(), "-n", "bash", "-ec", script]).status();
        assert!(status.unwrap().success(), "{script}");
    }

    /// True when a datagram to `address` arrives at `socket`.
    fn arrives(&self, socket: &UdpSocket, address: &str, wait: Duration) -> bool {
        socket.set_read_timeout(Some(wait)).unwrap();
        self.run(&format!("echo probe > /dev/udp/{address}/{PORT} || true"));
        socket.recv(&mut [0; 16]).is_ok()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A packet of the tunnel from the neighbour.
fn arrival(v6: bool) -> Arrival {
    let index = ip("-o link show eth0").split(':').next().unwrap().parse().unwrap();
    let (from, to) = if v6 { ("fd00:4:7::22", "fd00:4:7::21") } else { ("10.4.7.22", "10.4.7.21") };
    let link = ("eth0".parse().unwrap(), index);
    Arrival { link, from: Some(from.parse().unwrap()), to: to.parse().unwrap(), protocol: 17, port: Some(PORT) }
}

fn denied(arrival: &Arrival) -> Option<String> {
    let found = Arrivals::read(Nft::open().unwrap()).unwrap().denied(arrival).unwrap();
    found.map(|denied| denied.to_string())
}

/// `denied` without the handle of a rule.
fn place(v6: bool) -> Option<String> {
    let place = denied(&arrival(v6))?;
    let words = place.split(' ').filter(|word| word.parse::<u64>().is_err());
    Some(words.collect::<Vec<_>>().join(" "))
}

/// Rules with their program, and where a packet of IPv4 and one of IPv6 are denied.
type Case = (&'static str, &'static str, Option<&'static str>, Option<&'static str>);

/// What firewalls' rules say, in the words of their tools.
const CASES: [Case; 14] = [
    ("nft", "table inet none { chain input { type filter hook input priority 0; policy accept; }\n }", None, None),
    (
        "nft",
        "table inet filter { chain input { type filter hook input priority 0; policy drop; ct state { established, related } accept\n ct status dnat accept\n iif lo accept\n icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n } }",
        Some("the policy of inet filter input"),
        Some("the policy of inet filter input"),
    ),
    (
        "nft",
        "table inet filter { set nodes { type ipv4_addr; flags interval; elements = { 10.4.7.0/24 } }\n chain input { type filter hook input priority 0; policy drop; ct state vmap { established : accept, related : accept, invalid : drop }\n icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n ip saddr @nodes udp dport { 22, 8472 } accept\n } }",
        None,
        Some("the policy of inet filter input"),
    ),
    (
        "nft",
        "table inet filter { chain input { type filter hook input priority 0; iifname vmap { \"lo\" : accept, \"eth0\" : goto lan }\n }\n chain lan { udp dport 8472 counter drop comment \"closed\"\n } }",
        Some("rule of inet filter lan (\"closed\")"),
        Some("rule of inet filter lan (\"closed\")"),
    ),
    (
        "nft",
        "table inet filter { chain input { type filter hook input priority 0; iifname \"eth1\" goto lan\n meta l4proto . th dport { udp . 8472 } jump ours\n }\n chain lan { drop\n }\n chain ours { ip6 saddr fd00:4:7::/64 reject\n } }",
        None,
        Some("rule of inet filter ours"),
    ),
    (
        "nft",
        "table ip6 raw { chain pre { type filter hook prerouting priority raw; policy accept; meta l4proto udp drop\n } }",
        None,
        Some("rule of ip6 raw pre"),
    ),
    // Sleeping, of the NAT kind, and of another hook.
    (
        "nft",
        "table ip a { flags dormant; chain i { type filter hook input priority 0; policy drop; } }\ntable ip b { chain f { type filter hook forward priority 0; policy drop; } }",
        None,
        None,
    ),
    // What is not tracked has no state that is new.
    (
        "nft",
        "table ip raw { chain pre { type filter hook prerouting priority raw; udp dport 8472 notrack\n } }\ntable ip filter { chain i { type filter hook input priority 0; ct state untracked accept\n drop\n } }",
        None,
        None,
    ),
    (
        "nft",
        "table ip raw { chain pre { type filter hook prerouting priority raw; udp dport 8472 notrack\n } }\ntable ip filter { chain i { type filter hook input priority 0; ct state new accept\n drop\n } }",
        Some("rule of ip filter i"),
        None,
    ),
    // As they arrive on the link, and on another one.
    (
        "nft",
        "table netdev t { chain a { type filter hook ingress device eth0 priority 0; ip daddr 10.4.7.21 ip frag-off & 0x3fff == 0 udp dport 8472 notrack\n ip6 daddr fd00:4:7::21 exthdr frag missing udp dport 8472 notrack\n } }\ntable inet filter { chain i { type filter hook input priority 0; ct state new,established accept\n meta l4proto udp drop\n } }",
        Some("rule of inet filter i"),
        Some("rule of inet filter i"),
    ),
    (
        "nft",
        "table netdev t { chain a { type filter hook ingress device lo priority 0; udp dport 8472 notrack\n udp dport 8472 drop\n } }\ntable inet filter { chain i { type filter hook input priority 0; ct state untracked drop\n } }",
        None,
        None,
    ),
    (
        "iptables-nft-restore",
        "*filter\n:INPUT ACCEPT [0:0]\n:ours - [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -j ours\n-A INPUT -j REJECT\n-A ours -p udp -m udp --dport 8472 -j ACCEPT\nCOMMIT\n",
        None,
        None,
    ),
    (
        "iptables-nft-restore",
        "*filter\n:INPUT DROP [0:0]\n:local - [0:0]\n-A INPUT -j local\n-A INPUT -p udp -m udp --dport 8473:8479 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 8472 -j ACCEPT\n-A local -m addrtype --dst-type LOCAL -j RETURN\n-A local -j DROP\nCOMMIT\n",
        Some("the policy of ip filter INPUT"),
        None,
    ),
    (
        "ip6tables-nft-restore",
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport 8472 -m comment --comment audit -j DROP\nCOMMIT\n",
        None,
        Some("rule of ip6 filter INPUT (\"audit\")"),
    ),
];

/// The tool wants a line's end behind each chain and table.
fn lines(rules: &str) -> String {
    rules.replace("; }", ";\n}\n").replace("} }", "}\n}\n")
}

fn what_denies_a_port_is_named_where_a_real_packet_is_lost_and_nowhere_else() {
    let neighbour = Neighbour::new();
    let sockets =
        [false, true].map(|v6| UdpSocket::bind((if v6 { "fd00:4:7::21" } else { "10.4.7.21" }, PORT)).unwrap());
    for (program, rules, v4, v6) in CASES {
        sh("nft", &["flush", "ruleset"]);
        let args: &[&str] = if program == "nft" { &["-f", "-"] } else { &[] };
        feed(program, args, &lines(rules));
        for (family, wanted, address) in [(false, v4, "10.4.7.21"), (true, v6, "fd00:4:7::21")] {
            assert_eq!(place(family).as_deref(), wanted, "{rules}");
            let wait = Duration::from_millis(if wanted.is_some() { 200 } else { 10_000 });
            let arrived = neighbour.arrives(&sockets[usize::from(family)], address, wait);
            assert_eq!(arrived, wanted.is_none(), "{address}: {rules}");
        }
    }
}

fn what_may_let_a_packet_pass_is_no_denial() {
    let _neighbour = Neighbour::new();
    let with = |rules: &str| {
        sh("nft", &["flush", "ruleset"]);
        let chain =
            format!("table ip filter {{ chain i {{ type filter hook input priority 0; policy drop; {rules}\n }} }}");
        feed("nft", &["-f", "-"], &lines(&chain));
        place(false)
    };
    for rules in ["limit rate 5/second accept", "meta mark 0x1 accept"] {
        assert_eq!(with(rules), None, "{rules}");
    }
    for rules in [
        "limit rate 5/second drop",
        "meta mark 0x1 udp dport 53 accept",
        "ip protocol tcp accept",
        "udp dport 8473-9000 accept",
    ] {
        assert_eq!(with(rules).as_deref(), Some("the policy of ip filter i"), "{rules}");
    }
    // Without a source, a rule for some of them may be for this one.
    let anybody = Arrival { from: None, ..arrival(false) };
    assert!(with("ip saddr 10.4.7.0/24 accept").is_none());
    assert_eq!(denied(&anybody), None);
    assert!(with("ip saddr 10.9.0.0/16 accept").is_some());
    assert_eq!(denied(&anybody), None);
}

fn protocol_without_ports_is_judged_by_its_number() {
    let _neighbour = Neighbour::new();
    let ipip = || Arrival { protocol: 4, port: None, ..arrival(false) };
    for (rule, open) in [("-p 4", true), ("-p udp --dport 8472", false), ("-p 41", false)] {
        sh("nft", &["flush", "ruleset"]);
        let rules = format!("*filter\n:INPUT DROP [0:0]\n-A INPUT {rule} -j ACCEPT\nCOMMIT\n");
        feed("iptables-nft-restore", &[], &rules);
        assert_eq!(denied(&ipip()).is_none(), open, "{rule}");
    }
}

fn main() -> ExitCode {
    common::main(cases![
        what_denies_a_port_is_named_where_a_real_packet_is_lost_and_nowhere_else,
        what_may_let_a_packet_pass_is_no_denial,
        protocol_without_ports_is_judged_by_its_number,
    ])
}
