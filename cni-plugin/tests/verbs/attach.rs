//! ADD and CHECK: what a Pod gets, and that it works.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kernel::{Netns, Rtnl, sysctl};
use netstate::{IfName, LinkKind};
use serde_json::{Value, json};

use crate::node::{DUAL_ENV, Node, bound, first_address, flannel, host_link, inside, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("add_golden_result_in_every_version", golden_results),
    ("add_wires_pod_bridge_and_routes", wires_everything),
    ("pods_reach_each_other_and_the_host_with_their_own_addresses", pods_talk),
    ("host_end_and_bridge_are_operational_when_add_returns", operational),
    ("the_first_packet_of_a_pod_is_not_lost", first_packet),
    ("dual_stack_pod_has_both_families_at_once", dual_stack),
    ("check_knows_the_namespace_by_every_path", check_of_other_paths),
    ("check_passes_after_add_and_reports_each_damage", check_reports_damage),
    ("requested_address_and_hardware_address_are_honoured", requested_address),
    ("mtu_of_the_subnet_file_reaches_bridge_and_new_pods", mtu_change),
    ("bridge_keeps_its_hardware_address_when_ports_come_and_go", stable_bridge_mac),
    ("bridge_of_an_earlier_lease_is_readdressed_when_empty_and_refused_when_not", earlier_lease),
    ("two_bridges_never_hold_one_subnet", second_bridge_refused),
    ("default_route_is_not_added_twice", default_route_once),
    ("without_the_daemons_masquerade_pods_take_the_nodes_address_outside", masqueraded),
    ("ranges_of_the_user_give_way_to_the_lease", lease_decides),
];

fn link(name: &str) -> kernel::link::LinkState {
    Rtnl::open().unwrap().link(&IfName::new(name).unwrap()).unwrap().unwrap()
}

fn golden_results(node: &Node) {
    let host = host_link("golden");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let conf = with(&native(), "cniVersion", json!(version));
        let conf = with(&conf, "ipam", json!({"dataDir": format!("/var/lib/cni/{version}")}));
        let pod = node.pod();
        let path = pod.to_str().unwrap();
        let mut golden = json!({
            "cniVersion": version,
            "interfaces": [{"name": "cbr0", "mac": "0a:58:ac:07:15:01"},
                           {"name": host, "mac": MAC_OF_GOLDEN},
                           {"name": "eth0", "mac": "0a:58:ac:07:15:02", "sandbox": path}],
            "ips": [{"interface": 2, "address": "172.7.21.2/24", "gateway": "172.7.21.1"}],
            "routes": [{"dst": "172.7.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "172.7.21.1"}],
        });
        if version.starts_with("0.") {
            golden["ips"][0]["version"] = json!("4");
            golden["dns"] = json!({});
        }
        if version == "1.1.0" {
            for index in 0..3 {
                golden["interfaces"][index]["mtu"] = json!(1450);
            }
        }
        assert_eq!(node.add(&conf, "golden", &pod).result(), golden, "{version}");
        node.del(&conf, "golden", &pod).silent();
    }
    let conf = with(&with(&native(), "cniVersion", json!("0.2.0")), "ipam", json!({"dataDir": "/var/lib/cni/0.2.0"}));
    let pod = node.pod();
    assert_eq!(
        node.add(&conf, "golden", &pod).result(),
        json!({"cniVersion": "0.2.0", "dns": {},
               "ip4": {"ip": "172.7.21.2/24", "gateway": "172.7.21.1",
                       "routes": [{"dst": "172.7.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "172.7.21.1"}]}})
    );
}

/// A hash of the attachment: the same in every release.
const MAC_OF_GOLDEN: &str = "8e:c3:9e:66:80:ad";

fn wires_everything(node: &Node) {
    let (pod, address) = node.attached(&native(), "web-1");
    let bridge = link("cbr0");
    assert_eq!((bridge.link.mtu, bridge.link.up), (Some(1450), true));
    assert!(matches!(bridge.link.kind, LinkKind::Bridge(_)));
    let mut host = Rtnl::open().unwrap();
    assert!(host.addresses_of(bridge.index).unwrap().contains(&("172.7.21.1".parse().unwrap(), 24)));
    let veth = link(&host_link("web-1"));
    assert_eq!((veth.master_index, veth.link.mtu, veth.link.up), (Some(bridge.index), Some(1450), true));
    let hairpin = std::fs::read_to_string(format!("/sys/class/net/{}/brport/hairpin_mode", veth.name));
    assert!(hairpin.is_err() || hairpin.unwrap().trim() == "1");
    assert_eq!(sysctl::read(&"net/ipv4/ip_forward".parse().unwrap()).unwrap(), "1");
    inside(&pod, || {
        let eth0 = link("eth0");
        assert_eq!((eth0.link.mtu, eth0.link.up, eth0.lower_index), (Some(1450), true, Some(veth.index)));
        let mut rtnl = Rtnl::open().unwrap();
        assert!(rtnl.addresses_of(eth0.index).unwrap().contains(&(address, 24)));
        let routes = rtnl.routes().unwrap();
        let via = |dst: &str| {
            let dst = dst.parse().unwrap();
            routes.iter().find(|(key, _)| key.dst == dst && key.table == 254).and_then(|(_, route)| route.via)
        };
        assert_eq!(via("0.0.0.0/0"), Some("172.7.21.1".parse().unwrap()));
        assert_eq!(via("172.7.0.0/16"), Some("172.7.21.1".parse().unwrap()));
    });
    let files = node.files();
    assert!(
        files.contains(&("/var/lib/cni/networks/cbr0/172.7.21.2".to_owned(), "web-1\r\neth0".to_owned())),
        "{files:?}"
    );
}

/// Serves one connection on `addr` inside `pod` and answers the caller's address as the server saw it.
pub(crate) fn who_called(pod: &Path, addr: SocketAddr, call: impl FnOnce()) -> IpAddr {
    let (ready, listening) = mpsc::channel();
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            inside(pod, || {
                let listener = bound(|| TcpListener::bind(addr));
                ready.send(()).unwrap();
                let (mut stream, peer) = accept(&listener);
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut word = [0; 4];
                stream.read_exact(&mut word).unwrap();
                stream.write_all(&word).unwrap();
                peer.ip()
            })
        });
        listening.recv().unwrap();
        call();
        server.join().unwrap()
    })
}

/// Accepts one connection within twenty seconds: a caller that failed must not leave the server waiting.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).unwrap();
                return (stream, peer);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(std::time::Instant::now() < deadline, "nobody called within twenty seconds");
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

pub(crate) fn say(addr: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10)).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
}

fn pods_talk(node: &Node) {
    let (pod1, addr1) = node.attached(&native(), "web-1");
    let (pod2, addr2) = node.attached(&native(), "web-2");
    assert_ne!(addr1, addr2);
    let target = SocketAddr::new(addr2, 80);
    assert_eq!(who_called(&pod2, target, || inside(&pod1, || say(target))), addr1, "Pod to Pod");
    let gateway: IpAddr = "172.7.21.1".parse().unwrap();
    assert_eq!(who_called(&pod2, target, || say(target)), gateway, "host to Pod");
    // The address goes to another Pod at once: no neighbour entry of the earlier owner is in the way.
    node.del(&native(), "web-2", &pod2).silent();
    let conf = with(&native(), "args", json!({"cni": {"ips": [addr2.to_string()]}}));
    let (pod3, addr3) = node.attached(&conf, "web-3");
    assert_eq!(addr3, addr2);
    assert_eq!(who_called(&pod3, target, || inside(&pod1, || say(target))), addr1, "Pod to reused address");
    assert_eq!(who_called(&pod3, target, || say(target)), gateway, "host to reused address");
}

fn operational(node: &Node) {
    // Files of this test's network. Asking over netlink would make the kernel do at once what ADD must have waited for.
    std::fs::create_dir("/run/sys").unwrap();
    let (none, sysfs) = (None::<&str>, Some("sysfs"));
    nix::mount::mount(sysfs, "/run/sys", sysfs, nix::mount::MsFlags::empty(), none).unwrap();
    for number in 0..40 {
        let id = format!("web-{number}");
        let pod = node.pod();
        node.add(&native(), &id, &pod).result();
        for link in [host_link(&id), "cbr0".to_owned()] {
            let state = std::fs::read_to_string(format!("/run/sys/class/net/{link}/operstate")).unwrap();
            assert_eq!(state.trim(), "up", "{link} of Pod {number}");
        }
        node.del(&native(), &id, &pod).silent();
    }
}

fn first_packet(node: &Node) {
    // Lost by a port or a bridge that does not send yet, it would be repeated after a second.
    let soon = Duration::from_millis(900);
    for number in 0..12 {
        let (pod, _) = node.attached(&native(), &format!("web-{number}"));
        let listener = TcpListener::bind("172.7.21.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        inside(&pod, || TcpStream::connect_timeout(&target, soon).expect("the first packet was lost"));
        node.del(&native(), &format!("web-{number}"), &pod).silent();
    }
}

fn dual_stack(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let (pod1, pod2) = (node.pod(), node.pod());
    let result = node.add(&native(), "web-1", &pod1).result();
    assert_eq!(result["ips"][1]["address"], json!("fd00:7:0:21::2/64"));
    assert_eq!(result["routes"][3], json!({"dst": "::/0", "gw": "fd00:7:0:21::1"}));
    node.check(&native(), "web-1", &pod1, &result).silent();
    node.add(&native(), "web-2", &pod2).result();
    assert_eq!(sysctl::read(&"net/ipv6/conf/all/forwarding".parse().unwrap()).unwrap(), "1");
    // No duplicate address detection: usable in the same moment.
    let target: SocketAddr = "[fd00:7:0:21::3]:80".parse().unwrap();
    let caller = who_called(&pod2, target, || inside(&pod1, || say(target)));
    assert_eq!(caller, "fd00:7:0:21::2".parse::<IpAddr>().unwrap());
    node.del(&native(), "web-1", &pod1).silent();
    node.del(&native(), "web-2", &pod2).silent();
    assert_eq!(node.files(), []);
    let old = with(&native(), "cniVersion", json!("0.2.0"));
    assert_eq!(first_address_of_old(&node.add(&old, "web-3", &node.pod()).result()), "172.7.21.4/24");
}

fn first_address_of_old(result: &Value) -> String {
    assert!(result["ip6"]["ip"].is_string());
    result["ip4"]["ip"].as_str().unwrap().to_owned()
}

fn check_of_other_paths(node: &Node) {
    let conf = with(&native(), "cniVersion", json!("1.0.0"));
    let pod = node.pod();
    let result = node.add(&conf, "web-1", &pod).result();
    let alias = std::path::PathBuf::from("/run/netns/alias");
    std::os::unix::fs::symlink(&pod, &alias).unwrap();
    let bound = std::path::PathBuf::from("/run/netns/bound");
    std::fs::File::create(&bound).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some(&pod), &bound, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
    let roundabout = std::path::PathBuf::from(format!("/run/./netns/../netns/{}", pod.file_name().unwrap().display()));
    for path in [&pod, &alias, &bound, &roundabout] {
        node.check(&conf, "web-1", path, &result).silent();
    }
    let (code, text) = node.check(&conf, "web-1", &node.pod(), &result).error();
    assert!(code == 102 && text.contains("lists no interface eth0"), "another namespace is another: {text}");
}

fn check_reports_damage(node: &Node) {
    let conf = with(&native(), "cniVersion", json!("0.4.0"));
    let pod = node.pod();
    let result = node.add(&conf, "web-1", &pod).result();
    node.check(&conf, "web-1", &pod, &result).silent();
    assert_eq!(node.verb("CHECK", &conf, "web-1", pod.to_str().unwrap()).error().0, 7, "prevResult is required");
    inside(&pod, || {
        let eth0 = link("eth0").index;
        Rtnl::open().unwrap().delete_address(eth0, "172.7.21.2".parse().unwrap(), 24).unwrap();
    });
    let (code, text) = node.check(&conf, "web-1", &pod, &result).error();
    assert!(code == 102 && text.contains("address 172.7.21.2/24 is missing on eth0"), "{text}");
    Rtnl::open().unwrap().delete_link(&IfName::new(host_link("web-1")).unwrap()).unwrap();
    let (_, text) = node.check(&conf, "web-1", &pod, &result).error();
    assert!(text.contains("interface eth0 is missing") && text.contains("host end"), "{text}");
    let old = with(&conf, "cniVersion", json!("0.3.1"));
    let (code, text) = node.check(&old, "web-1", &pod, &result).error();
    assert!(code == 1 && text.contains("does not allow CHECK"), "{text}");
}

fn requested_address(node: &Node) {
    let runtime = json!({"ips": ["172.7.21.77/24"], "mac": "02:00:00:00:00:77"});
    let pod = node.pod();
    let result = node.add(&with(&native(), "runtimeConfig", runtime.clone()), "web-1", &pod).result();
    assert_eq!(result["ips"][0]["address"], json!("172.7.21.77/24"));
    assert_eq!(result["interfaces"][2]["mac"], json!("02:00:00:00:00:77"));
    inside(&pod, || assert_eq!(link("eth0").link.mac.unwrap().to_string(), "02:00:00:00:00:77"));
    let (code, text) = node.add(&with(&native(), "runtimeConfig", runtime), "web-2", &node.pod()).error();
    assert!(code == 7 && text.contains("requested IP address 172.7.21.77 is not available"), "{text}");
    for (ip, why) in [("172.7.21.1", "gateway"), ("10.9.9.9", "failed to allocate all requested IPs: 10.9.9.9")] {
        let conf = with(&native(), "runtimeConfig", json!({"ips": [ip]}));
        let (_, text) = node.add(&conf, "web-3", &node.pod()).error();
        assert!(text.contains(why), "{text}");
    }
}

fn mtu_change(node: &Node) {
    let (old, _) = node.attached(&native(), "web-1");
    for mtu in [1500_u32, 1400] {
        let text = crate::node::SUBNET_ENV.replace("MTU=1450", &format!("MTU={mtu}"));
        std::fs::write("/run/flannel/subnet.env", text).unwrap();
        let pod = node.pod();
        let outcome = node.add(&native(), &format!("web-{mtu}"), &pod);
        outcome.result();
        let notice = format!("bridge cbr0 has an MTU of {mtu} bytes now");
        assert!(outcome.notice.contains(&notice), "{outcome:?}");
        assert!(outcome.notice.contains(&format!("{} (1450)", host_link("web-1"))), "{outcome:?}");
        // Once: the next Pod changes nothing.
        let next = node.add(&native(), &format!("db-{mtu}"), &node.pod());
        assert!(next.ok && next.notice.is_empty(), "{next:?}");
        assert_eq!(link("cbr0").link.mtu, Some(mtu));
        inside(&pod, || assert_eq!(link("eth0").link.mtu, Some(mtu)));
    }
    inside(&old, || assert_eq!(link("eth0").link.mtu, Some(1450), "running Pods keep theirs"));
    assert_eq!(link(&host_link("web-1")).link.mtu, Some(1450));
}

fn stable_bridge_mac(node: &Node) {
    let mut pods = Vec::new();
    for number in 0..4 {
        let id = format!("web-{number}");
        pods.push((node.attached(&native(), &id).0, id));
        assert_eq!(link("cbr0").link.mac.unwrap().to_string(), "0a:58:ac:07:15:01");
    }
    for (pod, id) in pods {
        node.del(&native(), &id, &pod).silent();
        assert_eq!(link("cbr0").link.mac.unwrap().to_string(), "0a:58:ac:07:15:01");
    }
}

fn earlier_lease(node: &Node) {
    let (pod, _) = node.attached(&native(), "web-1");
    let moved = crate::node::SUBNET_ENV.replace("172.7.21.1", "172.7.33.1");
    std::fs::write("/run/flannel/subnet.env", &moved).unwrap();
    let (code, text) = node.add(&native(), "web-2", &node.pod()).error();
    assert!(code == 7 && text.contains("\"cbr0\" already has an IP address different from 172.7.33.1/24"), "{text}");
    node.del(&native(), "web-1", &pod).silent();
    let (_, address) = node.attached(&native(), "web-3");
    assert_eq!(address, "172.7.33.3".parse::<IpAddr>().unwrap(), "round robin: .2 was the refused ADD's");
    std::fs::write("/run/flannel/subnet.env", crate::node::SUBNET_ENV).unwrap();
    let forced = with(&native(), "forceAddress", json!(true));
    node.attached(&forced, "web-4");
    let bridge = link("cbr0").index;
    let mut addresses = Rtnl::open().unwrap().addresses_of(bridge).unwrap();
    addresses.retain(|(addr, _)| addr.is_ipv4());
    assert_eq!(addresses, [("172.7.21.1".parse().unwrap(), 24)]);
}

fn second_bridge_refused(node: &Node) {
    node.attached(&flannel(), "web-1");
    let before = (node.links(), node.files());
    let named = with(&native(), "bridge", json!("cbr0"));
    let (code, text) = node.add(&named, "web-2", &node.pod()).error();
    assert!(code == 7 && text.contains("bridge cni0 already has 172.7.21.1/24"), "{text}");
    let mut links = node.links();
    links.retain(|name| name != "cbr0");
    assert_eq!((links, node.files()), before);
}

fn default_route_once(node: &Node) {
    let conf = with(&native(), "ipam", json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}]}));
    let pod = node.pod();
    let result = node.add(&conf, "web-1", &pod).result();
    let defaults = result["routes"].as_array().unwrap().iter().filter(|r| r["dst"] == json!("0.0.0.0/0")).count();
    assert_eq!(defaults, 1);
    let routes = Rtnl::open_in(&Netns::open(&pod).unwrap()).unwrap().routes().unwrap();
    assert_eq!(routes.iter().filter(|(key, _)| key.dst.is_default() && key.dst.is_ipv4()).count(), 1);
}

fn lease_decides(node: &Node) {
    let conf = with(&native(), "ipam", json!({"ranges": [[{"subnet": "10.0.0.0/24"}]]}));
    let result = node.add(&conf, "web-1", &node.pod()).result();
    assert_eq!(
        first_address(&result),
        "172.7.21.2".parse::<IpAddr>().unwrap(),
        "the lease decides, not the user's ranges"
    );
}

fn masqueraded(node: &Node) {
    let client = crate::ports::outside(node);
    // The outside machine knows its way back to Pods, so that only the source address shows what happened.
    inside(&client, || {
        let link = Some(IfName::new("eth0").unwrap());
        let key = netstate::RouteKey { table: 254, dst: "172.7.0.0/16".parse().unwrap(), metric: 0 };
        let route = netstate::Route {
            kind: netstate::RouteKind::Unicast,
            via: Some("10.4.7.21".parse().unwrap()),
            link,
            onlink: false,
            src: None,
            scope: netstate::RouteScope::Universe,
            protocol: 3,
            metrics: netstate::RouteMetrics::default(),
        };
        Rtnl::open().unwrap().add_routes(&[(key, route)]).unwrap();
    });
    let target: SocketAddr = "10.4.7.200:80".parse().unwrap();
    let seen = |pod: &Path| who_called(&client, target, || inside(pod, || say(target))).to_string();
    let (pod, _) = node.attached(&flannel(), "web-1");
    assert_eq!(seen(&pod), "172.7.21.2", "the daemon masquerades, not we");
    let text = crate::node::SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false");
    std::fs::write("/run/flannel/subnet.env", text).unwrap();
    let (second, address) = node.attached(&flannel(), "web-2");
    assert_eq!(seen(&second), "10.4.7.21");
    let between = SocketAddr::new(address, 80);
    assert_eq!(who_called(&second, between, || inside(&pod, || say(between))).to_string(), "172.7.21.2");
}
