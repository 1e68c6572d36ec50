//! GC and STATUS.

use std::fs;

use kernel::Rtnl;
use netstate::IfName;
use serde_json::{Value, json};

use crate::node::{Node, SUBNET_ENV, flannel, host_link, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("gc_removes_what_is_not_listed_and_keeps_what_is", gc_keeps_valid),
    ("gc_without_a_list_removes_everything_of_this_network_only", gc_without_list),
    ("gc_cleans_up_after_the_predecessor", gc_predecessor),
    ("gc_leaves_an_address_that_somebody_blocks", gc_blocked),
    ("status_is_ready_with_a_lease_and_not_without", status_needs_lease),
    ("status_reports_a_full_range_and_a_lost_bridge", status_reports),
    ("status_is_ready_after_a_reboot_whatever_it_left", status_after_reboot),
    ("gc_and_status_need_a_configuration_of_1_1_0", gates),
];

fn modern(conf: &Value) -> Value {
    with(conf, "cniVersion", json!("1.1.0"))
}

fn run(node: &Node, command: &str, conf: &Value) -> crate::node::Outcome {
    // libcni sets the attachment's variables to the empty text for these verbs.
    let vars = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", ""),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", ""),
        ("CNI_PATH", "/run/bin"),
    ];
    node.exec(conf["type"].as_str().unwrap(), &vars, &conf.to_string())
}

fn gc_keeps_valid(node: &Node) {
    for conf in [native(), flannel()] {
        let conf = modern(&conf);
        let (_, _) = node.attached(&conf, "dead");
        let pod = node.pod();
        let result = node.add(&conf, "alive", &pod).result();
        let entry = json!([{"containerID": "alive", "ifname": "eth0"}]);
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            run(node, "GC", &with(&conf, key, entry.clone())).silent();
            assert!(!node.links().contains(&host_link("dead")));
            assert!(node.files().iter().all(|(name, text)| !name.contains("dead") && !text.contains("dead")));
            node.check(&conf, "alive", &pod, &result).silent();
        }
        node.del(&conf, "alive", &pod).silent();
        assert_eq!(node.files(), []);
        let bridge = IfName::new(if conf["type"] == json!("flannel") { "cni0" } else { "cbr0" }).unwrap();
        Rtnl::open().unwrap().delete_link(&bridge).unwrap();
    }
}

fn gc_without_list(node: &Node) {
    let conf = modern(&native());
    let other = with(&conf, "name", json!("other"));
    node.attached(&conf, "web-1");
    node.attached(&other, "web-2");
    run(node, "GC", &with(&conf, "cni.dev/valid-attachments", Value::Null)).silent();
    assert!(!node.links().contains(&host_link("web-1")) && node.links().contains(&host_link("web-2")));
    assert!(node.files().iter().all(|(name, _)| name.contains("/other/")), "{:?}", node.files());
    run(node, "GC", &with(&conf, "ipam", json!("junk"))).silent();
    run(node, "GC", &other).silent();
    assert_eq!(node.files(), []);
}

fn gc_predecessor(node: &Node) {
    fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    fs::create_dir_all("/var/lib/cni/flannel").unwrap();
    let (old, alive) = ("3f".repeat(32), "a7".repeat(32));
    // Of host-local, of before its 0.7, without content, and an operator's.
    for (name, text) in [
        ("172.7.21.2", "old-1\r\neth0"),
        ("172.7.21.3", &*old),
        ("172.7.21.4", &*alive),
        ("172.7.21.5", ""),
        ("172.7.21.6", "reserved\n"),
    ] {
        fs::write(format!("/var/lib/cni/networks/cbr0/{name}"), text).unwrap();
    }
    for (id, network) in [("old-1", "cbr0"), ("alive", "cbr0"), ("theirs", "other")] {
        fs::write(format!("/var/lib/cni/flannel/{id}"), json!({"name": network}).to_string()).unwrap();
    }
    let valid = json!([{"containerID": "alive", "ifname": "eth0"}, {"containerID": alive, "ifname": "eth0"}]);
    run(node, "GC", &with(&modern(&flannel()), "cni.dev/valid-attachments", valid)).silent();
    let names: Vec<String> = node.files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "/var/lib/cni/flannel/alive",
            "/var/lib/cni/flannel/theirs",
            "/var/lib/cni/networks/cbr0/172.7.21.4",
            "/var/lib/cni/networks/cbr0/172.7.21.6"
        ]
    );
}

fn gc_blocked(node: &Node) {
    let conf = modern(&native());
    node.attached(&conf, "dead");
    let blocked = ("/var/lib/cni/networks/cbr0/172.7.21.9".to_owned(), "the printer has this one\n".to_owned());
    fs::write(&blocked.0, &blocked.1).unwrap();
    run(node, "GC", &conf).silent();
    assert_eq!(node.files(), [blocked]);
}

fn status_needs_lease(node: &Node) {
    for conf in [native(), flannel()] {
        let conf = modern(&conf);
        run(node, "STATUS", &conf).silent();
        fs::remove_file("/run/flannel/subnet.env").unwrap();
        let (code, text) = run(node, "STATUS", &conf).error();
        assert!(code == 50 && text.contains("subnet.env"), "{text}");
        fs::write("/run/flannel/subnet.env", "junk").unwrap();
        assert_eq!(run(node, "STATUS", &conf).error().0, 50);
        fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
        run(node, "STATUS", &conf).silent();
    }
    assert_eq!(node.files(), [], "STATUS writes nothing");
}

fn status_reports(node: &Node) {
    let conf = modern(&native());
    node.attached(&conf, "web-1");
    for host in 3..=254 {
        fs::write(format!("/var/lib/cni/networks/cbr0/172.7.21.{host}"), "x\r\neth0").unwrap();
    }
    crate::leases::living_foreign_pod();
    run(node, "STATUS", &conf).silent();
    // The last address was given out a minute ago.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let memory = fs::File::options().write(true).open("/var/lib/cni/networks/cbr0/last_reserved_ip.0").unwrap();
    memory.set_modified(old).unwrap();
    let (code, text) = run(node, "STATUS", &conf).error();
    assert!(code == 50 && text.contains("all 253 IP addresses"), "{text}");
    fs::remove_file("/var/lib/cni/networks/cbr0/172.7.21.77").unwrap();
    run(node, "STATUS", &conf).silent();
    Rtnl::open().unwrap().delete_link(&IfName::new("cbr0").unwrap()).unwrap();
    let (code, text) = run(node, "STATUS", &conf).error();
    assert!(code == 51 && text.contains("bridge cbr0 of network cbr0 is gone"), "{text}");
}

fn status_after_reboot(node: &Node) {
    // The bridge and all links are gone, every address is still reserved, every record is of the previous boot.
    fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    fs::create_dir_all("/var/lib/cni/netd/cbr0").unwrap();
    for host in 2..=254 {
        fs::write(format!("/var/lib/cni/networks/cbr0/172.7.21.{host}"), format!("old{host}\r\neth0")).unwrap();
        let record = json!({"boot": "another", "addresses": [format!("172.7.21.{host}")]});
        fs::write(format!("/var/lib/cni/netd/cbr0/old{host}@eth0"), record.to_string()).unwrap();
    }
    run(node, "STATUS", &modern(&native())).silent();
    node.attached(&native(), "web-1");
    assert_eq!(node.files().len(), 2);
}

fn gates(node: &Node) {
    for command in ["GC", "STATUS"] {
        let (code, text) = run(node, command, &native()).error();
        assert!(code == 1 && text.contains(&format!("config version does not allow {command}")), "{text}");
        run(node, command, &with(&modern(&flannel()), "type", json!("portmap"))).silent();
    }
}
