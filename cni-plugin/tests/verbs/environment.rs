//! The `CNI_*` variables of every verb, row by row as the reference's skel checks them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::node::{Node, Outcome, flannel, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("missing_variables_are_named_together_for_every_verb", missing_together),
    ("empty_variable_is_a_missing_one", empty_is_missing),
    ("args_and_path_are_optional_for_every_verb", optional),
    ("gc_and_status_and_version_need_no_variable_and_read_none", none_needed),
    ("container_ids_are_identifiers", container_ids),
    ("interface_names_are_the_kernels", interface_names),
    ("command_is_one_of_six_in_upper_case", commands),
    ("call_without_a_command_explains_itself_and_succeeds", no_command),
    ("cni_args_are_pairs_of_known_keys_unless_unknown_ones_are_ignored", cni_args),
    ("bad_cni_args_do_not_stop_del", args_on_del),
    ("value_that_is_no_utf8_is_refused_and_not_taken_for_missing", not_utf8),
    ("override_allows_the_plugins_own_namespace", netns_override),
    ("del_in_the_plugins_own_namespace_harms_nothing", del_in_own_namespace),
];

const ATTACHMENT: [&str; 3] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];

/// A configuration that allows every verb.
fn newest() -> Value {
    with(&native(), "cniVersion", json!("1.1.0"))
}

fn variables<'a>(command: &'a str, netns: &'a Path) -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "web-1"),
        ("CNI_NETNS", netns.to_str().unwrap()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/run/bin"),
    ]
}

/// `vars` with `name` set to `value`.
fn set<'a>(mut vars: Vec<(&'a str, &'a str)>, name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    vars.retain(|(found, _)| *found != name);
    vars.push((name, value));
    vars
}

fn refused(outcome: &Outcome, code: u64, text: &str) {
    let (found, said) = outcome.error();
    assert!(found == code && said.contains(text), "{found} {said}, not {code} {text}");
}

fn missing_together(node: &Node) {
    let pod = node.pod();
    for program in ["netd-cni", "flannel", "bridge", "portmap", "loopback"] {
        let conf = with(&newest(), "type", json!(program)).to_string();
        for command in ["ADD", "CHECK", "DEL"] {
            for subset in 1_u32..8 {
                let left_out =
                    |name: &str| ATTACHMENT.iter().position(|n| *n == name).is_some_and(|bit| subset >> bit & 1 == 1);
                let mut vars = variables(command, &pod);
                vars.retain(|(name, _)| !left_out(name));
                let required: Vec<&str> = ATTACHMENT
                    .into_iter()
                    .filter(|name| left_out(name) && !(command == "DEL" && *name == "CNI_NETNS"))
                    .collect();
                let outcome = node.exec(program, &vars, &conf);
                if required.is_empty() {
                    outcome.silent();
                } else {
                    refused(&outcome, 4, &format!("required env variables [{}] missing", required.join(",")));
                }
            }
        }
    }
    assert_eq!((node.links(), node.files()), (vec!["lo".to_owned()], vec![]));
}

fn empty_is_missing(node: &Node) {
    let pod = node.pod();
    for name in ATTACHMENT {
        let vars = set(variables("ADD", &pod), name, "");
        refused(&node.exec("netd-cni", &vars, &newest().to_string()), 4, &format!("[{name}] missing"));
    }
    let vars = set(variables("DEL", &pod), "CNI_NETNS", "");
    node.exec("netd-cni", &vars, &newest().to_string()).silent();
}

fn optional(node: &Node) {
    let pod = node.pod();
    for conf in [newest(), flannel()] {
        let program = conf["type"].as_str().unwrap();
        let run = |command: &str, conf: &Value| {
            let mut vars = variables(command, &pod);
            vars.retain(|(name, _)| *name != "CNI_PATH");
            node.exec(program, &vars, &conf.to_string())
        };
        let result = run("ADD", &conf).result();
        if program == "netd-cni" {
            run("CHECK", &with(&conf, "prevResult", result)).silent();
            run("STATUS", &conf).silent();
        }
        run("DEL", &conf).silent();
        let bridge = netstate::IfName::new(if program == "flannel" { "cni0" } else { "cbr0" }).unwrap();
        kernel::Rtnl::open().unwrap().delete_link(&bridge).unwrap();
    }
}

fn none_needed(node: &Node) {
    for command in ["GC", "STATUS"] {
        for vars in [
            vec![("CNI_COMMAND", command)],
            // As libcni sets them.
            vec![
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", ""),
                ("CNI_NETNS", ""),
                ("CNI_IFNAME", ""),
                ("CNI_ARGS", ""),
            ],
            vec![
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", "../x"),
                ("CNI_NETNS", "dummy"),
                ("CNI_IFNAME", "a/b"),
                ("CNI_ARGS", "x"),
            ],
        ] {
            node.exec("netd-cni", &vars, &newest().to_string()).silent();
        }
    }
    let dummies = [("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
    for vars in [&dummies[..1], &dummies] {
        for program in ["netd-cni", "flannel", "bridge", "portmap", "loopback", "host-local"] {
            assert_eq!(
                node.exec(program, vars, "").stdout,
                "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
            );
        }
    }
}

fn container_ids(node: &Node) {
    let (long, longest) = ("x".repeat(201), "x".repeat(200));
    for id in ["a", "0", "A-b_c.d", "1.2", &"f".repeat(64), &longest] {
        let pod = node.pod();
        let vars = set(variables("ADD", &pod), "CNI_CONTAINERID", id);
        node.exec("netd-cni", &vars, &newest().to_string()).result();
        node.exec("netd-cni", &set(vars, "CNI_COMMAND", "DEL"), &newest().to_string()).silent();
    }
    let pod = node.pod();
    for command in ["ADD", "CHECK", "DEL"] {
        for id in ["-a", ".a", "_a", "..", "a/b", "../a", "a b", "a\n", "a@eth0", "ü", "a:b", "a*", "a;b"] {
            let vars = set(variables(command, &pod), "CNI_CONTAINERID", id);
            refused(&node.exec("netd-cni", &vars, &newest().to_string()), 4, "invalid characters in containerID");
        }
        let vars = set(variables(command, &pod), "CNI_CONTAINERID", &long);
        refused(&node.exec("netd-cni", &vars, &newest().to_string()), 4, "CNI_CONTAINERID has 201 bytes");
    }
    assert_eq!(node.files(), []);
}

fn interface_names(node: &Node) {
    for name in ["e", "eth0", "net1.100", "fifteen-letters", "ü", "a-b_c+d"] {
        let pod = node.pod();
        let vars = set(variables("ADD", &pod), "CNI_IFNAME", name);
        node.exec("netd-cni", &vars, &newest().to_string()).result();
        node.exec("netd-cni", &set(vars, "CNI_COMMAND", "DEL"), &newest().to_string()).silent();
    }
    let pod = node.pod();
    for command in ["ADD", "CHECK", "DEL"] {
        for name in
            [".", "..", "a/b", "a:b", "eth 0", "eth\t0", "eth\u{a0}0", "eth\u{2003}0", "sixteen-letters-", "üüüüüüüü"]
        {
            let vars = set(variables(command, &pod), "CNI_IFNAME", name);
            refused(&node.exec("netd-cni", &vars, &newest().to_string()), 4, "invalid CNI_IFNAME");
        }
    }
    assert_eq!(node.files(), []);
}

fn commands(node: &Node) {
    let pod = node.pod();
    for command in ["add", "Add", "ADD ", "UPDATE", "GET", "0"] {
        let outcome = node.exec("netd-cni", &variables(command, &pod), &newest().to_string());
        refused(&outcome, 4, &format!("unknown CNI_COMMAND: {command}"));
    }
}

fn no_command(node: &Node) {
    for command in [None, Some("")] {
        let mut plugin = Command::new(node.plugin("flannel"));
        plugin.env_clear().envs(command.map(|value| ("CNI_COMMAND", value))).stdin(Stdio::null());
        let output = plugin.output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("CNI plugin") && said.contains("0.1.0") && said.contains("1.1.0"), "{said}");
    }
}

fn cni_args(node: &Node) {
    let conf = newest().to_string();
    for (number, args) in [
        "",
        ";",
        "IgnoreUnknown=1",
        "IgnoreUnknown=TRUE;K8S_POD_NAME=web",
        "K8S_POD_NAME=web;K8S_POD_UID=1;IgnoreUnknown=true",
        "IgnoreUnknown=1;K8S_POD_NAME=a=b;X==",
        "IgnoreUnknown=1;IP=;K8S_POD_NAME=web",
        "IP=172.7.21.77;MAC=02:00:00:00:00:77",
        "IP=172.7.21.78/24",
    ]
    .into_iter()
    .enumerate()
    {
        let (pod, id) = (node.pod(), format!("good-{number}"));
        let vars = set(set(variables("ADD", &pod), "CNI_ARGS", args), "CNI_CONTAINERID", &id);
        let result = node.exec("netd-cni", &vars, &conf).result();
        if let Some((_, address)) = args.split_once("IP=172") {
            let address = format!("172{}", address.split([';', '/']).next().unwrap());
            assert_eq!(result["ips"][0]["address"], json!(format!("{address}/24")));
        }
    }
    let before = (node.links(), node.files());
    let pod = node.pod();
    for (args, text) in [
        ("FOO=BAR", "CNI_ARGS: unknown args [\"FOO=BAR\"]"),
        ("FOO=BAR;A=B", "CNI_ARGS: unknown args [\"FOO=BAR\", \"A=B\"]"),
        ("K8S_POD_NAME=web;IgnoreUnknown=0", "unknown args"),
        ("ignoreunknown=1;FOO=BAR", "unknown args"),
        ("ip=172.7.21.9", "unknown args"),
        ("FOO", "CNI_ARGS: invalid pair \"FOO\""),
        ("IgnoreUnknown=1;FOO", "CNI_ARGS: invalid pair \"FOO\""),
        ("IP=300.1.1.1", "CNI_ARGS: invalid pair \"IP=300.1.1.1\""),
        ("MAC=02:00", "CNI_ARGS: invalid pair \"MAC=02:00\""),
    ] {
        refused(&node.exec("netd-cni", &set(variables("ADD", &pod), "CNI_ARGS", args), &conf), 4, text);
    }
    assert_eq!((node.links(), node.files()), before);
}

fn args_on_del(node: &Node) {
    for (number, args) in ["FOO", "FOO=BAR", "IP=300.1.1.1", ";;="].into_iter().enumerate() {
        let id = format!("web-{number}");
        let (pod, _) = node.attached(&newest(), &id);
        let vars = set(set(variables("DEL", &pod), "CNI_ARGS", args), "CNI_CONTAINERID", &id);
        node.exec("netd-cni", &vars, &newest().to_string()).silent();
        assert_eq!(node.files(), []);
    }
}

fn not_utf8(node: &Node) {
    let pod = node.pod();
    let junk = OsStr::from_bytes(b"x\xff");
    for (name, code, text) in [
        ("CNI_COMMAND", 4, "unknown CNI_COMMAND"),
        ("CNI_CONTAINERID", 4, "invalid characters in containerID"),
        ("CNI_NETNS", 8, "failed to open netns"),
        ("CNI_ARGS", 4, "CNI_ARGS: invalid pair"),
    ] {
        std::fs::write("/run/stdin", newest().to_string()).unwrap();
        let mut plugin = Command::new(node.plugin("netd-cni"));
        plugin.env_clear().envs(variables("ADD", &pod)).env(name, junk);
        let output = plugin.stdin(std::fs::File::open("/run/stdin").unwrap()).output().unwrap();
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        let said = object["msg"].as_str().unwrap();
        assert!(object["code"] == json!(code) && said.contains(text), "{name}: {object}");
    }
    assert_eq!(node.files(), []);
}

fn netns_override(node: &Node) {
    let conf = newest().to_string();
    let own = Path::new("/proc/self/ns/net");
    for value in ["", "0", "false", "yes"] {
        let vars = set(variables("ADD", own), "CNI_NETNS_OVERRIDE", value);
        refused(&node.exec("netd-cni", &vars, &conf), 8, "should not be the same");
    }
    for value in ["1", "true", "TRUE"] {
        let vars = set(variables("ADD", own), "CNI_NETNS_OVERRIDE", value);
        node.exec("netd-cni", &vars, &conf).result();
        assert!(node.links().contains(&"eth0".to_owned()));
        node.exec("netd-cni", &set(vars, "CNI_COMMAND", "DEL"), &conf).silent();
        assert!(!node.links().contains(&"eth0".to_owned()));
    }
    assert_eq!(node.files(), []);
}

fn del_in_own_namespace(node: &Node) {
    node.attached(&newest(), "other");
    std::fs::write("/run/netns/host", "").unwrap();
    mount(Some("/proc/thread-self/ns/net"), "/run/netns/host", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let before = (node.links(), node.files(), std::fs::metadata("/run/netns/host").unwrap().ino());
    for netns in ["/proc/self/ns/net", "/run/netns/host"] {
        for ifname in ["lo", "cbr0", "eth0"] {
            let vars = set(variables("DEL", Path::new(netns)), "CNI_IFNAME", ifname);
            node.exec("netd-cni", &vars, &newest().to_string()).silent();
            node.exec("loopback", &vars, &newest().to_string()).silent();
        }
    }
    assert_eq!((node.links(), node.files(), std::fs::metadata("/run/netns/host").unwrap().ino()), before);
    let lo = kernel::Rtnl::open().unwrap().link(&netstate::IfName::new("lo").unwrap()).unwrap().unwrap();
    assert!(lo.link.up, "loopback took the host's lo down");
}
