//! What a configuration asks for and this kernel may lack: where it does, ADD and STATUS name the module and the option and nothing is left;
//! where it does not, ADD does it and STATUS says nothing. A tool of others tells which it is, so each test means something on every kernel.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::node::{Node, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("limits_on_a_kernel_without_them_are_refused_with_module_and_option_and_nothing_is_left", limits),
    ("limits_of_a_chain_on_a_kernel_without_them_are_refused_with_module_and_option", chained_limits),
    ("status_on_a_kernel_without_what_a_list_asks_for_says_so_before_any_add", status),
    ("macspoofchk_on_a_kernel_without_bridge_tables_is_refused_with_the_option", guard),
    ("host_ports_on_a_kernel_without_nftables_are_refused_with_module_and_option", ports),
    ("masquerading_on_a_kernel_without_nftables_is_refused_with_module_and_option", masquerade),
    ("pods_that_ask_for_nothing_more_live_on_a_kernel_without_any_of_it", plain_pods),
];

/// Lines that only a kernel can do that has the thing, with what is said where it has not.
const BUCKETS: (&str, &str) =
    ("tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 1ms", "token buckets: modprobe sch_tbf, and");
const IFB: (&str, &str) = ("ip link add tried type ifb", "ifb devices: modprobe ifb, and");
const BRIDGE_TABLES: (&str, &str) = ("nft add table bridge tried", "nftables for bridges: modprobe nf_tables, and");
const TABLES: (&str, &str) = ("nft add table inet tried", "nftables: modprobe nf_tables, and");

/// What this kernel lacks of `wanted`, as it is said. In a namespace of its own, which is made and left nothing in.
fn lacking(wanted: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    let works = |line: &str| {
        let mut command = Command::new("unshare");
        command.args(["-n", "--"]).args(line.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    wanted.iter().filter(|(line, _)| !works(line)).map(|(_, said)| *said).collect()
}

fn option_of(said: &str) -> &'static str {
    match said.split(':').next().unwrap() {
        "token buckets" => "CONFIG_NET_SCH_TBF",
        "ifb devices" => "CONFIG_IFB",
        "nftables for bridges" => "CONFIG_NF_TABLES_BRIDGE",
        _ => "CONFIG_NF_TABLES",
    }
}

/// Checks that `text` names one of `missing`, as the first step that needs one of them is where an ADD ends.
fn names(text: &str, missing: &[&str]) {
    let is_named = |said: &&str| text.contains(&format!("this kernel has no {said}")) && text.contains(option_of(said));
    assert!(missing.iter().any(is_named), "{missing:?}: {text}");
}

/// ADD of `conf` does it, and DEL takes it back, or the ADD is refused with what is `missing` and has changed nothing.
fn done_or_refused(node: &Node, conf: &Value, missing: &[&str]) {
    let before = (node.links(), node.files());
    let outcome = node.add(conf, "web-1", &node.pod());
    if missing.is_empty() {
        outcome.result();
    } else {
        let (code, text) = outcome.error();
        assert_eq!(code, 100, "{text}");
        names(&text, missing);
        assert_eq!((node.links(), node.files()), before, "left by a refused ADD: {conf}");
    }
    node.verb("DEL", conf, "web-1", "").silent();
    assert_eq!(node.files(), before.1);
}

fn limited(conf: &Value, receives: bool, sends: bool) -> Value {
    let mut conf = conf.clone();
    for (is_wanted, keys) in [(receives, ["ingressRate", "ingressBurst"]), (sends, ["egressRate", "egressBurst"])] {
        for key in keys.into_iter().filter(|_| is_wanted) {
            conf[key] = json!(8_000_000);
        }
    }
    conf
}

fn limits(node: &Node) {
    let buckets = lacking(&[BUCKETS]);
    let both = lacking(&[BUCKETS, IFB]);
    done_or_refused(node, &limited(&native(), true, false), &buckets);
    done_or_refused(node, &limited(&native(), false, true), &both);
    done_or_refused(node, &limited(&native(), true, true), &both);
}

fn chained_limits(node: &Node) {
    let pod = node.pod();
    let previous = node.add(&native(), "web-1", &pod).result();
    let chained = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "prevResult": previous});
    let before = (node.links(), node.files());
    for (receives, sends, missing) in
        [(true, false, lacking(&[BUCKETS])), (false, true, lacking(&[IFB, BUCKETS])), (false, false, vec![])]
    {
        let conf = limited(&chained, receives, sends);
        let outcome = node.add(&conf, "web-1", &pod);
        if missing.is_empty() {
            outcome.result();
        } else {
            names(&outcome.error().1, &missing);
        }
        node.del(&conf, "web-1", &pod).silent();
        assert_eq!((node.links(), node.files()), before);
    }
}

fn status(node: &Node) {
    let asked = |conf: &Value| {
        let program = conf["type"].as_str().unwrap();
        node.exec(program, &[("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/run/bin")], &conf.to_string())
    };
    let modern = with(&native(), "cniVersion", json!("1.1.0"));
    let chained = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bandwidth"});
    for (conf, missing) in [
        (modern.clone(), vec![]),
        (limited(&modern, true, false), lacking(&[BUCKETS])),
        (limited(&modern, false, true), lacking(&[BUCKETS, IFB])),
        (with(&modern, "macspoofchk", json!(true)), lacking(&[BRIDGE_TABLES])),
        (chained.clone(), vec![]),
        (limited(&chained, true, true), lacking(&[BUCKETS, IFB])),
    ] {
        let outcome = asked(&conf);
        if missing.is_empty() {
            outcome.silent();
            continue;
        }
        let (code, text) = outcome.error();
        assert_eq!(code, 50, "{text}");
        for said in &missing {
            names(&text, &[*said]);
        }
    }
}

fn guard(node: &Node) {
    done_or_refused(node, &with(&native(), "macspoofchk", json!(true)), &lacking(&[BRIDGE_TABLES]));
}

fn ports(node: &Node) {
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let conf = with(&native(), "runtimeConfig", json!({"portMappings": [mapping]}));
    done_or_refused(node, &conf, &lacking(&[TABLES]));
}

fn masquerade(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", crate::node::SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false")).unwrap();
    done_or_refused(node, &with(&native(), "ipMasq", json!(true)), &lacking(&[TABLES]));
}

fn plain_pods(node: &Node) {
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    let pods: Vec<_> = ["web-1", "web-2"].map(|id| (id, node.pod())).into();
    for (id, pod) in &pods {
        let result = node.add(&conf, id, pod).result();
        node.check(&conf, id, pod, &result).silent();
    }
    let valid = json!([{"containerID": "web-1", "ifname": "eth0"}]);
    node.verb("GC", &with(&conf, "cni.dev/valid-attachments", valid), "", "").silent();
    let host_ends = |node: &Node| node.links().into_iter().filter(|name| name.starts_with("veth")).count();
    assert_eq!(host_ends(node), 1, "the other is gone");
    node.verb("STATUS", &conf, "", "").silent();
    node.del(&conf, "web-1", &pods[0].1).silent();
    assert_eq!(node.files(), vec![]);
    let gone: &Path = &pods[1].1;
    node.del(&conf, "web-2", gone).silent();
}
