//! The name `host-local`, as other plugins execute it: the reference's black-box tests over all versions, what it does
//! beyond the reference, and Debian's bridge plugin delegating to it.
//!
//! No namespace exists in most of these tests: the path is `/some/where`, as in the reference's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::crash::{Walk, used};
use crate::node::{Node, Outcome, first_address, inside, with};
use crate::predecessor::debians;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("host_local_allocates_and_releases_addresses_with_add_and_del", allocates_and_releases),
    ("host_local_allocates_and_releases_on_a_specific_interface", specific_interface),
    ("host_local_repeated_allocation_with_the_same_container_id_is_refused", repeated),
    ("host_local_del_works_on_files_of_before_0_7", backwards_compatible),
    ("host_local_does_not_error_on_del_of_an_unknown_id", unknown_id),
    ("host_local_ignores_whitespace_in_disk_files", whitespace),
    ("host_local_says_nothing_on_stderr_when_the_subnet_is_new", no_stderr),
    ("host_local_allocates_a_custom_ip_when_requested_by_config_args", custom_ip),
    ("host_local_allocates_custom_ips_from_multiple_ranges", custom_ips_of_ranges),
    ("host_local_allocates_custom_ips_from_multiple_protocols", custom_ips_of_protocols),
    ("host_local_fails_if_a_requested_custom_ip_is_not_used", unused_custom_ip),
    ("host_local_missing_resolv_conf_fails_before_anything_is_reserved", no_resolver),
    ("host_local_check_reports_a_missing_address_in_the_references_words", check),
    ("host_local_del_needs_no_valid_range", del_without_range),
    ("host_local_status_reports_an_exhausted_range", status),
    ("host_local_status_counts_on_what_a_reboot_left", status_after_reboot),
    ("host_local_gc_keeps_the_listed_and_touches_this_network_only", gc),
    ("host_local_reclaims_of_an_earlier_boot_only", earlier_boot),
    ("host_local_add_that_was_killed_is_repeated_with_the_same_address", killed_add),
    ("host_local_add_killed_after_any_step_is_undone_by_del", killed_add_then_del),
    ("host_local_add_killed_after_any_step_is_undone_by_gc", killed_add_then_gc),
    ("host_local_add_killed_after_any_step_may_be_repeated", killed_add_then_add),
    ("host_local_del_killed_after_any_step_is_finished_by_del", killed_del_then_del),
    ("host_local_del_killed_after_any_step_is_finished_by_gc", killed_del_then_gc),
    ("host_local_finds_the_reservations_of_the_stock_plugin_and_loses_its_own_record_gracefully", stale_record),
];

/// Tests with Debian's plugins.
pub(crate) const PREDECESSOR_TESTS: &[Test] = &[
    ("debians_bridge_delegates_to_our_host_local", debians_bridge),
    ("debians_macvlan_delegates_to_our_host_local", debians_macvlan),
    ("our_host_local_and_debians_never_give_one_address_twice", side_by_side),
];

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// True for versions whose results hold lists.
fn has_lists(version: &str) -> bool {
    version > "0.2.0"
}

/// A network named after the test and the version, with its own data directory.
fn conf(version: &str, name: &str, ipam: &Value) -> Value {
    let mut conf = json!({"cniVersion": version, "name": name, "type": "ipvlan", "master": "foo0", "ipam": ipam});
    conf["ipam"]["type"] = json!("host-local");
    conf["ipam"]["dataDir"] = json!(data_dir(version));
    conf
}

fn data_dir(version: &str) -> String {
    format!("/var/lib/test/{version}")
}

fn dual(version: &str, name: &str) -> Value {
    conf(
        version,
        name,
        &json!({
            "resolvConf": "/run/resolv.conf",
            "ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}], [{"subnet": "2001:db8:1::0/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1"},
                       {"dst": "2001:db8:2::0/64", "gw": "2001:db8:3::1"}],
        }),
    )
}

fn run(node: &Node, command: &str, conf: &Value, id: &str, ifname: &str, args: &str) -> Outcome {
    let vars = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", "/some/where"),
        ("CNI_IFNAME", ifname),
        ("CNI_ARGS", args),
        ("CNI_PATH", "/run/bin"),
    ];
    node.exec("host-local", &vars, &conf.to_string())
}

fn add(node: &Node, conf: &Value, id: &str) -> Value {
    run(node, "ADD", conf, id, "eth0", "").result()
}

fn del(node: &Node, conf: &Value, id: &str) {
    run(node, "DEL", conf, id, "eth0", "").silent();
}

/// Addresses of a result of any version, with their gateways.
fn addresses(result: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let one = |ip: &Value, key: &str| format!("{} via {}", text(&ip[key]), text(&ip["gateway"]));
    match result["ips"].as_array() {
        Some(ips) => ips.iter().map(|ip| one(ip, "address")).collect(),
        None => ["ip4", "ip6"].iter().map(|f| &result[*f]).filter(|f| !f.is_null()).map(|f| one(f, "ip")).collect(),
    }
}

fn read(version: &str, name: &str, file: &str) -> String {
    fs::read_to_string(format!("{}/{name}/{file}", data_dir(version))).unwrap()
}

/// Reserved addresses of a network on disk.
fn reserved(version: &str, name: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("{}/{name}", data_dir(version))).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
    names.sort();
    names
}

fn allocates_and_releases(node: &Node) {
    fs::write("/run/resolv.conf", "nameserver 192.0.2.3").unwrap();
    for version in VERSIONS {
        let conf = dual(version, "mynet");
        let result = add(node, &conf, "dummy");
        assert_eq!(result["cniVersion"], json!(version));
        assert!(result.get("interfaces").is_none(), "{result}");
        let expected = ["10.1.2.2/24 via 10.1.2.1", "2001:db8:1::2/64 via 2001:db8:1::1"];
        assert_eq!(addresses(&result), expected, "{version}");
        assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.3"]}), "{version}");
        let marked = result.to_string().matches("\"version\":").count();
        assert_eq!(marked, if has_lists(version) && version < "1.0.0" { 2 } else { 0 }, "{version}");
        if has_lists(version) {
            let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1"},
                                {"dst": "2001:db8:2::/64", "gw": "2001:db8:3::1"}]);
            assert_eq!(result["routes"], routes, "{version}");
            assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip.get("interface").is_none()), "{result}");
        } else {
            assert_eq!(
                result["ip4"]["routes"],
                json!([{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1"}])
            );
        }
        for file in ["10.1.2.2", "2001:db8:1::2"] {
            assert_eq!(read(version, "mynet", file), "dummy\r\neth0");
        }
        assert_eq!(read(version, "mynet", "last_reserved_ip.0"), "10.1.2.2");
        assert_eq!(read(version, "mynet", "last_reserved_ip.1"), "2001:db8:1::2");
        del(node, &conf, "dummy");
        assert_eq!(reserved(version, "mynet"), Vec::<String>::new());
        assert_eq!(fs::read_dir(format!("{}/.owners/mynet", data_dir(version))).unwrap().count(), 0);
    }
}

fn specific_interface(node: &Node) {
    for version in VERSIONS {
        let first = conf(version, "mynet0", &json!({"subnet": "10.1.2.0/24"}));
        let second = conf(version, "mynet1", &json!({"subnet": "10.2.2.0/24"}));
        for (conf, ifname, address) in [(&first, "eth0", "10.1.2.2/24"), (&second, "eth1", "10.2.2.2/24")] {
            let result = run(node, "ADD", conf, "dummy", ifname, "").result();
            assert!(addresses(&result)[0].starts_with(address), "{result}");
        }
        assert_eq!(read(version, "mynet0", "10.1.2.2"), "dummy\r\neth0");
        assert_eq!(read(version, "mynet1", "10.2.2.2"), "dummy\r\neth1");
        run(node, "DEL", &first, "dummy", "eth0", "").silent();
        assert_eq!(reserved(version, "mynet0"), Vec::<String>::new());
        assert_eq!(reserved(version, "mynet1"), ["10.2.2.2"]);
        run(node, "DEL", &second, "dummy", "eth1", "").silent();
        assert_eq!(reserved(version, "mynet1"), Vec::<String>::new());
    }
}

fn repeated(node: &Node) {
    for version in VERSIONS {
        let conf = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        assert_eq!(addresses(&add(node, &conf, "dummy")), ["10.1.2.2/24 via 10.1.2.1"]);
        let (code, text) = run(node, "ADD", &conf, "dummy", "eth0", "").error();
        assert!(code == 101 && text.contains("duplicate allocation is not allowed"), "{text}");
        assert_eq!(addresses(&add(node, &conf, "dummy1")), ["10.1.2.3/24 via 10.1.2.1"]);
        assert_eq!(read(version, "mynet", "10.1.2.2"), "dummy\r\neth0");
        assert_eq!(read(version, "mynet", "10.1.2.3"), "dummy1\r\neth0");
        assert_eq!(read(version, "mynet", "last_reserved_ip.0"), "10.1.2.3");
        del(node, &conf, "dummy");
        assert_eq!(reserved(version, "mynet"), ["10.1.2.3"]);
        del(node, &conf, "dummy1");
        assert_eq!(reserved(version, "mynet"), Vec::<String>::new());
    }
}

/// Writes reservations as another host-local leaves them.
fn plant(version: &str, name: &str, reservations: &[(&str, &str)]) {
    let dir = format!("{}/{name}", data_dir(version));
    fs::create_dir_all(&dir).unwrap();
    for (addr, text) in reservations {
        fs::write(format!("{dir}/{addr}"), text).unwrap();
    }
}

fn backwards_compatible(node: &Node) {
    for version in VERSIONS {
        let conf = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        plant(version, "mynet", &[("10.1.2.2", "dummy"), ("10.1.2.3", "other")]);
        del(node, &conf, "dummy");
        assert_eq!(reserved(version, "mynet"), ["10.1.2.3"]);
    }
}

fn unknown_id(node: &Node) {
    for version in VERSIONS {
        let conf = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        del(node, &conf, "dummy");
        assert!(!Path::new(&data_dir(version)).exists(), "DEL of nothing makes no directories");
        plant(version, "mynet", &[("10.1.2.3", "other\r\neth0")]);
        del(node, &conf, "dummy");
        assert_eq!(reserved(version, "mynet"), ["10.1.2.3"]);
    }
}

fn whitespace(node: &Node) {
    for version in VERSIONS {
        let conf = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        plant(version, "mynet", &[("10.1.2.2", "   dummy\r\neth0\n "), ("10.1.2.3", "   dummy\n ")]);
        del(node, &conf, "dummy");
        assert_eq!(reserved(version, "mynet"), ["10.1.2.3"], "the exact owner first");
        del(node, &conf, "dummy");
        assert_eq!(reserved(version, "mynet"), Vec::<String>::new());
    }
}

fn no_stderr(node: &Node) {
    for version in VERSIONS {
        // `Outcome` insists on an empty standard error.
        add(node, &conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"})), "dummy");
    }
}

fn custom_ip(node: &Node) {
    for version in VERSIONS {
        let conf = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        let result = run(node, "ADD", &conf, "dummy", "eth0", "IP=10.1.2.88").result();
        assert_eq!(addresses(&result), ["10.1.2.88/24 via 10.1.2.1"]);
        // The same from the configuration, with a prefix, and from the runtime.
        let conventional = with(&conf, "args", json!({"cni": {"ips": ["10.1.2.89/24"], "labels": []}}));
        assert_eq!(addresses(&add(node, &conventional, "dummy1")), ["10.1.2.89/24 via 10.1.2.1"]);
        let capable = with(&conf, "runtimeConfig", json!({"ips": ["10.1.2.90"], "portMappings": [{"hostPort": 1}]}));
        assert_eq!(addresses(&add(node, &capable, "dummy2")), ["10.1.2.90/24 via 10.1.2.1"]);
        let (_, text) = run(node, "ADD", &conf, "dummy3", "eth0", "IP=10.1.2.88").error();
        assert!(
            text.contains("requested IP address 10.1.2.88 is not available in range set 10.1.2.1-10.1.2.254"),
            "{text}"
        );
        let (_, text) = run(node, "ADD", &conf, "dummy3", "eth0", "IP=10.1.2.1").error();
        assert!(text.contains("10.1.2.1 is a gateway"), "{text}");
        assert_eq!(reserved(version, "mynet"), ["10.1.2.88", "10.1.2.89", "10.1.2.90"], "refused ADDs leave nothing");
        assert_eq!(fs::read_dir(format!("{}/.owners/mynet", data_dir(version))).unwrap().count(), 3);
    }
}

fn custom_ips_of_ranges(node: &Node) {
    for version in VERSIONS {
        let conf =
            conf(version, "mynet", &json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}));
        let conf = with(&conf, "args", json!({"cni": {"ips": ["10.1.2.88", "10.1.3.77"]}}));
        let outcome = run(node, "ADD", &conf, "dummy", "eth0", "");
        if has_lists(version) {
            assert_eq!(addresses(&outcome.result()), ["10.1.2.88/24 via 10.1.2.1", "10.1.3.77/24 via 10.1.3.1"]);
        } else {
            let text = format!("CNI version {version} does not support more than 1 address per family");
            assert!(outcome.error().1.starts_with(&text), "{outcome:?}");
        }
    }
}

fn custom_ips_of_protocols(node: &Node) {
    for version in VERSIONS {
        let ranges = json!({"ranges": [[{"subnet": "172.16.1.0/24"}], [{"subnet": "2001:db8:1::/48"}]]});
        let conf = conf(version, "mynet", &ranges);
        let conf = with(&conf, "args", json!({"cni": {"ips": ["172.16.1.99", "2001:db8:1::999"]}}));
        let expected = ["172.16.1.99/24 via 172.16.1.1", "2001:db8:1::999/48 via 2001:db8:1::1"];
        assert_eq!(addresses(&add(node, &conf, "dummy")), expected);
    }
}

fn no_resolver(node: &Node) {
    let conf = conf("1.0.0", "mynet", &json!({"subnet": "10.1.2.0/24", "resolvConf": "/run/never-there"}));
    let (code, text) = run(node, "ADD", &conf, "dummy", "eth0", "").error();
    assert!(code == 5 && text.contains("/run/never-there"), "{text}");
    assert!(!Path::new(&data_dir("1.0.0")).exists(), "nothing was touched");
    del(node, &conf, "dummy");
}

fn unused_custom_ip(node: &Node) {
    for version in VERSIONS.into_iter().filter(|version| has_lists(version)) {
        let conf =
            conf(version, "mynet", &json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}));
        let conf = with(&conf, "args", json!({"cni": {"ips": ["10.1.2.88", "10.1.2.77"]}}));
        let (_, text) = run(node, "ADD", &conf, "dummy", "eth0", "").error();
        assert!(text.starts_with("failed to allocate all requested IPs: 10.1.2."), "{text}");
        assert_eq!(reserved(version, "mynet"), Vec::<String>::new());
    }
}

fn check(node: &Node) {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let conf = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        let result = add(node, &conf, "dummy");
        let conf = with(&conf, "prevResult", result);
        run(node, "CHECK", &conf, "dummy", "eth0", "").silent();
        let (code, text) = run(node, "CHECK", &conf, "other", "eth0", "").error();
        assert!(
            code == 102 && text.starts_with("host-local: Failed to find address added by container other"),
            "{text}"
        );
        fs::remove_file(format!("{}/mynet/10.1.2.2", data_dir(version))).unwrap();
        assert_eq!(run(node, "CHECK", &conf, "dummy", "eth0", "").error().0, 102);
    }
}

fn del_without_range(node: &Node) {
    for version in VERSIONS {
        let good = conf(version, "mynet", &json!({"subnet": "10.1.2.0/24"}));
        let broken = [json!({"subnet": "junk"}), json!({"ranges": 7}), json!({"ranges": []}), json!({"unknown": 1})];
        for (number, ipam) in broken.iter().enumerate() {
            let id = format!("dummy{number}");
            add(node, &good, &id);
            del(node, &conf(version, "mynet", ipam), &id);
            assert_eq!(reserved(version, "mynet"), Vec::<String>::new(), "{ipam}");
        }
    }
}

/// A network with four addresses.
fn tiny() -> Value {
    conf("1.1.0", "mynet", &json!({"subnet": "10.9.9.0/29", "rangeStart": "10.9.9.2", "rangeEnd": "10.9.9.5"}))
}

fn status(node: &Node) {
    let run = |conf: &Value| node.exec("host-local", &[("CNI_COMMAND", "STATUS")], &conf.to_string());
    run(&tiny()).silent();
    assert!(!Path::new(&data_dir("1.1.0")).exists(), "STATUS makes nothing");
    for number in 0..4 {
        run(&tiny()).silent();
        add(node, &tiny(), &format!("dummy{number}"));
    }
    let (code, text) = self::run(node, "ADD", &tiny(), "late", "eth0", "").error();
    let expected = "failed to allocate for range 0: no IP addresses available in range set: 10.9.9.2-10.9.9.5";
    assert!(code == 11 && text.starts_with(expected), "{text}");
    // A range that is full for a moment does not take the node out of service.
    run(&tiny()).silent();
    let last = format!("{}/mynet/last_reserved_ip.0", data_dir("1.1.0"));
    let a_minute_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(last).unwrap().set_modified(a_minute_ago).unwrap();
    let (code, text) = run(&tiny()).error();
    assert!(code == 50 && text.contains("all 4 IP addresses of range set 10.9.9.2-10.9.9.5 are taken"), "{text}");
    del(node, &tiny(), "dummy2");
    run(&tiny()).silent();
    assert_eq!(run(&with(&tiny(), "ipam", json!({"subnet": "junk"}))).error().0, 50);
}

fn gc(node: &Node) {
    let gc = |conf: &Value| node.exec("host-local", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    let other = conf("1.1.0", "other", &json!({"subnet": "10.8.8.0/24"}));
    add(node, &other, "dummy");
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        add(node, &tiny(), "alive");
        add(node, &tiny(), "dead");
        // Of the stock plugin, of before 0.7, and of nobody.
        let (old, gone) = ("a7".repeat(32), "3f".repeat(32));
        let planted = [("100", "dead2\r\neth0"), ("101", &*old), ("102", "\0\0"), ("103", &*gone), ("104", "reserved")];
        for (last, text) in planted {
            plant("1.1.0", "mynet", &[(&format!("10.9.9.{last}"), text)]);
        }
        let keep = json!([{"containerID": "alive", "ifname": "eth0"}, {"containerID": old, "ifname": "eth0"}]);
        gc(&with(&tiny(), key, keep));
        assert_eq!(reserved("1.1.0", "mynet").len(), 3, "{:?}", reserved("1.1.0", "mynet"));
        del(node, &tiny(), "alive");
        del(node, &tiny(), &old);
        assert_eq!(reserved("1.1.0", "mynet"), ["10.9.9.104"], "an operator's own");
        fs::remove_file(format!("{}/mynet/10.9.9.104", data_dir("1.1.0"))).unwrap();
        assert_eq!(reserved("1.1.0", "mynet"), Vec::<String>::new());
    }
    add(node, &tiny(), "alive");
    gc(&tiny());
    assert_eq!(reserved("1.1.0", "mynet"), Vec::<String>::new(), "no list: nothing is valid");
    assert_eq!(fs::read_dir(format!("{}/.owners/mynet", data_dir("1.1.0"))).unwrap().count(), 0);
    assert_eq!(reserved("1.1.0", "other"), ["10.8.8.2"]);
}

/// Turns the record of `id` into one of an earlier boot.
fn age(id: &str) {
    let path = format!("{}/.owners/mynet/{id}@eth0", data_dir("1.1.0"));
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    record["boot"] = json!("11111111-2222-3333-4444-555555555555");
    fs::write(path, record.to_string()).unwrap();
}

fn earlier_boot(node: &Node) {
    add(node, &tiny(), "alive");
    add(node, &tiny(), "rebooted");
    // Of the stock plugin: alive or dead, nobody knows. And an address that the administrator has blocked.
    plant("1.1.0", "mynet", &[("10.9.9.4", "theirs\r\neth0"), ("10.9.9.5", "keep off, printer")]);
    assert_eq!(run(node, "ADD", &tiny(), "late", "eth0", "").error().0, 11);
    age("rebooted");
    assert_eq!(first_address(&add(node, &tiny(), "late")).to_string(), "10.9.9.3");
    assert_eq!(run(node, "ADD", &tiny(), "later", "eth0", "").error().0, 11);
    assert_eq!(reserved("1.1.0", "mynet").len(), 4);
    // A container that is started again after a reboot, without a DEL, gets its address back.
    age("late");
    assert_eq!(first_address(&add(node, &tiny(), "late")).to_string(), "10.9.9.3");
    // Both addresses of a dual-stack owner go at once.
    let dual = |id: &str| {
        let ranges = json!({"ranges": [[{"subnet": "10.9.9.0/30"}], [{"subnet": "fd00::/126"}]]});
        run(node, "ADD", &conf("1.1.0", "mynet", &ranges), id, "eth0", "")
    };
    fs::remove_dir_all(data_dir("1.1.0")).unwrap();
    dual("one").result();
    plant("1.1.0", "mynet", &[("fd00::3", "x\r\neth0")]);
    assert_eq!(dual("two").error().0, 11);
    age("one");
    assert_eq!(addresses(&dual("two").result()), ["10.9.9.2/30 via 10.9.9.1", "fd00::2/126 via fd00::1"]);
    assert_eq!(fs::read_dir(format!("{}/.owners/mynet", data_dir("1.1.0"))).unwrap().count(), 1);
}

fn status_after_reboot(node: &Node) {
    let status = || node.exec("host-local", &[("CNI_COMMAND", "STATUS")], &tiny().to_string());
    for number in 0..4 {
        add(node, &tiny(), &format!("dummy{number}"));
    }
    let last = format!("{}/mynet/last_reserved_ip.0", data_dir("1.1.0"));
    let a_minute_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(last).unwrap().set_modified(a_minute_ago).unwrap();
    assert_eq!(status().error().0, 50);
    age("dummy1");
    status().silent();
    assert_eq!(reserved("1.1.0", "mynet").len(), 4, "STATUS changes nothing");
    assert_eq!(first_address(&add(node, &tiny(), "next")).to_string(), "10.9.9.3");
}

fn killed_add(node: &Node) {
    // Killed between the reservation and the record: the record is there and empty.
    add(node, &tiny(), "victim");
    fs::write(format!("{}/.owners/mynet/victim@eth0", data_dir("1.1.0")), "").unwrap();
    assert_eq!(first_address(&add(node, &tiny(), "victim")).to_string(), "10.9.9.2");
    assert_eq!(run(node, "ADD", &tiny(), "victim", "eth0", "").error().0, 101);
    fs::write(format!("{}/.owners/mynet/victim@eth0", data_dir("1.1.0")), "").unwrap();
    del(node, &tiny(), "victim");
    assert_eq!(reserved("1.1.0", "mynet"), Vec::<String>::new());
}

/// A dual-stack network of the usual data directory, for the walks.
pub(crate) fn walked() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "host-local",
           "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.9.0/24"}], [{"subnet": "fd09::/64"}]]}})
}

fn walk(node: &Node, command: &'static str, finish: impl Fn(&Path)) {
    let conf = walked();
    used(node, &conf);
    let add_before_del = |pod: &Path| {
        if command == "DEL" {
            node.add(&conf, "victim", pod).result();
        }
        None
    };
    Walk { node, command, conf: &conf }.run(add_before_del, finish);
}

fn killed_add_then_del(node: &Node) {
    walk(node, "ADD", |pod| node.del(&walked(), "victim", pod).silent());
}

fn killed_add_then_gc(node: &Node) {
    walk(node, "ADD", |_| crate::crash::gc(node, &walked(), &[]));
}

fn killed_add_then_add(node: &Node) {
    walk(node, "ADD", |pod| {
        let outcome = node.add(&walked(), "victim", pod);
        if !outcome.ok {
            let (code, text) = outcome.error();
            assert!(code == 101 && text.contains("duplicate allocation"), "only a whole ADD is in the way: {text}");
        }
        assert_eq!(node.files().len(), 3, "one address of each family and the record: {:?}", node.files());
        node.del(&walked(), "victim", pod).silent();
    });
}

fn killed_del_then_del(node: &Node) {
    walk(node, "DEL", |pod| node.del(&walked(), "victim", pod).silent());
}

fn killed_del_then_gc(node: &Node) {
    walk(node, "DEL", |_| crate::crash::gc(node, &walked(), &[]));
}

fn stale_record(node: &Node) {
    add(node, &tiny(), "dummy");
    // The stock plugin released it, and gave the same container another address.
    fs::remove_file(format!("{}/mynet/10.9.9.2", data_dir("1.1.0"))).unwrap();
    plant("1.1.0", "mynet", &[("10.9.9.5", "dummy\r\neth0"), ("10.9.9.2", "other\r\neth0")]);
    run(node, "CHECK", &with(&tiny(), "prevResult", json!({})), "dummy", "eth0", "").silent();
    assert_eq!(run(node, "ADD", &tiny(), "dummy", "eth0", "").error().0, 101);
    del(node, &tiny(), "dummy");
    assert_eq!(reserved("1.1.0", "mynet"), ["10.9.9.2"], "another's address stays");
    assert_eq!(fs::read_dir(format!("{}/.owners/mynet", data_dir("1.1.0"))).unwrap().count(), 0);
}

fn debians_bridge(node: &Node) {
    node.plugin("host-local");
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let conf = json!({"cniVersion": version, "name": "mynet", "type": "bridge", "bridge": "br7", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.7.0/24"}], [{"subnet": "fd07::/64"}]],
                     "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}], "dataDir": data_dir(version)}});
        let pod = node.pod();
        let netns = pod.to_str().unwrap();
        let result = debians("bridge", "ADD", &conf, "web-1", netns, "/run/bin");
        assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
        assert_eq!(reserved(version, "mynet"), ["10.7.7.2", "fd07::2"]);
        let inside = inside(&pod, || {
            let mut pod = kernel::Rtnl::open().unwrap();
            let index = pod.link(&"eth0".parse().unwrap()).unwrap().unwrap().index;
            (pod.addresses_of(index).unwrap(), pod.routes().unwrap())
        });
        for addr in ["10.7.7.2", "fd07::2"] {
            assert!(inside.0.iter().any(|(found, _)| found.to_string() == addr), "{inside:?}");
        }
        assert_eq!(inside.1.iter().filter(|(key, _)| key.dst.is_default()).count(), 2, "{inside:?}");
        if version >= "0.4.0" {
            debians("bridge", "CHECK", &with(&conf, "prevResult", result.clone()), "web-1", netns, "/run/bin");
        }
        debians("bridge", "DEL", &with(&conf, "prevResult", result), "web-1", netns, "/run/bin");
        assert_eq!(reserved(version, "mynet"), Vec::<String>::new());
    }
}

fn debians_macvlan(node: &Node) {
    node.plugin("host-local");
    let ip =
        |args: &str| assert!(Command::new("ip").args(args.split_whitespace()).status().unwrap().success(), "{args}");
    ip("link add up0 type veth peer name up1");
    ip("link set up0 up");
    let conf = json!({"cniVersion": "1.0.0", "name": "mynet", "type": "macvlan", "master": "up0", "mode": "bridge",
        "runtimeConfig": {"ips": ["10.6.6.9/24"]},
        "ipam": {"type": "host-local", "subnet": "10.6.6.0/24", "routes": [{"dst": "0.0.0.0/0"}], "dataDir": data_dir("1.0.0")}});
    let pod = node.pod();
    let netns = pod.to_str().unwrap();
    let result = debians("macvlan", "ADD", &conf, "web-1", netns, "/run/bin");
    assert_eq!(first_address(&result).to_string(), "10.6.6.9");
    assert_eq!(reserved("1.0.0", "mynet"), ["10.6.6.9"]);
    debians("macvlan", "CHECK", &with(&conf, "prevResult", result.clone()), "web-1", netns, "/run/bin");
    // A full range is reported to the plugin that asked, in its own words, and its ADD leaves nothing reserved.
    let dir = format!("{}/mynet", data_dir("1.0.0"));
    (2..=254).for_each(|host| drop(fs::write(format!("{dir}/10.6.6.{host}"), "theirs\r\neth0")));
    let mut full = conf.clone();
    full.as_object_mut().unwrap().remove("runtimeConfig");
    fs::write("/run/stdin", full.to_string()).unwrap();
    let late = node.pod();
    let output = Command::new("/usr/lib/cni/macvlan")
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "late"), ("CNI_NETNS", late.to_str().unwrap())])
        .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/run/bin")])
        .stdin(Stdio::from(fs::File::open("/run/stdin").unwrap()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("no IP addresses available in range set"), "{text}");
    fs::write(format!("{dir}/10.6.6.9"), "web-1\r\neth0").unwrap();
    debians("macvlan", "DEL", &with(&conf, "prevResult", result), "web-1", netns, "/run/bin");
    assert!(!reserved("1.0.0", "mynet").contains(&"10.6.6.9".to_owned()));
}

fn side_by_side(node: &Node) {
    let conf = conf("1.0.0", "mynet", &json!({"subnet": "10.7.7.0/24"}));
    let theirs = |command: &str, id: &str| debians("host-local", command, &conf, id, "/some/where", "/usr/lib/cni");
    let mut given = BTreeSet::new();
    for number in 0..6 {
        given.insert(first_address(&theirs("ADD", &format!("theirs-{number}"))));
        given.insert(first_address(&add(node, &conf, &format!("ours-{number}"))));
    }
    assert_eq!(given.len(), 12, "{given:?}");
    // Each releases what the other gave.
    for number in 0..6 {
        theirs("DEL", &format!("ours-{number}"));
        del(node, &conf, &format!("theirs-{number}"));
    }
    assert_eq!(reserved("1.0.0", "mynet"), Vec::<String>::new());
    assert_eq!(first_address(&add(node, &conf, "ours-0")).to_string(), "10.7.7.14", "the circle goes on");
}
