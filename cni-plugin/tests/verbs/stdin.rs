//! Standard input: what is refused for every verb, in the order of the reference's skel, and which versions allow which verb.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Node, Outcome, native, vars, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("what_is_no_json_object_is_refused_by_every_verb", no_object),
    ("network_names_are_identifiers_for_every_verb", network_names),
    ("unknown_versions_are_refused_with_those_that_are_known", unknown_versions),
    ("configuration_without_version_means_0_1_0", without_version),
    ("verbs_need_the_version_that_brought_them", version_gates),
    ("complaints_come_in_the_order_of_skel", order),
    ("error_is_one_object_on_standard_output_in_the_configurations_version", error_object),
    ("version_does_not_wait_for_standard_input", version_does_not_read),
    ("keys_are_matched_in_any_case_and_unknown_ones_refused", keys),
];

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const VERBS: [&str; 5] = ["ADD", "CHECK", "DEL", "GC", "STATUS"];

fn run(node: &Node, command: &str, stdin: &str) -> Outcome {
    let pod = "/run/netns/pod0";
    node.exec("netd-cni", &vars(command, "web-1", pod), stdin)
}

fn refused(outcome: &Outcome, code: u64, text: &str, what: &str) {
    let (found, said) = outcome.error();
    assert!(found == code && said.contains(text), "{what}: {found} {said}, not {code} {text}");
}

fn no_object(node: &Node) {
    node.pod();
    for command in VERBS {
        for text in ["", " ", "{", "[]", "7", "null", "\"x\"", "{}{}", "{\"name\":\"x\",}", "{\"name\":\"\\ud800\"}"] {
            refused(&run(node, command, text), 6, "error unmarshall network config", &format!("{command} {text}"));
        }
        let deep = format!("{}{}", r#"{"name":"x","a":"#, "[".repeat(100_000));
        refused(&run(node, command, &deep), 6, "error unmarshall network config", command);
        let long = format!("{}{}", native(), " ".repeat(4 << 20));
        refused(&run(node, command, &long), 6, "standard input has more than 4194304 bytes", command);
    }
    assert_eq!((node.links(), node.files()), (vec!["lo".to_owned()], vec![]));
}

fn network_names(node: &Node) {
    node.pod();
    let name = |name: Value| with(&with(&native(), "cniVersion", json!("1.1.0")), "name", name).to_string();
    for command in VERBS {
        refused(&run(node, command, "{}"), 7, "missing network name", command);
        refused(&run(node, command, &name(json!(""))), 7, "missing network name", command);
        refused(&run(node, command, &name(json!(7))), 7, "name", command);
        for bad in ["a/b", "../x", ".x", "-x", "a b", "ü", "x\n", &"x".repeat(201)] {
            refused(&run(node, command, &name(json!(bad))), 7, "invalid characters found in network name", bad);
        }
    }
    assert_eq!(node.files(), []);
    for good in ["a", "0", "cbr0", "my-net_1.x"] {
        run(node, "ADD", &with(&with(&native(), "name", json!(good)), "bridge", json!("br-one")).to_string()).result();
        run(node, "DEL", &name(json!(good))).silent();
    }
}

fn unknown_versions(node: &Node) {
    node.pod();
    for command in VERBS {
        for version in ["9.9.9", "1.0", "1", "0.3", "v1.0.0", "1.0.0 ", "1.2.0", "latest"] {
            let conf = with(&native(), "cniVersion", json!(version)).to_string();
            let outcome = run(node, command, &conf);
            refused(&outcome, 1, "incompatible CNI versions", version);
            let listed = format!("config is \"{version}\", plugin supports [{}]", VERSIONS.join(" "));
            refused(&outcome, 1, &listed, version);
        }
    }
    let number = with(&native(), "cniVersion", json!(1.0)).to_string();
    refused(&run(node, "ADD", &number), 7, "cniVersion", "a number");
    assert_eq!(node.files(), []);
}

fn without_version(node: &Node) {
    node.pod();
    for version in [None, Some("")] {
        let mut conf = native();
        conf.as_object_mut().unwrap().remove("cniVersion");
        if let Some(version) = version {
            conf["cniVersion"] = json!(version);
        }
        let result = run(node, "ADD", &conf.to_string()).result();
        assert!(result["cniVersion"] == json!("0.1.0") && result["ip4"]["ip"].is_string(), "{result}");
        refused(&run(node, "CHECK", &conf.to_string()), 1, "config version does not allow CHECK", "no version");
        run(node, "DEL", &conf.to_string()).silent();
    }
}

fn version_gates(node: &Node) {
    node.pod();
    for version in VERSIONS {
        let conf = with(&native(), "cniVersion", json!(version));
        let result = run(node, "ADD", &conf.to_string()).result();
        assert_eq!(result["cniVersion"], json!(version));
        for (command, since) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")] {
            let valid = json!([{"containerID": "web-1", "ifname": "eth0"}]);
            let full = with(&with(&conf, "prevResult", result.clone()), "cni.dev/valid-attachments", valid);
            let outcome = run(node, command, &full.to_string());
            if version >= since {
                outcome.silent();
            } else {
                refused(&outcome, 1, &format!("config version does not allow {command}"), version);
            }
        }
        run(node, "DEL", &conf.to_string()).silent();
    }
    assert_eq!(node.files(), []);
}

fn order(node: &Node) {
    let bare = [("CNI_COMMAND", "CHECK")];
    let say = |vars: &[(&str, &str)], stdin: &str| node.exec("netd-cni", vars, stdin).error();
    assert!(say(&bare, "{").1.contains("required env variables"));
    let full = vars("CHECK", "web-1", "/x");
    for (stdin, code) in [
        ("{", 6),
        (r#"{"cniVersion":"9.9.9"}"#, 7),
        (r#"{"name":"x","cniVersion":"9.9.9"}"#, 1),
        (r#"{"name":"x","cniVersion":"0.3.1","type":"nobody"}"#, 1),
        (r#"{"name":"x","cniVersion":"1.0.0","type":"nobody"}"#, 7),
    ] {
        assert_eq!(say(&full, stdin).0, code, "{stdin}");
    }
}

fn error_object(node: &Node) {
    for (version, expected) in [("0.3.1", "0.3.1"), ("1.1.0", "1.1.0"), ("9.9.9", "1.1.0")] {
        let conf = with(&with(&native(), "cniVersion", json!(version)), "mtu", json!("wide")).to_string();
        let outcome = run(node, "ADD", &conf);
        let object: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert!(!outcome.ok && object["cniVersion"] == json!(expected), "{object}");
        let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "code", "details", "msg"]);
    }
}

fn version_does_not_read(node: &Node) {
    let mut plugin = Command::new(node.plugin("netd-cni"));
    plugin.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = plugin.spawn().unwrap();
    // Held open, so that reading would wait for ever.
    let held = child.stdin.take();
    let (ended, on_end) = mpsc::channel();
    let waiter = thread::spawn(move || ended.send(child.wait().unwrap()));
    let status = on_end.recv_timeout(Duration::from_secs(20));
    // Lets a plugin that reads go on to its end, so that the thread ends as well.
    drop(held);
    waiter.join().unwrap().unwrap();
    assert!(status.expect("VERSION waits for its input").success());
}

fn keys(node: &Node) {
    node.pod();
    let spelt = json!({"CNIVersion": "1.0.0", "NAME": "cbr0", "Type": "netd-cni", "isdefaultgateway": true, "HairpinMode": true});
    let result = run(node, "ADD", &spelt.to_string()).result();
    assert_eq!(result["routes"][1]["gw"], json!("172.7.21.1"));
    run(node, "DEL", &spelt.to_string()).silent();
    let unknown = with(&native(), "hairpin", json!(true)).to_string();
    refused(&run(node, "ADD", &unknown), 2, "hairpin=true", "an unknown key");
    run(node, "DEL", &unknown).silent();
    assert_eq!(node.files(), []);
}
