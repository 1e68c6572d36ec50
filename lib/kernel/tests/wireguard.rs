//! WireGuard devices, their peers and ipip tunnels against a kernel that has them, with wg and iproute2 as the
//! independent observers.
//!
//! When the running kernel has none, the whole binary runs inside the lab kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{cases, converge, converge_at, ip, sh};
use kernel::link::Links;
use kernel::wireguard::{Fingerprint, Wireguards};
use kernel::{Cause, Rtnl};
use netstate::wireguard::{Device, Endpoint, Peer, PresharedKey, PrivateKey, PublicKey, Row, RowKey};
use netstate::{IfName, IpipOptions, Link, LinkKind, Prefix};
use reconcile::{Reconciler, Stage, Target};

const WG: IfName = IfName::literal("flannel-wg");

/// A new identity, made by the observer.
fn identity() -> (PrivateKey, PublicKey) {
    let private = sh("wg", &["genkey"]);
    let public = sh("sh", &["-c", &format!("echo {} | wg pubkey", private.trim())]);
    (private.trim().parse().unwrap(), public.trim().parse().unwrap())
}

fn device(public: PublicKey, listen_port: u16) -> (RowKey, Row) {
    (RowKey::Device(WG), Row::Device(Device { public_key: Some(public), listen_port }))
}

fn peer(endpoint: &str, allowed: &[&str]) -> Peer {
    Peer {
        endpoint: Endpoint::At(endpoint.parse().unwrap()),
        allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        preshared: None,
        keepalive: 0,
    }
}

fn want(table: &mut Reconciler<Wireguards>, key: PublicKey, value: Option<Peer>) {
    table.want(RowKey::Peer(WG, key), value.map(Row::Peer));
}

fn key(n: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey(bytes)
}

/// The device, made by the table of links, and the table of its peers.
fn made() -> (Reconciler<Wireguards>, PublicKey) {
    let mut links = Reconciler::new("links", Links::new(Rtnl::open().unwrap(), Box::new(|_, _| true)).only([WG]));
    let link = Link { kind: LinkKind::Wireguard, mtu: Some(1420), mac: None, up: true, master: None };
    links.want(WG, Some(link));
    assert_eq!(converge(&mut links).upserted, 1);
    let (private, public) = identity();
    let mut table = Reconciler::new("wireguard", Wireguards::open([(WG, private)]).unwrap());
    let (key, row) = device(public, 51820);
    table.want(key, Some(row));
    (table, public)
}

/// What `wg show flannel-wg WHAT` prints, sorted.
fn shown(what: &str) -> Vec<String> {
    let mut lines: Vec<_> = sh("wg", &["show", "flannel-wg", what]).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Another node behind the loopback: the device wg1 with `port`, and a session between both, begun by ours.
fn session(table: &mut Reconciler<Wireguards>, own: PublicKey, port: u16) -> PublicKey {
    let (private, public) = identity();
    ip("link add wg1 type wireguard");
    std::fs::write("/tmp/wg1.key", private.expose_text()).unwrap();
    let own = own.to_string();
    let port_text = port.to_string();
    let set = ["set", "wg1", "listen-port", &port_text, "private-key", "/tmp/wg1.key", "peer", &own];
    sh("wg", &[&set[..], &["allowed-ips", "172.7.21.0/24", "endpoint", "127.0.0.1:51820"]].concat());
    ip("link set wg1 up");
    ip("addr add 172.7.21.0/32 dev flannel-wg");
    ip("route add 172.7.22.0/24 dev flannel-wg");
    want(table, public, Some(peer(&format!("127.0.0.1:{port}"), &["172.7.22.0/24"])));
    converge(table);
    let _ = std::process::Command::new("ping").args(["-c1", "-W1", "172.7.22.2"]).output().unwrap();
    eventually("a handshake", || handshake(&public) != 0);
    public
}

/// Seconds since 1970 of the last handshake with a peer; 0 for none.
fn handshake(key: &PublicKey) -> u64 {
    let lines = shown("latest-handshakes");
    let line = lines.iter().find(|line| line.starts_with(&key.to_string())).unwrap();
    line.rsplit('\t').next().unwrap().parse().unwrap()
}

fn endpoint(key: &PublicKey) -> String {
    let lines = shown("endpoints");
    lines.iter().find(|line| line.starts_with(&key.to_string())).unwrap().rsplit('\t').next().unwrap().to_owned()
}

fn device_and_peers_read_back_as_desired_and_go_without_a_trace() {
    let (mut table, public) = made();
    let shared = PresharedKey::new([7; 32]);
    let full = Peer {
        preshared: Some(shared),
        keepalive: 25,
        ..peer("10.4.7.22:51820", &["172.7.22.0/24", "fd00:7:22::/64"])
    };
    want(&mut table, key(1), Some(full));
    want(&mut table, key(2), Some(peer("[fd00::23]:51821", &["172.7.23.0/24"])));
    assert_eq!(converge(&mut table).upserted, 3);
    assert_eq!(sh("wg", &["show", "flannel-wg", "public-key"]).trim(), public.to_string());
    assert_eq!(sh("wg", &["show", "flannel-wg", "listen-port"]).trim(), "51820");
    let (one, two) = (key(1), key(2));
    assert_eq!(shown("endpoints"), [format!("{one}\t10.4.7.22:51820"), format!("{two}\t[fd00::23]:51821")]);
    assert_eq!(shown("allowed-ips"), [format!("{one}\t172.7.22.0/24 fd00:7:22::/64"), format!("{two}\t172.7.23.0/24")]);
    assert_eq!(shown("preshared-keys"), [format!("{one}\t{}", shared.expose_text()), format!("{two}\t(none)")]);
    assert_eq!(shown("persistent-keepalive"), [format!("{one}\t25"), format!("{two}\toff")]);
    // Settings are taken back one by one.
    want(&mut table, key(1), Some(peer("10.4.7.22:51820", &["fd00:7:22::/64"])));
    assert_eq!(converge(&mut table).upserted, 1);
    assert_eq!(shown("allowed-ips")[0], format!("{one}\tfd00:7:22::/64"));
    assert_eq!(
        (&shown("preshared-keys")[0], &shown("persistent-keepalive")[0]),
        (&format!("{one}\t(none)"), &format!("{one}\toff"))
    );
    want(&mut table, key(1), None);
    want(&mut table, key(2), None);
    assert_eq!(converge(&mut table).removed, 2);
    assert_eq!(shown("peers"), Vec::<String>::new());
    assert_eq!(sh("wg", &["show", "flannel-wg", "public-key"]).trim(), public.to_string(), "the device stays");
}

fn what_somebody_else_changed_is_put_right() {
    let (mut table, public) = made();
    want(&mut table, key(1), Some(peer("10.4.7.22:51820", &["172.7.22.0/24"])));
    want(&mut table, key(2), Some(peer("10.4.7.23:51820", &["172.7.23.0/24"])));
    converge(&mut table);
    let before = ["peers", "endpoints", "allowed-ips", "dump"].map(shown);
    let (one, two, other) = (key(1).to_string(), key(2).to_string(), key(3).to_string());
    let changes = [
        &["peer", one.as_str(), "remove"][..],
        &["peer", &one, "endpoint", "10.4.7.99:1"],
        &["peer", &two, "allowed-ips", "172.7.22.0/24"],
        &["peer", &other, "allowed-ips", "172.7.22.0/24"],
        &["listen-port", "7"],
    ];
    // Far enough apart for nobody to seem to be fighting.
    for (change, now) in changes.into_iter().zip((1..).map(|n| Duration::from_secs(1000 * n))) {
        sh("wg", &[&["set", "flannel-wg"], change].concat());
        table.invalidate();
        converge_at(&mut table, now);
        assert_eq!(["peers", "endpoints", "allowed-ips", "dump"].map(shown), before, "after {change:?}");
    }
    let (private, _) = identity();
    std::fs::write("/tmp/other.key", private.expose_text()).unwrap();
    sh("wg", &["set", "flannel-wg", "private-key", "/tmp/other.key"]);
    table.invalidate();
    converge_at(&mut table, Duration::from_secs(9000));
    assert_eq!(sh("wg", &["show", "flannel-wg", "public-key"]).trim(), public.to_string());
}

fn devices_that_exchange_their_ports_have_them_at_once() {
    const OTHER: IfName = IfName::literal("flannel-wg-v6");
    let target = Links::new(Rtnl::open().unwrap(), Box::new(|_, _| true)).only([WG, OTHER]);
    let mut links = Reconciler::new("links", target);
    for name in [WG, OTHER] {
        let link = Link { kind: LinkKind::Wireguard, mtu: Some(1420), mac: None, up: true, master: None };
        links.want(name, Some(link));
    }
    converge(&mut links);
    let (private, public) = identity();
    let devices = [(WG, private.clone()), (OTHER, private)];
    let mut table = Reconciler::new("wireguard", Wireguards::open(devices).unwrap());
    let ports = || [WG, OTHER].map(|link| sh("wg", &["show", link.as_str(), "listen-port"]).trim().to_owned());
    for [one, other] in [[51820, 51821], [51821, 51820], [51822, 51821], [51821, 51823]] {
        for (link, listen_port) in [(WG, one), (OTHER, other)] {
            let row = Row::Device(Device { public_key: Some(public), listen_port });
            table.want(RowKey::Device(link), Some(row));
        }
        let pass = table.pass(true, Duration::ZERO);
        assert_eq!((pass.failed, ports()), (0, [one, other].map(|port| port.to_string())));
    }
}

fn session_of_an_untouched_peer_goes_on_whatever_happens_to_others() {
    let (mut table, own) = made();
    let alive = session(&mut table, own, 51999);
    let (began, transfer) = (handshake(&alive), || {
        let lines = shown("transfer");
        lines.into_iter().find(|line| line.starts_with(&alive.to_string())).unwrap()
    });
    let sent = transfer();
    for n in 1..20 {
        want(&mut table, key(n), Some(peer("10.4.7.22:51820", &[&format!("172.7.{}.0/24", 100 + n)])));
    }
    converge(&mut table);
    for n in 1..10 {
        want(&mut table, key(n), None);
        want(&mut table, key(n + 9), Some(peer("10.4.7.23:51820", &[&format!("172.7.{}.0/24", 120 + n)])));
    }
    converge(&mut table);
    // A new process that knows nothing finds nothing to do.
    let desired = table.desired().clone();
    let (private, _) = identity();
    let mut again = Reconciler::new("wireguard", Wireguards::open([(WG, private)]).unwrap());
    again.want_all(desired);
    assert!(again.pass(true, Duration::ZERO).is_idle());
    assert_eq!((handshake(&alive), transfer()), (began, sent));
}

fn peer_that_roamed_is_followed_until_its_lease_says_otherwise() {
    let (mut table, own) = made();
    let roaming = session(&mut table, own, 51999);
    sh("wg", &["set", "wg1", "listen-port", "52000"]);
    // Whatever it sends comes from there now.
    ip("addr add 172.7.22.2/32 dev wg1");
    eventually("the peer is seen at its new port", || {
        let _ = std::process::Command::new("ping").args(["-c1", "-W1", "-I", "wg1", "172.7.21.0"]).output().unwrap();
        endpoint(&roaming) == "127.0.0.1:52000"
    });
    table.invalidate();
    let pass = table.pass(true, Duration::ZERO);
    assert!(pass.is_idle() && endpoint(&roaming) == "127.0.0.1:52000", "{pass:?}");
    let rows: Vec<String> = table.lines().into_iter().filter_map(|line| Some(line.actual?.0)).collect();
    assert!(rows.iter().any(|row| row.contains("endpoint 127.0.0.1:52000 (roamed)")), "{rows:?}");
    // So does a new process.
    let (private, _) = identity();
    let mut again = Reconciler::new("wireguard", Wireguards::open([(WG, private)]).unwrap());
    again.want_all(table.desired().clone());
    assert!(again.pass(true, Duration::ZERO).is_idle());
    want(&mut table, roaming, Some(peer("127.0.0.1:53000", &["172.7.22.0/24"])));
    converge(&mut table);
    assert_eq!(endpoint(&roaming), "127.0.0.1:53000", "its lease names another address");
}

fn port_that_somebody_has_is_named() {
    let (mut table, public) = made();
    ip("link add other type wireguard");
    sh("wg", &["set", "other", "listen-port", "51820"]);
    ip("link set other up");
    let pass = table.pass(true, Duration::ZERO);
    assert!(pass.errors[0].reason.contains("has UDP port 51820"), "{pass:?}");
    ip("link del other");
    assert_eq!(table.pass(true, Duration::from_secs(60)).upserted, 1);
    assert_eq!(sh("wg", &["show", "flannel-wg", "public-key"]).trim(), public.to_string());
}

fn changed_peer_is_noticed_among_ten_thousand_without_reading_them() {
    let (mut table, own) = made();
    let alive = session(&mut table, own, 51999);
    for n in 0..10_000u32 {
        let addr = Ipv4Addr::from(0x0a00_0000 + n * 256);
        want(&mut table, key(n + 1), Some(peer("10.4.7.22:51820", &[&format!("{addr}/24")])));
    }
    converge(&mut table);
    let mut fingerprint = Fingerprint::open([WG]).unwrap();
    assert!(fingerprint.has_changed().unwrap(), "the first time");
    let transfer = || shown("transfer").into_iter().find(|line| line.starts_with(&alive.to_string()));
    let before = transfer();
    ip("addr add 172.7.22.2/32 dev wg1");
    eventually("packets of the session", || {
        let _ = std::process::Command::new("ping").args(["-c1", "-W1", "-I", "wg1", "172.7.21.0"]).output().unwrap();
        transfer() != before
    });
    let took = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    // The peer answers the session's packets, so it may have roamed once.
    fingerprint.has_changed().unwrap();
    let checks = (0..5).map(|_| took(&mut || assert!(!fingerprint.has_changed().unwrap(), "nobody changed anything")));
    let check = checks.min().unwrap();
    let read = (0..3).map(|_| took(&mut || drop(table.target_mut().observe().unwrap()))).min().unwrap();
    eprintln!("10,000 peers: a check takes {check:?}, reading them {read:?}");
    for change in [
        &["peer", &key(77).to_string(), "endpoint", "10.4.7.99:1"][..],
        &["peer", &key(78).to_string(), "allowed-ips", "172.31.0.0/24"],
        &["peer", &key(79).to_string(), "persistent-keepalive", "9"],
        &["peer", &key(80).to_string(), "remove"],
        &["listen-port", "7"],
    ] {
        sh("wg", &[&["set", "flannel-wg"], change].concat());
        assert!(fingerprint.has_changed().unwrap(), "{change:?}");
        assert!(!fingerprint.has_changed().unwrap(), "after {change:?}");
    }
    ip("link del flannel-wg");
    assert!(fingerprint.has_changed().unwrap() && !fingerprint.has_changed().unwrap(), "without the device");
}

fn listing_over_many_messages_is_read_whole() {
    let (mut table, _) = made();
    let many: BTreeSet<Prefix> = (0..1500u16)
        .map(|n| Prefix::new(Ipv4Addr::from(0x0a00_0000 + u32::from(n) * 256).into(), 24).unwrap())
        .collect();
    want(&mut table, key(0), Some(Peer { allowed: many, ..peer("10.4.7.22:51820", &[]) }));
    for n in 1..2001 {
        let addr = Ipv4Addr::from(0xac10_0000 + n * 256);
        want(&mut table, key(n), Some(peer("10.4.7.22:51820", &[&format!("{addr}/24")])));
    }
    assert_eq!(converge(&mut table).upserted, 2002);
    assert_eq!(shown("peers").len(), 2001);
    want(&mut table, key(7), None);
    assert_eq!(converge(&mut table).removed, 1);
}

fn peers_wait_for_their_device() {
    let (private, public) = identity();
    let mut table = Reconciler::new("wireguard", Wireguards::open([(WG, private)]).unwrap());
    let (device, row) = device(public, 51820);
    table.want(device, Some(row));
    want(&mut table, key(1), Some(peer("10.4.7.22:51820", &["172.7.22.0/24"])));
    let pass = table.pass(true, Duration::ZERO);
    assert_eq!(pass.failed, 2, "{pass:?}");
    assert!(pass.errors[1].reason.contains("flannel-wg peer"), "{pass:?}");
    ip("link add flannel-wg type wireguard");
    table.invalidate();
    let pass = table.pass(true, Duration::from_secs(60));
    assert_eq!((pass.upserted, pass.failed), (2, 0), "{pass:?}");
    // Something else has the name.
    ip("link del flannel-wg");
    ip("link add flannel-wg type bridge");
    table.invalidate();
    assert_eq!(table.pass(true, Duration::from_secs(120)).failed, 2);
    let mut stranger = Reconciler::new("wireguard", Wireguards::open([]).unwrap());
    stranger.want(RowKey::Device(WG), Some(Row::Device(Device { public_key: Some(public), listen_port: 1 })));
    let error = stranger.target_mut().apply(&[reconcile::Step::Create(
        RowKey::Device(WG),
        Row::Device(Device { public_key: Some(public), listen_port: 1 }),
    )]);
    assert!(
        matches!(&error[0].as_ref().unwrap_err().cause, Cause::Missing(what) if what == "private key of flannel-wg")
    );
}

fn ipip_tunnel_reads_back_as_desired_and_tunl0_is_left_alone() {
    ip("link add eth0 type veth peer name switch");
    ip("addr add 10.4.7.21/24 dev eth0");
    ip("link set eth0 up");
    // What the module makes by itself where the kernel was not asked not to.
    let _ = std::process::Command::new("ip").args(["link", "add", "tunl0", "type", "ipip"]).output();
    let others = || {
        let lines = ip("-o -d link show type ipip");
        lines.lines().filter(|line| !line.contains("flannel.ipip")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = others();
    let name = IfName::literal("flannel.ipip");
    let link = |last: u8| Link {
        kind: LinkKind::Ipip(IpipOptions { local: Some([10, 4, 7, last].into()), remote: None }),
        mtu: Some(1480),
        mac: None,
        up: true,
        master: None,
    };
    let mut links =
        Reconciler::new("links", Links::new(Rtnl::open().unwrap(), Box::new(|_, _| true)).only([name.clone()]));
    links.want(name.clone(), Some(link(21)));
    assert_eq!(converge(&mut links).upserted, 1);
    let text = ip("-d link show flannel.ipip");
    assert!(text.contains("mtu 1480") && text.contains("ipip remote any local 10.4.7.21"), "{text}");
    links.want(name.clone(), Some(Link { mtu: Some(1400), ..link(21) }));
    converge(&mut links);
    assert!(ip("link show flannel.ipip").contains("mtu 1400"));
    // Another address is set under what stands on the device.
    ip("route add 172.7.22.0/24 via 10.4.7.22 dev flannel.ipip onlink");
    let index = ip("-o link show flannel.ipip");
    links.want(name.clone(), Some(Link { mtu: Some(1400), ..link(22) }));
    converge(&mut links);
    assert!(ip("-d link show flannel.ipip").contains("local 10.4.7.22"));
    assert_eq!(ip("-o link show flannel.ipip").split(':').next(), index.split(':').next());
    assert!(ip("route show 172.7.22.0/24").contains("flannel.ipip"));
    links.want(name.clone(), None);
    converge(&mut links);
    assert_eq!(others(), before);
    // The kernel has one device of two ends.
    ip("link add other type ipip local 10.4.7.21");
    links.want(name, Some(link(21)));
    let pass = links.pass(true, Duration::ZERO);
    assert!(pass.errors[0].reason.contains("device other has its two ends"), "{pass:?}");
}

fn renamed_tunnels_get_their_names_back_with_what_they_hold() {
    let (mut table, _) = made();
    let (_, other) = identity();
    want(&mut table, other, Some(peer("10.4.7.22:51820", &["172.7.22.0/24"])));
    converge(&mut table);
    ip("link add eth0 type veth peer name switch");
    ip("addr add 10.4.7.21/24 dev eth0");
    let tunnel = IpipOptions { local: Some(Ipv4Addr::new(10, 4, 7, 21)), remote: None };
    let ipip = IfName::literal("flannel.ipip");
    let kinds = [(WG, LinkKind::Wireguard), (ipip, LinkKind::Ipip(tunnel))];
    let mut links = Reconciler::new("link", Links::new(Rtnl::open().unwrap(), Box::new(|_, _| false)));
    for (name, kind) in &kinds {
        links.want(name.clone(), Some(Link { kind: kind.clone(), mtu: None, mac: None, up: true, master: None }));
    }
    converge(&mut links);
    let mut rtnl = Rtnl::open().unwrap();
    for (name, _) in kinds {
        let index = rtnl.link(&name).unwrap().unwrap().index;
        ip(&format!("link set {name} down"));
        ip(&format!("link set {name} name other0"));
        links.invalidate();
        assert_eq!(converge(&mut links).upserted, 1, "{name}");
        let back = rtnl.link(&name).unwrap().unwrap();
        assert_eq!((back.index, back.link.up), (index, true), "{name}");
    }
    assert!(shown("allowed-ips")[0].contains("172.7.22.0/24"), "{:?}", shown("allowed-ips"));
}

fn main() -> ExitCode {
    let has = || Wireguards::open([]).is_ok();
    common::main_in_lab(
        "WireGuard",
        has,
        cases![
            device_and_peers_read_back_as_desired_and_go_without_a_trace,
            renamed_tunnels_get_their_names_back_with_what_they_hold,
            what_somebody_else_changed_is_put_right,
            changed_peer_is_noticed_among_ten_thousand_without_reading_them,
            session_of_an_untouched_peer_goes_on_whatever_happens_to_others,
            peer_that_roamed_is_followed_until_its_lease_says_otherwise,
            port_that_somebody_has_is_named,
            devices_that_exchange_their_ports_have_them_at_once,
            listing_over_many_messages_is_read_whole,
            peers_wait_for_their_device,
            ipip_tunnel_reads_back_as_desired_and_tunl0_is_left_alone,
        ],
    )
}
