//! What keeps Pods from taking what is another's: `macspoofchk` for hardware addresses, `enabledad` for IPv6 addresses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bridge::{ip, plain, routed};
use crate::node::{DUAL_ENV, Node, first_address, flannel, host_link, inside, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("spoofed_frames_are_dropped_and_the_pods_own_pass", spoofed_frames),
    ("spoof_guard_is_two_elements_and_gone_after_del", guard_elements),
    ("spoof_guard_is_undone_when_add_fails", guard_undone),
    ("spoof_guard_of_the_dead_is_swept_by_gc", guard_swept),
    ("check_reports_a_missing_spoof_guard", guard_checked),
    ("spoof_guard_works_under_every_name", every_name),
    ("duplicate_ipv6_address_fails_add_and_leaves_nothing", duplicate_address),
    ("duplicate_address_detection_is_waited_for_only_when_asked", detection_awaited),
];

/// A network of the name `bridge` whose ports are guarded.
pub(crate) fn guarded() -> Value {
    with(&routed("1.0.0", &["10.1.2.0/24"]), "macspoofchk", json!(true))
}

fn table(network: &str) -> String {
    let name = format!("netd-spoof-{network}");
    let output = Command::new("nft").args(["list", "table", "bridge", &name]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// True when a connection from inside `pod` to the gateway comes through within a second and a half.
fn reaches_gateway(pod: &Path, gateway: &str) -> bool {
    let listener = TcpListener::bind(SocketAddr::new(gateway.parse().unwrap(), 0)).unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"x").unwrap();
        });
        let reached = inside(pod, || {
            let stream = TcpStream::connect_timeout(&target, Duration::from_millis(1500));
            stream.is_ok_and(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).is_ok()
            })
        });
        if !reached {
            // Lets the server go.
            TcpStream::connect(target).unwrap();
        }
        server.join().unwrap();
        reached
    })
}

/// Gives the Pod's interface another hardware address, as its own root can.
fn change_mac(pod: &Path, mac: &str, gateway: &str, bridge: &str) {
    inside(pod, || {
        ip("link set eth0 down");
        ip(&format!("link set eth0 address {mac}"));
        ip("link set eth0 up");
        ip(&format!("route replace default via {gateway}"));
    });
    // What the host knows of the Pod must not decide.
    ip(&format!("neigh flush dev {bridge}"));
}

fn spoofed_frames(node: &Node) {
    let pod = node.pod();
    let result = node.add(&guarded(), "web", &pod).result();
    let own = result["interfaces"][2]["mac"].as_str().unwrap().to_owned();
    assert!(reaches_gateway(&pod, "10.1.2.1"));
    change_mac(&pod, "02:00:00:00:66:66", "10.1.2.1", "bridge0");
    assert!(!reaches_gateway(&pod, "10.1.2.1"), "frames of a foreign sender passed");
    change_mac(&pod, &own, "10.1.2.1", "bridge0");
    assert!(reaches_gateway(&pod, "10.1.2.1"), "the guard lets its own address through again");
    // The same without the option: it is the guard that stopped it.
    let mut free = routed("1.0.0", &["10.1.3.0/24"]);
    (free["name"], free["bridge"]) = (json!("free"), json!("bridge1"));
    let other = node.pod();
    node.add(&free, "other", &other).result();
    change_mac(&other, "02:00:00:00:66:66", "10.1.3.1", "bridge1");
    assert!(reaches_gateway(&other, "10.1.3.1"));
}

fn guard_elements(node: &Node) {
    let (pod1, pod2) = (node.pod(), node.pod());
    let result = node.add(&guarded(), "web-1", &pod1).result();
    node.add(&guarded(), "web-2", &pod2).result();
    let text = table("testConfig");
    assert_eq!(text.matches("drop").count(), 1, "one rule for all: {text}");
    assert_eq!(text.matches(&host_link("web-1")).count(), 4, "two elements, each with its owner: {text}");
    assert!(text.contains(result["interfaces"][2]["mac"].as_str().unwrap()));
    node.del(&guarded(), "web-1", &pod1).silent();
    let text = table("testConfig");
    assert!(!text.contains(&host_link("web-1")) && text.contains(&host_link("web-2")), "{text}");
    // The option is gone from the configuration, the guard from the kernel all the same.
    node.del(&routed("1.0.0", &["10.1.2.0/24"]), "web-2", &pod2).silent();
    assert!(!table("testConfig").contains("veth"));
    assert_eq!(node.files(), []);
}

fn guard_undone(node: &Node) {
    // The Pod's name is taken, which shows only when the pair is made: behind the guard.
    let pod = node.pod();
    inside(&pod, || ip("link add eth0 type veth peer other"));
    assert_eq!(node.add(&guarded(), "web", &pod).error().0, 101);
    let text = table("testConfig");
    assert!(text.contains("@guarded") && !text.contains("veth"), "{text}");
    assert_eq!(node.files(), []);
}

fn guard_swept(node: &Node) {
    let conf = with(&guarded(), "cniVersion", json!("1.1.0"));
    for id in ["web-1", "web-2", "web-3"] {
        node.add(&conf, id, &node.pod()).result();
    }
    // Nobody remembers web-3 any more.
    std::fs::remove_file("/var/lib/cni/netd/testConfig/web-3@eth0").unwrap();
    let valid = json!([{"containerID": "web-1", "ifname": "eth0"}]);
    node.verb("GC", &with(&conf, "cni.dev/valid-attachments", valid), "", "").silent();
    let text = table("testConfig");
    assert!(text.contains(&host_link("web-1")), "{text}");
    assert!(!text.contains(&host_link("web-2")) && !text.contains(&host_link("web-3")), "{text}");
}

fn guard_checked(node: &Node) {
    let pod = node.pod();
    let result = node.add(&guarded(), "web", &pod).result();
    node.check(&guarded(), "web", &pod, &result).silent();
    let nft = |args: &str| assert!(Command::new("nft").args(args.split(' ')).status().unwrap().success());
    for damage in
        ["flush set bridge netd-spoof-testConfig guarded", "flush chain bridge netd-spoof-testConfig prerouting"]
    {
        nft(damage);
        let (code, text) = node.check(&guarded(), "web", &pod, &result).error();
        assert!(code == 102 && text.contains("bridge netd-spoof-testConfig @guarded"), "{damage}: {text}");
        // The next Pod makes the table whole; this one's element comes back with its own ADD.
        node.del(&guarded(), "web", &pod).silent();
        let again = node.add(&guarded(), "web", &pod).result();
        node.check(&guarded(), "web", &pod, &again).silent();
    }
}

fn every_name(node: &Node) {
    let delegate = json!({"isDefaultGateway": true, "hairpinMode": true, "macspoofchk": true, "enabledad": true});
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let leased = with(&with(&native(), "macspoofchk", json!(true)), "enabledad", json!(true));
    for (conf, bridge) in [(leased, "cbr0"), (with(&flannel(), "delegate", delegate), "cni0")] {
        let pod = node.pod();
        let result = node.add(&conf, "web", &pod).result();
        assert!(table("cbr0").contains(&host_link("web")));
        assert!(reaches_gateway(&pod, "172.7.21.1"));
        change_mac(&pod, "02:00:00:00:66:66", "172.7.21.1", bridge);
        assert!(!reaches_gateway(&pod, "172.7.21.1"));
        node.del(&conf, "web", &pod).silent();
        assert!(!table("cbr0").contains("veth"), "{result}");
        ip(&format!("link del {bridge}"));
    }
}

fn six(network: &str) -> Value {
    let mut conf = with(&routed("1.0.0", &["2001:db8::/64"]), "enabledad", json!(true));
    conf["name"] = json!(network);
    conf
}

fn duplicate_address(node: &Node) {
    // A machine on the same wire holds what the next Pod is to get.
    let squatter = node.pod();
    node.add(&plain("1.0.0"), "squatter", &squatter).result();
    inside(&squatter, || {
        ip("addr add 2001:db8::2/64 dev eth0 nodad");
    });
    let pod = node.pod();
    let before = node.links();
    let (code, text) = node.add(&six("second"), "web", &pod).error();
    assert!(code == 100 && text.contains("address 2001:db8::2 of eth0 belongs to another machine"), "{text}");
    assert_eq!(node.links(), before);
    assert!(node.files().iter().all(|(name, _)| !name.contains("second")), "{:?}", node.files());
    // Without the option nobody asks.
    let trusting = with(&six("third"), "enabledad", json!(false));
    node.add(&trusting, "web", &pod).result();
}

fn detection_awaited(node: &Node) {
    let pod = node.pod();
    let start = Instant::now();
    let result = node.add(&six("second"), "web", &pod).result();
    assert!(start.elapsed() >= Duration::from_secs(1), "probing takes a second at least: {:?}", start.elapsed());
    inside(&pod, || {
        let shown = Command::new("ip").args(["-6", "addr", "show", "dev", "eth0"]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let line = shown.lines().find(|line| line.contains("2001:db8::2/64")).unwrap();
        assert!(!line.contains("tentative") && !line.contains("nodad"), "{shown}");
        for (key, value) in [("accept_dad", "1"), ("enhanced_dad", "1")] {
            let path = format!("net/ipv6/conf/eth0/{key}");
            assert_eq!(kernel::sysctl::read(&path.parse().unwrap()).unwrap(), value);
        }
        // Usable at once.
        std::net::UdpSocket::bind("[2001:db8::2]:0").unwrap();
    });
    assert_eq!(first_address(&result).to_string(), "2001:db8::2");
    let quick = with(&six("second"), "enabledad", json!(false));
    let start = Instant::now();
    node.add(&quick, "web-2", &node.pod()).result();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
