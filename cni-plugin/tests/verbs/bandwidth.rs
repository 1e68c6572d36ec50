//! BandwidthConf of a Pod's traffic: the name `bandwidth` behind Debian's bridge and behind our own plugins, and the native
//! configuration. What the kernel got is read by tc; that it limits is measured with bytes.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cni_plugin::{ContainerId, ifb_name};
use kernel::Rtnl;
use netstate::{MacAddr, TokenBucket};
use serde_json::{Value, json};

use crate::crash::{Walk, used};
use crate::node::{Node, Outcome, flannel, host_link, inside, native, with};
use crate::predecessor::debians;
use crate::security::{ENOUGH, with_capabilities};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("bandwidth_echoes_the_previous_result_and_appends_the_ifb", echo),
    ("bandwidth_without_limits_changes_nothing", nothing_to_limit),
    ("bandwidth_needs_a_previous_result_that_lists_the_veth", needs_previous_result),
    ("bandwidth_speaks_from_0_3_0_on", versions),
    ("bandwidth_add_twice_is_an_error_and_keeps_the_first", twice),
    ("bandwidth_add_that_fails_undoes_everything", failed_add),
    ("bandwidth_check_reports_every_damage", check),
    ("bandwidth_del_needs_neither_namespace_nor_previous_result", del),
    ("bandwidth_gc_removes_the_ifbs_of_this_network_only", gc),
    ("static_limits_win_over_those_of_the_runtime", static_wins),
    ("bursts_that_containerd_and_crio_send_are_honoured", runtime_bursts),
    ("native_and_flannel_pods_are_limited_in_one_step", native_limits),
    ("shipped_conflist_has_the_runtime_hand_limits_on", shipped),
    ("native_gc_and_exhaustion_remove_the_ifb_of_a_dead_pod", native_dead),
    ("native_add_after_a_killed_add_has_its_limits", native_killed),
    ("limited_add_killed_after_any_step_is_undone_by_del", native_killed_del),
    ("limited_add_killed_after_any_step_is_undone_by_gc", native_killed_gc),
    ("limited_del_killed_after_any_step_is_finished_by_del", native_del_killed),
    ("bandwidth_add_killed_after_any_step_is_undone_by_del", chained_killed_del),
    ("bandwidth_add_killed_after_any_step_is_undone_by_gc", chained_killed_gc),
    ("bandwidth_del_killed_after_any_step_is_finished_by_del", chained_del_killed),
    ("bandwidth_del_killed_after_any_step_is_finished_by_gc", chained_del_killed_gc),
    ("limits_slow_down_only_the_restricted_pod", traffic),
    ("limits_need_no_more_than_two_capabilities", capabilities),
];

/// Tests with Debian's plugins.
pub(crate) const PREDECESSOR_TESTS: &[Test] = &[
    ("tc_shows_what_debians_bandwidth_plugin_makes", golden),
    ("ifb_of_debians_bandwidth_plugin_is_removed_by_our_del", theirs_then_ours),
    ("debians_ptp_with_our_host_local_and_our_bandwidth", ptp),
    ("our_ifb_is_removed_by_debians_bandwidth_plugin", ours_then_theirs),
];

/// True when the running kernel can limit traffic both ways.
pub(crate) fn is_possible() -> bool {
    let limited = || -> Result<(), kernel::KernelError> {
        let mut host = Rtnl::open()?;
        let ifb = host.create_ifb(&"ifb7".parse().unwrap(), MacAddr::local([7; 6]), 1500)?;
        let lo = host.link(&"lo".parse().unwrap())?.unwrap().index;
        host.add_bucket(ifb, &TokenBucket::new(1000, 1000).unwrap())?;
        host.add_ingress(lo)?;
        host.redirect(lo, ifb)
    };
    let in_a_namespace = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        limited().is_ok()
    };
    std::thread::spawn(in_a_namespace).join().unwrap()
}

fn tc(args: &str) -> String {
    run("tc", args)
}

fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ifb(network: &str, id: &str) -> String {
    ifb_name(network, &ContainerId::new(id).unwrap()).unwrap().to_string()
}

fn ifbs(node: &Node) -> Vec<String> {
    node.links().into_iter().filter(|name| name.starts_with("bwp")).collect()
}

/// A chained configuration of the network `cbr0`, with limits of a megabyte down and two up.
pub(crate) fn chained(previous: &Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "prevResult": previous,
           "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000})
}

/// A Pod without limits.
fn pod(node: &Node, id: &str) -> (PathBuf, Value) {
    let pod = node.pod();
    let result = node.add(&native(), id, &pod).result();
    (pod, result)
}

/// What tc shows of the host: no names of links and Pods, no statistics and no counts of references, which kernels count differently.
fn shown(node: &Node, host: &str) -> String {
    let uncounted = |line: &str| {
        let mut words = line.split(' ');
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            if word == "refcnt" {
                words.next();
            } else {
                kept.push(word);
            }
        }
        kept.join(" ") + "\n"
    };
    let queues = tc("qdisc show").lines().map(uncounted).collect::<String>();
    let mut text = queues + &tc(&format!("filter show dev {host} ingress"));
    for name in ifbs(node) {
        text += &run("ip", &format!("-d link show {name}"));
        text = text.replace(&name, "IFB");
    }
    text.replace(host, "HOST")
}

fn echo(node: &Node) {
    let (pod, mut result) = pod(node, "web-1");
    result["vendor"] = json!({"kept": true});
    let conf = chained(&result);
    let answer = node.add(&conf, "web-1", &pod).result();
    let name = ifb("cbr0", "web-1");
    let link = Rtnl::open().unwrap().link(&name.parse().unwrap()).unwrap().unwrap();
    assert_eq!(answer["interfaces"][3], json!({"name": name, "mac": link.link.mac.unwrap().to_string()}));
    let mut rest = answer.clone();
    rest["interfaces"].as_array_mut().unwrap().pop();
    assert_eq!(rest, result, "all else as it came, with keys nobody knows");
    assert_eq!((link.link.mtu, link.link.up), (Some(1450), true), "the MTU of the veth");
    let host = host_link("web-1");
    let text = shown(node, &host);
    for line in [
        "qdisc tbf 1: dev HOST root rate 8Mbit burst 100000b lat 25ms",
        "qdisc ingress ffff: dev HOST parent ffff:fff1",
        "qdisc tbf 1: dev IFB root rate 16Mbit burst 200000b lat 25ms",
        "mirred (Egress Redirect to device IFB) stolen",
    ] {
        assert!(text.contains(line), "{text}");
    }
    node.check(&conf, "web-1", &pod, &answer).silent();
    node.del(&conf, "web-1", &pod).silent();
    assert_eq!(ifbs(node), Vec::<String>::new());
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(node.files(), []);
}

fn nothing_to_limit(node: &Node) {
    let (pod, result) = pod(node, "web-1");
    let before = (node.links(), node.files(), tc("qdisc show"));
    let bare = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "prevResult": result});
    for conf in [
        bare.clone(),
        with(&bare, "runtimeConfig", json!({"bandwidth": {}})),
        with(&bare, "runtimeConfig", json!({"bandwidth": {"IngressRate": 0, "IngressBurst": 0, "EgressRate": 0}})),
        with(
            &with(&bare, "ingressRate", json!(0)),
            "runtimeConfig",
            json!({"bandwidth": {"egressRate": 8, "egressBurst": 8}}),
        ),
    ] {
        assert_eq!(node.add(&conf, "web-1", &pod).result(), result, "{conf}");
        node.check(&conf, "web-1", &pod, &result).silent();
        node.del(&conf, "web-1", &pod).silent();
    }
    assert_eq!((node.links(), node.files(), tc("qdisc show")), before);
}

fn capabilities(node: &Node) {
    let pod = node.pod();
    let run = |command: &str, conf: &Value| with_capabilities(node, &pod, ENOUGH, command, conf);
    let limited = with(&with(&native(), "cniVersion", json!("1.1.0")), "runtimeConfig", asked());
    let result = run("ADD", &limited).result();
    run("CHECK", &with(&limited, "prevResult", result)).silent();
    run("DEL", &limited).silent();
    let result = run("ADD", &flannel()).result();
    let chain = with(&chained(&result), "cniVersion", json!("1.1.0"));
    let limited = run("ADD", &chain).result();
    run("CHECK", &with(&chain, "prevResult", limited)).silent();
    run("DEL", &chain).silent();
    run("GC", &chain).silent();
    run("DEL", &flannel()).silent();
    assert_eq!(ifbs(node), [""; 0]);
}

fn needs_previous_result(node: &Node) {
    let (pod, result) = pod(node, "web-1");
    let before = (node.links(), node.files());
    let error = |conf: &Value, netns: &str| node.verb("ADD", conf, "web-1", netns).error();
    let netns = pod.to_str().unwrap();
    let mut conf = chained(&result);
    conf.as_object_mut().unwrap().remove("prevResult");
    let (code, text) = error(&conf, netns);
    assert!(code == 7 && text.contains("must be called as chained plugin"), "{text}");
    let mut unlisted = result.clone();
    unlisted["interfaces"][1]["name"] = json!("vethother");
    let (code, text) = error(&chained(&unlisted), netns);
    assert!(code == 7 && text.contains(&host_link("web-1")) && text.contains("does not list"), "{text}");
    let empty = node.pod();
    let (code, text) = error(&chained(&result), empty.to_str().unwrap());
    assert!(code == 7 && text.contains("has no veth peer"), "{text}");
    assert_eq!(error(&chained(&result), "/run/netns/never-there").0, 8);
    for (key, value) in
        [("ingressBurst", json!(0)), ("egressRate", json!(-1)), ("egressBurst", json!(34_359_738_368_u64))]
    {
        let (code, text) = error(&with(&chained(&result), key, value), netns);
        assert!(code == 7 && text.contains(key), "{text}");
    }
    assert_eq!(error(&with(&chained(&result), "unshapedSubnets", json!(["10.0.0.0/8"])), netns).0, 2);
    assert_eq!((node.links(), node.files()), before);
}

fn versions(node: &Node) {
    let outcome = node.exec("bandwidth", &[("CNI_COMMAND", "VERSION")], "");
    assert_eq!(outcome.result()["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let base = with(&native(), "cniVersion", json!(version));
        let pod = node.pod();
        let result = node.add(&base, "web-1", &pod).result();
        let conf = with(&chained(&result), "cniVersion", json!(version));
        let answer = node.add(&conf, "web-1", &pod).result();
        assert_eq!((&answer["cniVersion"], answer["interfaces"].as_array().unwrap().len()), (&json!(version), 4));
        node.del(&conf, "web-1", &pod).silent();
        node.del(&base, "web-1", &pod).silent();
    }
    let old = with(&chained(&json!({"ip4": {"ip": "10.0.0.2/24"}})), "cniVersion", json!("0.2.0"));
    let (code, text) = node.add(&old, "web-1", &node.pod()).error();
    assert!(code == 1 && text.contains("incompatible CNI versions"), "{text}");
}

fn twice(node: &Node) {
    let (pod, result) = pod(node, "web-1");
    let conf = chained(&result);
    let answer = node.add(&conf, "web-1", &pod).result();
    for again in [conf.clone(), with(&with(&conf, "ingressRate", json!(0)), "ingressBurst", json!(0))] {
        let (code, text) = node.add(&again, "web-1", &pod).error();
        assert!(code == 101 && text.contains("DEL it first"), "{text}");
        node.check(&conf, "web-1", &pod, &answer).silent();
    }
    // What the second ADD left of the record lets GC find the device.
    let modern = with(&conf, "cniVersion", json!("1.1.0"));
    node.exec("bandwidth", &[("CNI_COMMAND", "GC")], &modern.to_string()).silent();
    assert_eq!(ifbs(node), Vec::<String>::new());
}

fn failed_add(node: &Node) {
    let (pod, result) = pod(node, "web-1");
    let host = host_link("web-1");
    let before = (node.links(), node.files(), tc("qdisc show"));
    // Somebody filters what the host end receives already: the last step but one fails.
    tc(&format!("qdisc add dev {host} ingress"));
    let hooked = tc("qdisc show");
    let (code, text) = node.add(&chained(&result), "web-1", &pod).error();
    assert!(code == 101 && text.contains("while trying to hook ingress"), "{text}");
    assert_eq!((node.links(), node.files()), (before.0.clone(), before.1.clone()));
    assert_eq!(tc("qdisc show"), hooked, "the limit is off again, the foreign hook stays");
    tc(&format!("qdisc del dev {host} ingress"));
    // Somebody limits what it sends: the first step fails.
    tc(&format!("qdisc add dev {host} root handle 7: pfifo limit 9"));
    assert_eq!(node.add(&chained(&result), "web-1", &pod).error().0, 101);
    assert!(tc("qdisc show").contains("pfifo 7:"));
    tc(&format!("qdisc del dev {host} root"));
    assert_eq!((node.links(), node.files(), tc("qdisc show")), before);
    // A foreign device of that name is neither used nor removed.
    let name = ifb("cbr0", "web-1");
    run("ip", &format!("link add {name} type bridge"));
    assert_eq!(node.add(&chained(&result), "web-1", &pod).error().0, 101);
    node.del(&chained(&result), "web-1", &pod).silent();
    assert_eq!(ifbs(node), [name]);
}

fn check(node: &Node) {
    let (pod, result) = pod(node, "web-1");
    let conf = chained(&result);
    let answer = node.add(&conf, "web-1", &pod).result();
    let (host, name) = (host_link("web-1"), ifb("cbr0", "web-1"));
    let damages = [
        (
            format!("qdisc change dev {host} root handle 1: tbf rate 1mbit burst 10kb latency 1ms"),
            "has tbf rate 125000Bps",
        ),
        (format!("qdisc del dev {host} root"), "has no limit instead of tbf rate 1000000Bps"),
        (format!("qdisc del dev {name} root"), "has no limit instead of tbf rate 2000000Bps"),
        (format!("filter del dev {host} parent ffff:"), "does not go over ifb"),
        (format!("qdisc del dev {host} ingress"), "does not go over ifb"),
    ];
    for (damage, text) in damages {
        tc(&damage);
        let (code, found) =
            node.verb("CHECK", &with(&conf, "prevResult", answer.clone()), "web-1", pod.to_str().unwrap()).error();
        assert!(code == 102 && found.contains(text), "{found} lacks {text}");
    }
    run("ip", &format!("link del {name}"));
    let (_, found) = node.verb("CHECK", &with(&conf, "prevResult", answer), "web-1", pod.to_str().unwrap()).error();
    assert!(found.contains("is missing"), "{found}");
}

fn del(node: &Node) {
    for (number, netns) in ["", "/run/netns/never-there"].iter().enumerate() {
        let id = format!("web-{number}");
        let (pod, result) = pod(node, &id);
        let conf = chained(&result);
        node.add(&conf, &id, &pod).result();
        let broken = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "ingressRate": "junk"});
        node.verb("DEL", &broken, &id, netns).silent();
        assert_eq!(ifbs(node), Vec::<String>::new());
        node.verb("DEL", &broken, &id, netns).silent();
    }
    // Another interface of the same container does not take the device along.
    let (pod, result) = pod(node, "web-9");
    node.add(&chained(&result), "web-9", &pod).result();
    let vars = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "web-9"), ("CNI_IFNAME", "net1")];
    node.exec("bandwidth", &vars, &chained(&result).to_string()).silent();
    assert_eq!(ifbs(node), [ifb("cbr0", "web-9")]);
    node.del(&chained(&result), "web-9", &pod).silent();
    assert_eq!(ifbs(node), Vec::<String>::new());
}

fn gc(node: &Node) {
    for id in ["alive", "dead"] {
        let (pod, result) = pod(node, id);
        node.add(&chained(&result), id, &pod).result();
    }
    // Of another network of ours, and of nobody we know.
    let (pod, result) = pod(node, "other");
    let other = with(&chained(&result), "name", json!("other"));
    node.add(&other, "other", &pod).result();
    run("ip", "link add bwp0123456789ab type ifb");
    let conf = with(&chained(&result), "cniVersion", json!("1.1.0"));
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let listed = with(&conf, key, json!([{"containerID": "alive", "ifname": "eth0"}]));
        node.exec("bandwidth", &[("CNI_COMMAND", "GC")], &listed.to_string()).silent();
        let mut expected = [ifb("cbr0", "alive"), ifb("other", "other"), "bwp0123456789ab".to_owned()];
        expected.sort();
        assert_eq!(ifbs(node), expected);
    }
    node.exec("bandwidth", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    assert_eq!(ifbs(node).len(), 2);
    assert!(node.files().iter().all(|(name, _)| !name.contains(".shape/cbr0/")), "{:?}", node.files());
}

fn static_wins(node: &Node) {
    let asked = json!({"bandwidth": {"IngressRate": 80_000, "IngressBurst": 80_000, "EgressRate": 80_000, "EgressBurst": 80_000}});
    // Chained, with one direction of its own: the runtime's other direction counts no more.
    let (pod, result) = pod(node, "web-1");
    let mut conf = with(&chained(&result), "runtimeConfig", asked.clone());
    for key in ["egressRate", "egressBurst"] {
        conf.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(node.add(&conf, "web-1", &pod).result(), result);
    let text = tc("qdisc show");
    assert!(text.contains("rate 8Mbit") && !text.contains("rate 80Kbit"), "{text}");
    node.del(&native(), "web-1", &pod).silent();
    // Native.
    let mut conf = with(&native(), "runtimeConfig", asked);
    node.attached(&conf, "web-2");
    assert_eq!(tc("qdisc show").matches("rate 80Kbit burst 10000b").count(), 2);
    conf["egressRate"] = json!(8_000_000);
    conf["egressBurst"] = json!(800_000);
    node.attached(&conf, "web-3");
    let text = tc("qdisc show");
    assert_eq!((text.matches("rate 80Kbit").count(), text.matches("rate 8Mbit").count()), (2, 1), "{text}");
}

fn runtime_bursts(node: &Node) {
    let containerd = json!({"bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64,
                                          "EgressRate": 2_000_000, "EgressBurst": 4_294_967_295_u64}});
    let crio = json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 34_359_738_359_u64,
                                    "egressRate": 2_000_000, "egressBurst": 34_359_738_359_u64}});
    for (number, runtime) in [containerd, crio].iter().enumerate() {
        let id = format!("web-{number}");
        let conf = with(&with(&native(), "cniVersion", json!("1.1.0")), "runtimeConfig", runtime.clone());
        let pod = node.pod();
        let result = node.add(&conf, &id, &pod).result();
        node.check(&conf, &id, &pod, &result).silent();
        // The kernel's bucket lasts 275 s at most; what waits behind it stays bounded by the same.
        let text = tc("qdisc show");
        assert!(text.contains("rate 1Mbit burst 34359738b lat 25ms"), "{text}");
        assert!(text.contains("rate 2Mbit burst 68719476b lat 25ms"), "{text}");
        node.del(&conf, &id, &pod).silent();
    }
}

/// BandwidthConf as containerd asks for them.
pub(crate) fn asked() -> Value {
    json!({"bandwidth": {"IngressRate": 8_000_000, "IngressBurst": 800_000, "EgressRate": 16_000_000, "EgressBurst": 1_600_000}})
}

fn native_limits(node: &Node) {
    for conf in [native(), flannel()] {
        let conf = with(&with(&conf, "cniVersion", json!("1.0.0")), "runtimeConfig", asked());
        let before = node.links();
        let pod = node.pod();
        let result = node.add(&conf, "web-1", &pod).result();
        let name = ifb("cbr0", "web-1");
        assert_eq!(result["interfaces"][3]["name"], json!(name));
        assert_eq!(result["ips"][0]["interface"], json!(2), "the Pod's interface keeps its place");
        let text = shown(node, &host_link("web-1"));
        assert!(text.contains("dev HOST root rate 8Mbit") && text.contains("Redirect to device IFB"), "{text}");
        node.check(&conf, "web-1", &pod, &result).silent();
        tc(&format!("qdisc del dev {name} root"));
        let found = node.check(&conf, "web-1", &pod, &result).error();
        assert!(found.0 == 102 && found.1.contains("has no limit"), "{found:?}");
        // Without the configuration that asked for limits, and without the namespace.
        node.verb("DEL", &native(), "web-1", "").silent();
        let mut links = node.links();
        links.retain(|link| link != "cbr0" && link != "cni0");
        assert_eq!((links, ifbs(node)), (before.into_iter().filter(|link| link != "cbr0").collect(), vec![]));
        let _ = fs::remove_dir_all("/var/lib/cni/flannel");
        assert_eq!(node.files(), []);
        for bridge in ["cbr0", "cni0"] {
            Rtnl::open().unwrap().delete_link(&bridge.parse().unwrap()).unwrap();
        }
    }
}

fn shipped(node: &Node) {
    let text = include_str!("../../../configs/cni/10-netd.conflist");
    let list: Value = serde_json::from_str(text).unwrap();
    let mut conf = list["plugins"][0].clone();
    // libcni executor on what the entry declares and the runtime offers.
    let offered = asked();
    let declared = conf["capabilities"].as_object().unwrap().clone();
    let injected: serde_json::Map<String, Value> = offered
        .as_object()
        .unwrap()
        .clone()
        .into_iter()
        .filter(|(key, _)| declared.get(key) == Some(&json!(true)))
        .collect();
    conf["runtimeConfig"] = Value::Object(injected);
    for key in ["name", "cniVersion"] {
        conf[key] = list[key].clone();
    }
    node.attached(&conf, "web-1");
    assert_eq!(ifbs(node), [ifb("cbr0", "web-1")]);
}

fn native_dead(node: &Node) {
    let conf = with(&with(&native(), "cniVersion", json!("1.1.0")), "runtimeConfig", asked());
    let die = |id: &str| {
        node.attached(&conf, id);
        Rtnl::open().unwrap().delete_link(&host_link(id).parse().unwrap()).unwrap();
        assert!(ifbs(node).contains(&ifb("cbr0", id)));
    };
    // GC.
    node.attached(&conf, "alive");
    die("dead");
    let listed = with(&conf, "cni.dev/attachments", json!([{"containerID": "alive", "ifname": "eth0"}]));
    node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &listed.to_string()).silent();
    assert_eq!(ifbs(node), [ifb("cbr0", "alive")]);
    // Exhaustion: the dead one's address goes to the next Pod, its device goes with the record.
    die("dead");
    let dir = "/var/lib/cni/networks/cbr0";
    for host in (2..=254).map(|host| format!("{dir}/172.7.21.{host}")).filter(|path| !Path::new(path).exists()) {
        fs::write(host, "theirs\r\neth0").unwrap();
    }
    crate::leases::living_foreign_pod();
    node.attached(&native(), "heir");
    assert_eq!(ifbs(node), [ifb("cbr0", "alive")]);
}

fn native_killed(node: &Node) {
    let conf = with(&native(), "runtimeConfig", asked());
    // Killed when the device was made and the Pod's side was not: the veth is there without its address.
    let (pod, _) = node.attached(&conf, "web-1");
    inside(&pod, || run("ip", "link set eth0 down"));
    let result = node.add(&conf, "web-1", &pod).result();
    node.check(&conf, "web-1", &pod, &result).silent();
    node.del(&conf, "web-1", &pod).silent();
    assert_eq!((ifbs(node), node.files()), (vec![], vec![]));
}

fn native_killed_del(node: &Node) {
    let conf = with(&native(), "runtimeConfig", asked());
    used(node, &conf);
    Walk { node, command: "ADD", conf: &conf }.run(|_| None, |pod| node.del(&conf, "victim", pod).silent());
}

fn native_killed_gc(node: &Node) {
    let conf = with(&native(), "runtimeConfig", asked());
    used(node, &conf);
    Walk { node, command: "ADD", conf: &conf }.run(|_| None, |_| crate::crash::gc(node, &conf, &[]));
}

fn native_del_killed(node: &Node) {
    let conf = with(&native(), "runtimeConfig", asked());
    used(node, &conf);
    let add = |pod: &Path| {
        node.add(&conf, "victim", pod).result();
        None
    };
    Walk { node, command: "DEL", conf: &conf }.run(add, |pod| node.del(&conf, "victim", pod).silent());
}

/// Attaches the victim and answers what its `bandwidth` is called with.
pub(crate) fn attached(node: &Node, pod: &Path) -> Value {
    chained(&node.add(&native(), "victim", pod).result())
}

/// A chain with one Pod come and gone.
pub(crate) fn used_chain(node: &Node) {
    let first = node.pod();
    let conf = attached(node, &first);
    node.add(&conf, "victim", &first).result();
    detached(node, &first);
}

pub(crate) fn detached(node: &Node, pod: &Path) {
    node.del(&chained(&Value::Null), "victim", pod).silent();
    node.del(&native(), "victim", pod).silent();
}

pub(crate) fn collected(node: &Node) {
    crate::crash::gc(node, &chained(&Value::Null), &[]);
    crate::crash::gc(node, &native(), &[]);
}

fn chained_killed_del(node: &Node) {
    used_chain(node);
    let conf = chained(&Value::Null);
    Walk { node, command: "ADD", conf: &conf }.run(|pod| Some(attached(node, pod)), |pod| detached(node, pod));
}

fn chained_killed_gc(node: &Node) {
    used_chain(node);
    let conf = chained(&Value::Null);
    Walk { node, command: "ADD", conf: &conf }.run(|pod| Some(attached(node, pod)), |_| collected(node));
}

fn limited(node: &Node, pod: &Path) -> Option<Value> {
    let conf = attached(node, pod);
    node.add(&conf, "victim", pod).result();
    None
}

fn chained_del_killed(node: &Node) {
    used_chain(node);
    let conf = chained(&Value::Null);
    Walk { node, command: "DEL", conf: &conf }.run(|pod| limited(node, pod), |pod| detached(node, pod));
}

fn chained_del_killed_gc(node: &Node) {
    used_chain(node);
    let conf = chained(&Value::Null);
    Walk { node, command: "DEL", conf: &conf }.run(|pod| limited(node, pod), |_| collected(node));
}

/// Sends `bytes` from one namespace to an address in another; answers how long that took.
fn transfer(from: Option<&Path>, to: Option<&Path>, addr: IpAddr, bytes: usize) -> Duration {
    let listen = || TcpListener::bind((addr, 0)).unwrap();
    let listener = to.map_or_else(listen, |pod| inside(pod, listen));
    let target: SocketAddr = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut received = vec![0; 64 * 1024];
        let mut count = 0;
        while count < bytes {
            match stream.read(&mut received).unwrap() {
                0 => panic!("broke off after {count} bytes"),
                more => count += more,
            }
        }
    });
    let start = Instant::now();
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(20)).unwrap();
    let mut stream = from.map_or_else(connect, |pod| inside(pod, connect));
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&vec![7; bytes]).unwrap();
    receiver.join().unwrap();
    start.elapsed()
}

fn traffic(node: &Node) {
    const BYTES: usize = 1_000_000;
    // Half a megabyte a second each way, and a burst of 50 kB: the transfer needs almost two seconds.
    let limits = json!({"bandwidth": {"ingressRate": 4_000_000, "ingressBurst": 400_000,
                                      "egressRate": 4_000_000, "egressBurst": 400_000}});
    let (limited, limited_addr) = node.attached(&with(&native(), "runtimeConfig", limits), "limited");
    let (free, free_addr) = node.attached(&native(), "free");
    let gateway: IpAddr = "172.7.21.1".parse().unwrap();
    let down = transfer(None, Some(&limited), limited_addr, BYTES);
    let up = transfer(Some(&limited), None, gateway, BYTES);
    let between = transfer(Some(&free), Some(&limited), limited_addr, BYTES);
    let free_down = transfer(None, Some(&free), free_addr, BYTES);
    let free_up = transfer(Some(&free), None, gateway, BYTES);
    let least = Duration::from_millis(1500);
    assert!(down > least && up > least && between > least, "down {down:?}, up {up:?}, between {between:?}");
    assert!(free_down * 3 < down && free_up * 3 < up, "free: down {free_down:?}, up {free_up:?}");
    // Bytes, not packets: what the kernel counted on each side.
    let text = tc(&format!("-s qdisc show dev {}", ifb("cbr0", "limited")));
    let sent: usize = text.split("Sent ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(sent > BYTES, "{text}");
}

/// A Pod of Debian's bridge plugin; answers its namespace, the result and the host end's name.
fn debians_pod(node: &Node, id: &str) -> (PathBuf, Value, String) {
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "br7", "isGateway": true, "mtu": 1450,
                      "ipam": {"type": "host-local", "subnet": "10.7.7.0/24"}});
    let pod = node.pod();
    let result = debians("bridge", "ADD", &conf, id, pod.to_str().unwrap(), crate::predecessor::DIR);
    let host = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    (pod, result, host)
}

fn golden(node: &Node) {
    let limits = [
        json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000}),
        json!({"ingressRate": 8, "ingressBurst": 8}),
        json!({"egressRate": 1_000_000_000, "egressBurst": 4_294_967_295_u64}),
        json!({"ingressRate": 50_000_000_000_u64, "ingressBurst": 80_000_000, "egressRate": 123_456_789, "egressBurst": 987_654}),
    ];
    for (number, limits) in limits.iter().enumerate() {
        let id = format!("web-{number}");
        let (pod, previous, host) = debians_pod(node, &id);
        let mut conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "prevResult": previous});
        conf.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let netns = pod.to_str().unwrap();
        let theirs = debians("bandwidth", "ADD", &conf, &id, netns, crate::predecessor::DIR);
        let their_view = comparable(&shown(node, &host));
        debians("bandwidth", "DEL", &conf, &id, netns, crate::predecessor::DIR);
        let _ = Command::new("tc").args(["qdisc", "del", "dev", &host, "root"]).output().unwrap();
        let _ = Command::new("tc").args(["qdisc", "del", "dev", &host, "ingress"]).output().unwrap();
        let ours = node.add(&conf, &id, &pod).result();
        assert_eq!(comparable(&shown(node, &host)), their_view, "{limits}");
        let names = |result: &Value| -> Vec<Value> {
            result["interfaces"].as_array().unwrap().iter().map(|i| i["name"].clone()).collect()
        };
        assert_eq!(names(&ours), names(&theirs));
        // Either finds the other's work in order.
        node.check(&conf, &id, &pod, &ours).silent();
        let checked = with(&conf, "prevResult", ours);
        debians("bandwidth", "CHECK", &checked, &id, netns, crate::predecessor::DIR);
        node.del(&conf, &id, &pod).silent();
        // The next round counts from one.
        run("ip", &format!("link del {host}"));
    }
}

/// Without what differs between two runs, and without the second redirect that the reference writes behind the first:
/// a packet that was stolen never gets there.
fn comparable(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut skipped = 0;
    for line in text.lines() {
        if line.contains("action order 2: mirred (Egress Redirect to device IFB) pass") {
            skipped = 2;
        }
        if skipped > 0 {
            skipped -= 1;
        } else if !line.contains("link/ether") && !line.trim().is_empty() && !line.contains("index ") {
            lines.push(line.trim());
        }
    }
    let text = lines.join("\n");
    // The index of the device counts on.
    text.lines().map(|line| line.split_once(": IFB:").map_or(line, |(_, rest)| rest)).collect::<Vec<_>>().join("\n")
}

fn theirs_then_ours(node: &Node) {
    let (pod, previous, _) = debians_pod(node, "web-1");
    let conf = chained(&previous);
    debians("bandwidth", "ADD", &conf, "web-1", pod.to_str().unwrap(), crate::predecessor::DIR);
    assert_eq!(ifbs(node), [ifb("cbr0", "web-1")]);
    let check: Outcome = node.verb("CHECK", &conf, "web-1", pod.to_str().unwrap());
    check.silent();
    node.verb("DEL", &conf, "web-1", "").silent();
    assert_eq!(ifbs(node), Vec::<String>::new());
    // And by the native plugin, which took over the whole chain.
    let (pod, previous, _) = debians_pod(node, "web-2");
    debians("bandwidth", "ADD", &chained(&previous), "web-2", pod.to_str().unwrap(), crate::predecessor::DIR);
    node.del(&native(), "web-2", &pod).silent();
    assert_eq!(ifbs(node), Vec::<String>::new());
    // Even when nothing else is left of it.
    run("ip", &format!("link add {} type ifb", ifb("cbr0", "web-3")));
    node.verb("DEL", &native(), "web-3", "").silent();
    assert_eq!(ifbs(node), Vec::<String>::new());
    assert!(node.files().iter().all(|(name, _)| !name.contains("web-3")), "{:?}", node.files());
}

fn ptp(node: &Node) {
    node.plugin("host-local");
    let conf = json!({"cniVersion": "1.0.0", "name": "basic-ptp", "type": "ptp", "mtu": 512,
                      "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}});
    let pod = node.pod();
    let netns = pod.to_str().unwrap();
    let result = debians("ptp", "ADD", &conf, "web-1", netns, "/run/bin");
    let limits = json!({"bandwidth": {"ingressRate": 800_000, "ingressBurst": 80_000, "egressRate": 800_000, "egressBurst": 80_000}});
    let chained = json!({"cniVersion": "1.0.0", "name": "basic-ptp", "type": "bandwidth", "runtimeConfig": limits,
                         "prevResult": result});
    let answer = node.add(&chained, "web-1", &pod).result();
    let name = ifb("basic-ptp", "web-1");
    assert!(run("ip", &format!("link show {name}")).contains("mtu 512"));
    // 100 kB a second and 10 kB at once: 60 kB need half a second either way.
    let addr: IpAddr = "10.1.2.2".parse().unwrap();
    assert!(transfer(None, Some(&pod), addr, 60_000) > Duration::from_millis(400));
    assert!(transfer(Some(&pod), None, "10.1.2.1".parse().unwrap(), 60_000) > Duration::from_millis(400));
    // As libcni: DEL backwards, with the result of ADD.
    node.verb("DEL", &with(&chained, "prevResult", answer.clone()), "web-1", netns).silent();
    debians("ptp", "DEL", &with(&conf, "prevResult", answer), "web-1", netns, "/run/bin");
    assert_eq!((ifbs(node), node.files()), (vec![], vec![]));
}

fn ours_then_theirs(node: &Node) {
    let (pod, previous, _) = debians_pod(node, "web-1");
    let conf = chained(&previous);
    let answer = node.add(&conf, "web-1", &pod).result();
    let conf = with(&conf, "prevResult", answer);
    debians("bandwidth", "CHECK", &conf, "web-1", pod.to_str().unwrap(), crate::predecessor::DIR);
    debians("bandwidth", "DEL", &conf, "web-1", pod.to_str().unwrap(), crate::predecessor::DIR);
    assert_eq!(ifbs(node), Vec::<String>::new());
    node.del(&conf, "web-1", &pod).silent();
    assert!(node.files().iter().all(|(name, _)| !name.contains(".shape")), "{:?}", node.files());
}
