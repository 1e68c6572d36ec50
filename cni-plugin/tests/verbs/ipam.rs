//! Address management in depth: its cost, its order over several ranges, requested addresses, and state directories that
//! somebody tampered with, as `host-local` and inside the plugins that attach.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use kernel::Rtnl;
use netstate::IfName;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::faults::links::traced;
use crate::node::{Node, first_address, flannel, host_link, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("add_and_del_cost_the_same_with_250_reservations_and_read_no_directory", constant_cost),
    ("host_local_gives_no_living_container_the_address_of_another", five_hundred),
    ("range_sets_advance_on_their_own_and_inner_ranges_in_turn", several_ranges),
    ("a_set_that_is_full_takes_the_other_sets_addresses_back", one_set_full),
    ("requested_addresses_come_from_all_three_sources", requested),
    ("add_again_takes_the_earlier_addresses_as_far_as_the_changed_ranges_have_them", changed_ranges),
    ("clock_has_no_influence_on_the_order_of_addresses", clock),
    ("planted_links_are_never_followed", planted_links),
    ("junk_in_the_place_of_state_files_harms_nobody", junk),
    ("read_only_directory_fails_add_and_keeps_what_is_there", read_only),
];

const DIR: &str = "/var/lib/cni/networks/cbr0";

/// A container is started anew without a DEL, and its network has other ranges meanwhile.
fn changed_ranges(node: &Node) {
    let bridge = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "br0", "isGateway": true,
        "forceAddress": true});
    let ranges = [
        (json!([[{"subnet": "10.1.2.0/25"}], [{"subnet": "10.1.2.128/25"}]]), &["10.1.2.2/25", "10.1.2.130/25"][..]),
        (json!([[{"subnet": "10.1.2.0/25"}, {"subnet": "10.1.2.128/25"}]]), &["10.1.2.2/25"]),
        (json!([[{"subnet": "10.1.2.0/25", "gateway": "10.1.2.2"}]]), &["10.1.2.3/25"]),
    ];
    for own_link in [true, false] {
        let pod = node.pod();
        for (ranges, expected) in &ranges {
            let ipam = json!({"type": "host-local", "ranges": ranges});
            let conf = if own_link { with(&bridge, "ipam", ipam) } else { host_local(&ipam) };
            let result = node.add(&conf, "web", &pod).result();
            let found: Vec<&str> =
                result["ips"].as_array().unwrap().iter().filter_map(|ip| ip["address"].as_str()).collect();
            assert_eq!(found, *expected, "{}", conf["type"]);
            if own_link {
                Rtnl::open().unwrap().delete_link(&IfName::new(host_link("web")).unwrap()).unwrap();
            } else {
                // The node was started anew.
                let path = "/var/lib/cni/networks/.owners/cbr0/web@eth0";
                let mut record: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
                record["boot"] = json!("11111111-2222-3333-4444-555555555555");
                fs::write(path, record.to_string()).unwrap();
            }
        }
        node.del(&with(&bridge, "ipam", json!({"type": "host-local"})), "web", &pod).silent();
        fs::remove_dir_all(DIR).unwrap();
    }
}

/// The network `cbr0` as `host-local` gets it.
fn host_local(ipam: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "host-local", "ipam": ipam});
    conf["ipam"]["type"] = json!("host-local");
    conf
}

fn tiny() -> Value {
    host_local(&json!({"subnet": "10.9.9.0/29"}))
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

fn add(node: &Node, conf: &Value, id: &str) -> Vec<String> {
    addresses(&node.add(conf, id, Path::new("/some/where")).result())
}

fn del(node: &Node, conf: &Value, id: &str) {
    node.verb("DEL", conf, id, "").silent();
}

fn constant_cost(node: &Node) {
    let bridge = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isGateway": true,
                        "ipam": {"type": "host-local", "subnet": "172.7.21.0/24"}});
    let alone = host_local(&json!({"subnet": "172.7.21.0/24"}));
    let mut few: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for count in [0, 250] {
        for conf in [native(), flannel(), bridge.clone(), alone.clone()] {
            let kind = conf["type"].as_str().unwrap().to_owned();
            // The directories and the bridge are there, and so are the reservations of `count` others.
            let first = node.pod();
            node.add(&conf, "first", &first).result();
            node.del(&conf, "first", &first).silent();
            for host in 2..2 + count {
                let id = format!("other{host}");
                fs::write(format!("{DIR}/172.7.21.{host}"), format!("{id}\r\neth0")).unwrap();
                for dir in ["/var/lib/cni/netd/cbr0", "/var/lib/cni/networks/.owners/cbr0"] {
                    fs::create_dir_all(dir).unwrap();
                    fs::write(format!("{dir}/{id}@eth0"), r#"{"boot":"b","addresses":[]}"#).unwrap();
                }
            }
            fs::write(format!("{DIR}/last_reserved_ip.0"), "172.7.21.251").unwrap();
            let pod = node.pod();
            for command in ["ADD", "DEL"] {
                let trace = traced(node, &conf, command, "web-1", pod.to_str().unwrap());
                assert!(!trace.contains("getdents"), "{kind} {command} read a directory: {trace}");
                let calls = trace.lines().filter(|line| !waits(line)).count();
                let fewer = *few.entry((kind.clone(), command)).or_insert(calls);
                // What the process does that DEL leaves behind, and how often DEL verifies that the link is gone, varies.
                assert!(calls <= fewer + 20, "{kind} {command}: {fewer} calls alone, {calls} among {count}");
            }
            let _ = fs::remove_dir_all("/var/lib/cni");
            for bridge in ["cbr0", "cni0"] {
                kernel::Rtnl::open().unwrap().delete_link(&bridge.parse().unwrap()).unwrap();
            }
        }
    }
    assert_eq!(few.len(), 8);
}

/// Calls of a wait for the kernel, and of the process that is left to it.
fn waits(line: &str) -> bool {
    ["sendto", "recvfrom", "nanosleep", "wait4", "exit", "SIGCHLD", "close_range", "setsid"]
        .iter()
        .any(|c| line.contains(c))
}

fn five_hundred(node: &Node) {
    // 500 containers come, every other one goes again while the next ones come.
    const CONTAINERS: usize = 500;
    let conf = host_local(&json!({"subnet": "10.20.0.0/22"}));
    node.plugin("host-local");
    let living: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let next = AtomicUsize::new(0);
    let binary = node.plugin("host-local");
    let run = |command: &str, id: &str| {
        let vars = [("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_NETNS", "/x"), ("CNI_IFNAME", "eth0")];
        crate::node::start_at(&binary, &vars, &conf.to_string()).wait_with_output().unwrap()
    };
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= CONTAINERS {
                return;
            }
            let id = format!("c{number}");
            let output = run("ADD", &id);
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{text}");
            let addr = addresses(&serde_json::from_str(&text).unwrap()).remove(0);
            let other = living.lock().unwrap().insert(addr.clone(), id.clone());
            assert_eq!(other, None, "{addr} belongs to two");
            if number % 2 == 1 {
                // Free to be given again from the moment DEL begins.
                living.lock().unwrap().remove(&addr);
                assert!(run("DEL", &id).status.success());
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(work);
        }
    });
    let on_disk: BTreeMap<String, String> = fs::read_dir(DIR)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().parse::<IpAddr>().is_ok())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    let expected = living.into_inner().unwrap().into_iter().map(|(addr, id)| (addr, format!("{id}\r\neth0"))).collect();
    assert_eq!(on_disk, expected);
    assert_eq!(on_disk.len(), CONTAINERS / 2);
}

fn several_ranges(node: &Node) {
    let conf = host_local(&json!({"ranges": [
        [{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.5"}, {"subnet": "10.2.0.0/30"}, {"subnet": "10.3.0.0/24", "rangeEnd": "10.3.0.2"}],
        [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::10", "rangeEnd": "fd00:1::12"}]]}));
    let order: Vec<String> = (0..3).map(|n| add(node, &conf, &format!("c{n}")).join(" ")).collect();
    assert_eq!(order, ["10.1.0.5 fd00:1::10", "10.1.0.6 fd00:1::11", "10.2.0.2 fd00:1::12"]);
    del(node, &conf, "c0");
    assert_eq!(add(node, &conf, "c4"), ["10.3.0.2", "fd00:1::10"], "each set goes on where it was");
    // The second set is full; what the first gave is free again.
    assert_eq!(node.add(&conf, "c3", Path::new("/x")).error().0, 11);
    assert!(!Path::new(&format!("{DIR}/10.1.0.5")).exists());
    del(node, &conf, "c1");
    assert_eq!(add(node, &conf, "c5"), ["10.1.0.6", "fd00:1::11"], "and round to the first range");
    let result = node.add(&host_local(&json!({"subnet": "10.2.0.0/30"})), "c6", Path::new("/x"));
    assert_eq!(result.error().0, 11, "10.2.0.2 is taken, whichever configuration asks");
}

fn one_set_full(node: &Node) {
    let conf = host_local(
        &json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "10.3.0.0/30"}]]}),
    );
    assert_eq!(add(node, &conf, "c0"), ["10.1.0.2", "10.2.0.2", "10.3.0.2"]);
    let before = node.files();
    let (code, text) = node.add(&conf, "c1", Path::new("/x")).error();
    assert!(code == 11 && text.contains("failed to allocate for range 2"), "{text}");
    assert_eq!(node.files(), before);
    // The same inside a plugin that attaches.
    let ranges = json!([[{"subnet": "10.4.0.0/24"}], [{"subnet": "10.3.0.0/30"}]]);
    let bridge = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "ipam": {"type": "host-local", "ranges": ranges}});
    let links = node.links();
    assert_eq!(node.add(&bridge, "c2", &node.pod()).error().0, 11, "what another plugin was given is no leftover");
    assert_eq!((node.files(), node.links()), (before, links));
    // Until the node is started anew.
    let record = "/var/lib/cni/networks/.owners/cbr0/c0@eth0";
    fs::write(record, r#"{"boot":"another","addresses":["10.1.0.2","10.2.0.2","10.3.0.2"]}"#).unwrap();
    assert_eq!(addresses(&node.add(&bridge, "c2", &node.pod()).result()), ["10.4.0.4", "10.3.0.2"]);
}

fn requested(node: &Node) {
    let runtime = json!({"ips": ["10.3.0.7/24"], "ipRanges": [[{"subnet": "10.3.0.0/24"}]]});
    let ranges = json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]});
    let conf = with(&host_local(&ranges), "runtimeConfig", runtime);
    let conf = with(&conf, "args", json!({"cni": {"ips": ["10.2.0.8"]}}));
    let run = |id: &str, args: &str| {
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
        ];
        node.exec("host-local", &vars, &conf.to_string())
    };
    assert_eq!(addresses(&run("c0", "IP=10.1.0.9").result()), ["10.3.0.7", "10.1.0.9", "10.2.0.8"]);
    let before = node.files();
    for (args, text) in [
        ("", "requested IP address 10.3.0.7 is not available"),
        ("IP=10.3.0.9", "failed to allocate all requested IPs: 10.3.0.7"),
        ("IP=10.7.0.1", "failed to allocate all requested IPs: 10.7.0.1"),
    ] {
        let (code, found) = run("c1", args).error();
        assert!(code == 7 && found.contains(text), "{found} lacks {text}");
        assert_eq!(node.files(), before);
    }
    // Round robin goes on behind a requested address, as in the reference.
    let plain = host_local(&json!({"subnet": "10.3.0.0/24"}));
    assert_eq!(add(node, &plain, "c2"), ["10.3.0.8"]);
    // Inside a plugin that attaches, out of the range the runtime gave.
    let native = with(&native(), "runtimeConfig", json!({"ips": ["172.7.21.77"]}));
    assert_eq!(first_address(&node.add(&native, "c3", &node.pod()).result()).to_string(), "172.7.21.77");
    assert_eq!(node.add(&native, "c4", &node.pod()).error().0, 7);
}

fn clock(node: &Node) {
    let year = Duration::from_secs(365 * 86_400);
    let mut given = Vec::new();
    for (number, time) in [SystemTime::now() + year, SystemTime::UNIX_EPOCH, SystemTime::now()].into_iter().enumerate()
    {
        given.extend(add(node, &tiny(), &format!("c{number}")));
        for dir in [DIR, "/var/lib/cni/networks/.owners/cbr0"] {
            for entry in fs::read_dir(dir).unwrap() {
                File::options().write(true).open(entry.unwrap().path()).unwrap().set_modified(time).unwrap();
            }
        }
    }
    del(node, &tiny(), "c0");
    given.extend(add(node, &tiny(), "c3"));
    assert_eq!(given, ["10.9.9.2", "10.9.9.3", "10.9.9.4", "10.9.9.5"]);
    assert_eq!(add(node, &tiny(), "c4"), ["10.9.9.6"]);
    assert_eq!(add(node, &tiny(), "c5"), ["10.9.9.2"]);
    assert_eq!(node.add(&tiny(), "c6", Path::new("/x")).error().0, 11, "old files are no leftovers");
}

fn planted_links(node: &Node) {
    fs::create_dir_all(DIR).unwrap();
    let outside = Path::new("/run/outside");
    let plant = |name: &str| {
        fs::write(outside, "victim\r\neth0").unwrap();
        let path = format!("{DIR}/{name}");
        let _ = fs::remove_file(&path);
        symlink(outside, path).unwrap();
    };
    let untouched = || assert_eq!(fs::read_to_string(outside).unwrap(), "victim\r\neth0");
    // As reservation: taken, and nobody's to release.
    plant("10.9.9.2");
    assert_eq!(add(node, &tiny(), "c0"), ["10.9.9.3"]);
    del(node, &tiny(), "victim");
    untouched();
    assert!(fs::symlink_metadata(format!("{DIR}/10.9.9.2")).unwrap().is_symlink());
    // As memory of the last address.
    plant("last_reserved_ip.0");
    assert_eq!(add(node, &tiny(), "c1"), ["10.9.9.4"]);
    untouched();
    assert_eq!(fs::read_to_string(format!("{DIR}/last_reserved_ip.0")).unwrap(), "10.9.9.4");
    // As lock, to a file and to nowhere.
    plant("lock");
    let (code, text) = node.add(&tiny(), "c2", Path::new("/x")).error();
    assert!(code == 5 && text.contains("/lock"), "{text}");
    untouched();
    fs::remove_file(outside).unwrap();
    assert_eq!(node.add(&tiny(), "c2", Path::new("/x")).error().0, 5);
    assert!(!outside.exists(), "nothing is made through a link");
    fs::remove_file(format!("{DIR}/lock")).unwrap();
    // As record of the owner.
    fs::write(outside, "precious").unwrap();
    symlink(outside, "/var/lib/cni/networks/.owners/cbr0/c3@eth0").unwrap();
    assert_eq!(node.add(&tiny(), "c3", Path::new("/x")).error().0, 5);
    assert_eq!(fs::read_to_string(outside).unwrap(), "precious");
    // As the network's directory.
    let elsewhere = "/var/lib/elsewhere";
    fs::rename(DIR, elsewhere).unwrap();
    symlink(elsewhere, DIR).unwrap();
    let before = fs::read_dir(elsewhere).unwrap().count();
    assert_eq!(node.add(&tiny(), "c4", Path::new("/x")).error().0, 5);
    assert_eq!(fs::read_dir(elsewhere).unwrap().count(), before);
}

fn junk(node: &Node) {
    fs::create_dir_all(format!("{DIR}/10.9.9.4")).unwrap();
    fs::write(format!("{DIR}/10.9.9.2"), "").unwrap();
    fs::write(format!("{DIR}/10.9.9.3"), [0xff, 0xfe, 0x00]).unwrap();
    nix::unistd::mkfifo(Path::new(&format!("{DIR}/10.9.9.5")), Mode::S_IRWXU).unwrap();
    for (number, last) in [&b""[..], b"10.9.9", b"\0\0\0\0", &[0xff; 200], b"10.9.9.300\n"].iter().enumerate() {
        fs::write(format!("{DIR}/last_reserved_ip.0"), last).unwrap();
        let id = format!("c{number}");
        let given = add(node, &tiny(), &id);
        assert_eq!(given, ["10.9.9.2"], "a search from the range's start, for {last:?}");
        assert_eq!(
            fs::read_to_string(format!("{DIR}/last_reserved_ip.0")).unwrap(),
            "10.9.9.2",
            "nothing of {last:?} is left"
        );
        assert_eq!(fs::read_to_string(format!("{DIR}/10.9.9.2")).unwrap(), format!("{id}\r\neth0"));
        del(node, &tiny(), &id);
    }
    // What cannot be read as an owner is passed over, and the walk goes on to what is free.
    assert_eq!(add(node, &tiny(), "c6"), ["10.9.9.6"]);
    assert_eq!(add(node, &tiny(), "c7"), ["10.9.9.2"]);
    assert_eq!(add(node, &tiny(), "c8"), ["10.9.9.3"], "the range is full: what no owner can have written is free");
    assert_eq!(add(node, &tiny(), "c9"), ["10.9.9.5"]);
    assert_eq!(node.add(&tiny(), "c10", Path::new("/x")).error().0, 11);
    assert!(Path::new(&format!("{DIR}/10.9.9.4")).is_dir());
}

fn read_only(node: &Node) {
    add(node, &tiny(), "c0");
    let before = node.files();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/var/lib", None::<&str>, flags, None::<&str>).unwrap();
    for (command, id) in [("ADD", "c1"), ("ADD", "c0"), ("DEL", "c0")] {
        let (code, text) = node.verb(command, &tiny(), id, "/some/where").error();
        assert!(code == 5, "{command} {id}: {text}");
        let lower = text.to_lowercase();
        assert!(!lower.contains("not found") && !lower.contains("no such file"), "{text}");
    }
    assert_eq!(node.files(), before);
    let conf = with(&tiny(), "cniVersion", json!("1.1.0"));
    let status = || node.exec("host-local", &[("CNI_COMMAND", "STATUS")], &conf.to_string());
    let (code, text) = status().error();
    assert!(code == 50 && text.contains(DIR) && text.contains("Read-only file system"), "{text}");
    mount(None::<&str>, "/var/lib", None::<&str>, MsFlags::MS_REMOUNT, None::<&str>).unwrap();
    status().silent();
    assert_eq!(add(node, &tiny(), "c1"), ["10.9.9.3"]);
    del(node, &tiny(), "c0");
    del(node, &tiny(), "c1");
    assert_eq!(node.files(), []);
    mount(Some("full"), "/var/lib/cni", Some("tmpfs"), MsFlags::empty(), Some("size=4k")).unwrap();
    fs::write("/var/lib/cni/other", [b'x'; 4096]).unwrap();
    let (code, text) = status().error();
    assert!(code == 50 && text.contains("No space left on device"), "{text}");
}
