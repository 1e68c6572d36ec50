//! DEL, and what a failed ADD leaves: nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kernel::Rtnl;
use netstate::{IfName, Link, LinkKind};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::node::{Node, flannel, host_link, inside, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("del_removes_everything_and_may_come_again", del_twice),
    ("del_needs_no_namespace", del_without_namespace),
    ("del_of_what_never_was_succeeds", del_of_nothing),
    ("del_works_when_the_configuration_and_the_subnet_file_are_broken", del_with_broken_configuration),
    ("add_that_finds_eth0_taken_leaves_nothing_behind", eth0_taken),
    ("add_twice_is_an_error_and_keeps_the_first", add_twice),
    ("add_after_a_killed_add_reuses_its_address", add_after_killed_add),
    ("full_or_read_only_disk_fails_add_and_leaves_nothing", bad_disk),
    ("add_that_fails_in_the_pod_unwinds_the_link_and_the_address", fails_inside),
];

/// Where the kernel takes its time to delete a link.
pub(crate) const SLOW_LINK_TESTS: &[Test] = &[("del_returns_before_the_kernel_has_cleaned_up", del_is_fast)];

/// True in a user-mode kernel, which has one processor to wait for and deletes a link in a millisecond.
pub(crate) fn has_quick_links() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
}

fn gone(node: &Node, id: &str) {
    assert!(!node.links().contains(&host_link(id)), "{:?}", node.links());
    assert_eq!(node.files(), []);
}

fn del_twice(node: &Node) {
    for conf in [native(), flannel()] {
        let (pod, _) = node.attached(&conf, "web-1");
        for _ in 0..3 {
            node.del(&conf, "web-1", &pod).silent();
            gone(node, "web-1");
        }
        inside(&pod, || assert!(Rtnl::open().unwrap().link(&IfName::new("eth0").unwrap()).unwrap().is_none()));
        let bridge = IfName::new(if conf["type"] == json!("flannel") { "cni0" } else { "cbr0" }).unwrap();
        Rtnl::open().unwrap().delete_link(&bridge).unwrap();
    }
}

fn del_without_namespace(node: &Node) {
    fs::write("/run/netns/plain", "not a namespace").unwrap();
    let netnses = ["", "/run/netns/never-there", "/run/netns/plain", "/run/netns/plain/below"];
    for (number, netns) in netnses.iter().enumerate() {
        let id = format!("web-{number}");
        node.attached(&native(), &id);
        node.verb("DEL", &native(), &id, netns).silent();
        gone(node, &id);
    }
    // The namespace vanished with its interface: only files are left.
    let (pod, _) = node.attached(&native(), "web-9");
    node.remove_pod(&pod);
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.links().contains(&host_link("web-9")) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    node.verb("DEL", &native(), "web-9", pod.to_str().unwrap()).silent();
    gone(node, "web-9");
}

fn del_of_nothing(node: &Node) {
    let before = node.links();
    for conf in [native(), flannel(), with(&flannel(), "type", json!("portmap"))] {
        node.verb("DEL", &conf, "never-was", "").silent();
        node.del(&conf, "never-was", &node.pod()).silent();
    }
    assert_eq!((node.links(), node.files()), (before, vec![]));
    assert!(!Path::new("/var/lib/cni").exists(), "DEL of nothing makes no directories");
}

fn del_with_broken_configuration(node: &Node) {
    let broken: [fn(&Value) -> Value; 4] = [
        |conf| with(conf, "ipam", json!({"type": "dhcp", "ranges": "junk"})),
        |conf| with(conf, "mtu", json!("big")),
        |conf| with(conf, "prevResult", json!({"ips": 7})),
        |conf| with(conf, "unknownOption", json!(true)),
    ];
    for (number, breaking) in broken.iter().enumerate() {
        let id = format!("web-{number}");
        fs::write("/run/flannel/subnet.env", crate::node::SUBNET_ENV).unwrap();
        let (pod, _) = node.attached(&native(), &id);
        fs::remove_file("/run/flannel/subnet.env").unwrap();
        node.del(&breaking(&native()), &id, &pod).silent();
        gone(node, &id);
    }
}

/// The kernel's own clean-up of a link takes it some 20 ms. A DEL that waited for it could not once be twice as quick as the
/// quickest deletion that does wait, on the same machine at the same time; one that does not wait soon is, whatever the load.
fn del_is_fast(node: &Node) {
    let attached = |number: u32| (format!("web-{number}"), node.attached(&native(), &format!("web-{number}")).0);
    let waiting = |number: u32| {
        let (id, pod) = attached(number);
        let link = IfName::new(host_link(&id)).unwrap();
        let start = Instant::now();
        Rtnl::open().unwrap().delete_link(&link).unwrap();
        let took = start.elapsed();
        node.del(&native(), &id, &pod).silent();
        took
    };
    let quickest = (0..5).map(waiting).min().unwrap();
    let is_quicker = |number: u32| {
        let (id, pod) = attached(number);
        let start = Instant::now();
        node.del(&native(), &id, &pod).silent();
        let took = start.elapsed();
        gone(node, &id);
        took * 2 < quickest
    };
    assert!((5..100).any(is_quicker), "no DEL was twice as quick as a deletion that takes {quickest:?}");
}

fn eth0_taken(node: &Node) {
    let pod = node.pod();
    inside(&pod, || {
        let bridge = Link { kind: LinkKind::Bridge(Default::default()), mtu: None, mac: None, up: false, master: None };
        Rtnl::open().unwrap().create_link(&IfName::new("eth0").unwrap(), &bridge).unwrap();
    });
    let (code, text) = node.add(&native(), "web-1", &pod).error();
    assert!(code == 101 && text.contains("container veth name (\"eth0\") already exists"), "{text}");
    gone(node, "web-1");
    inside(&pod, || {
        assert!(Rtnl::open().unwrap().link(&IfName::new("eth0").unwrap()).unwrap().is_some(), "foreign eth0 stays");
    });
    assert_eq!(node.attached(&native(), "web-2").1.to_string(), "172.7.21.3");
}

fn add_twice(node: &Node) {
    let pod = node.pod();
    let result = node.add(&native(), "web-1", &pod).result();
    let (code, text) = node.add(&native(), "web-1", &pod).error();
    assert!(code == 101 && text.contains("interface eth0 of container web-1 is attached"), "{text}");
    node.check(&native(), "web-1", &pod, &result).silent();
    // The same container may have a second interface.
    let vars = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "web-1"),
        ("CNI_NETNS", pod.to_str().unwrap()),
        ("CNI_IFNAME", "net1"),
    ];
    let second = node.exec("netd-cni", &vars, &with(&native(), "isDefaultGateway", json!(false)).to_string()).result();
    assert_eq!(second["ips"][0]["address"], json!("172.7.21.3/24"));
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(node.files().len(), 2, "the second interface keeps its record and its address");
}

fn add_after_killed_add(node: &Node) {
    let (pod, address) = node.attached(&native(), "web-1");
    // Killed between the veth and the Pod's addresses.
    inside(&pod, || {
        let mut rtnl = Rtnl::open().unwrap();
        let eth0 = rtnl.link(&IfName::new("eth0").unwrap()).unwrap().unwrap();
        rtnl.delete_address(eth0.index, address, 24).unwrap();
    });
    let result = node.add(&native(), "web-1", &pod).result();
    assert_eq!(result["ips"][0]["address"], json!("172.7.21.2/24"));
    node.check(&native(), "web-1", &pod, &result).silent();
    // Killed before the veth, and the runtime comes with another namespace.
    let other = node.pod();
    Rtnl::open().unwrap().delete_link(&IfName::new(host_link("web-1")).unwrap()).unwrap();
    let result = node.add(&native(), "web-1", &other).result();
    assert_eq!(result["ips"][0]["address"], json!("172.7.21.2/24"));
    node.check(&native(), "web-1", &other, &result).silent();
    node.del(&native(), "web-1", &other).silent();
    gone(node, "web-1");
}

fn fails_inside(node: &Node) {
    // A gateway that no address of the Pod covers: the kernel refuses the route after the link was made.
    let conf = with(&native(), "ipam", json!({"routes": [{"dst": "10.99.0.0/16", "gw": "10.98.0.1"}]}));
    for conf in [conf.clone(), with(&flannel(), "ipam", conf["ipam"].clone())] {
        let pod = node.pod();
        let (code, text) = node.add(&conf, "web-1", &pod).error();
        assert!(code == 100 && text.contains("10.99.0.0/16") && text.contains("while trying to"), "{text}");
        assert!(!text.contains("could not undo"), "{text}");
        gone(node, "web-1");
        inside(&pod, || assert!(Rtnl::open().unwrap().link(&IfName::new("eth0").unwrap()).unwrap().is_none()));
        for bridge in ["cbr0", "cni0"] {
            Rtnl::open().unwrap().delete_link(&IfName::new(bridge).unwrap()).unwrap();
        }
    }
}

fn bad_disk(node: &Node) {
    let (pod, _) = node.attached(&native(), "web-1");
    let before = (node.links(), node.files());
    let remount = |flags: MsFlags, options: &str| {
        mount(None::<&str>, "/var/lib", None::<&str>, MsFlags::MS_REMOUNT | flags, Some(options)).unwrap();
    };
    remount(MsFlags::MS_RDONLY, "");
    for conf in [native(), flannel()] {
        let (code, text) = node.add(&conf, "web-2", &node.pod()).error();
        assert!(code == 5 && text.contains("Read-only file system"), "{text}");
    }
    let (code, text) = node.del(&native(), "web-1", &pod).error();
    assert!(
        code == 5 && text.contains("Read-only file system"),
        "a DEL that could not finish is asked for again: {text}"
    );
    assert_eq!(node.files(), before.1);
    remount(MsFlags::empty(), "size=1m");
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(node.files(), []);
    // No block is free: files can be made, but nothing written into them.
    let fill = fs::File::create("/var/lib/fill").unwrap();
    let mut chunk = vec![0_u8; 4096];
    while std::io::Write::write_all(&mut &fill, &chunk).is_ok() {
        chunk[0] ^= 1;
    }
    let links = node.links();
    let (code, text) = node.add(&native(), "web-3", &node.pod()).error();
    assert!(code == 5 && text.contains("No space left on device"), "{text}");
    assert_eq!((node.links(), node.files()), (links, vec![]));
    drop(fill);
    fs::remove_file("/var/lib/fill").unwrap();
    node.attached(&native(), "web-4");
}
