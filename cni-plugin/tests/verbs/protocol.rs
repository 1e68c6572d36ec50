//! Names, and input that is refused before anything is touched.

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::node::{Node, flannel, native, vars, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("installed_names_answer_and_the_bare_call_explains_itself", installed),
    ("bad_input_is_refused_before_anything_is_touched", bad_input),
    ("the_hosts_own_namespace_is_refused_before_anything_is_touched", own_namespace),
    ("missing_subnet_file_asks_to_try_again", missing_subnet_file),
    ("unreadable_subnet_files_name_line_and_form", bad_subnet_file),
];

fn installed(node: &Node) {
    let dir = "/run/opt";
    std::fs::create_dir(dir).unwrap();
    let run =
        |program: &str, args: &[&str]| std::process::Command::new(program).args(args).env_clear().output().unwrap();
    let plugin = node.plugin("netd-cni");
    let output = run(plugin.to_str().unwrap(), &["install", "--as", "flannel,portmap", dir]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
    let pod = node.pod();
    let vars = vars("ADD", "web-1", pod.to_str().unwrap());
    // The name decides, although the configuration says nothing of the type.
    let conf = json!({"cniVersion": "0.3.1", "name": "cbr0"}).to_string();
    node.exec_at("/run/opt/flannel", &vars, &conf).result();
    let about = run("/run/opt/portmap", &[]);
    assert!(about.status.success() && String::from_utf8_lossy(&about.stderr).contains("0.3.1"), "{about:?}");
    let wrong = run("/run/opt/netd-cni", &["instal"]);
    assert_eq!(wrong.status.code(), Some(2));
}

fn bad_input(node: &Node) {
    let before = node.links();
    let pod = node.pod();
    let vars = vars("ADD", "web-1", pod.to_str().unwrap());
    let cases: [(String, u64, &str); 10] = [
        ("{".to_owned(), 6, "no JSON"),
        ("[]".to_owned(), 6, "no JSON object"),
        (String::new(), 6, "no JSON"),
        (with(&native(), "name", json!("")).to_string(), 7, "missing network name"),
        (with(&native(), "cniVersion", json!("9.9.9")).to_string(), 1, "config is \"9.9.9\""),
        (with(&native(), "vlan", json!(4095)).to_string(), 7, "vlan: invalid VLAN ID 4095"),
        (with(&native(), "bridge", json!("a/b")).to_string(), 7, "bridge"),
        (with(&native(), "hairpin", json!(true)).to_string(), 2, "hairpin=true"),
        (with(&flannel(), "type", json!("macvlan")).to_string(), 7, "macvlan"),
        (with(&native(), "prevResult", json!("x")).to_string(), 7, "prevResult"),
    ];
    for (stdin, code, text) in cases {
        let (found, said) = node.exec("netd-cni", &vars, &stdin).error();
        assert!(found == code && said.contains(text), "{stdin}: {found} {said}");
    }
    assert_eq!((node.links(), node.files()), (before, vec![]));
}

fn own_namespace(node: &Node) {
    let before = node.links();
    std::fs::write("/run/netns/host", "").unwrap();
    let (own, bound) = ("/proc/thread-self/ns/net", "/run/netns/host");
    mount(Some(own), bound, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    for path in ["/proc/self/ns/net", bound] {
        let (code, text) = node.verb("ADD", &native(), "web-1", path).error();
        assert!(code == 8 && text.contains("should not be the same"), "{text}");
    }
    std::fs::write("/run/netns/plain", "").unwrap();
    for path in ["/run/netns/plain", "/run/netns/never-there"] {
        let (code, text) = node.verb("ADD", &native(), "web-1", path).error();
        assert!(code == 8 && text.contains("failed to open netns"), "{text}");
        assert!(!text.to_lowercase().contains("not found") && !text.to_lowercase().contains("no such file"), "{text}");
    }
    assert_eq!((node.links(), node.files()), (before, vec![]));
}

fn missing_subnet_file(node: &Node) {
    std::fs::remove_file("/run/flannel/subnet.env").unwrap();
    for conf in [native(), flannel()] {
        let (code, text) = node.add(&conf, "web-1", &node.pod()).error();
        assert!(code == 11 && text.contains("/run/flannel/subnet.env") && text.contains("netd"), "{text}");
    }
    assert_eq!(node.files(), []);
}

fn bad_subnet_file(node: &Node) {
    let cases: [(&str, &str); 3] = [
        ("FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET\n", "line 2: FLANNEL_SUBNET"),
        ("FLANNEL_NETWORK=172.7.0.0/16\n", "is missing FLANNEL_SUBNET"),
        ("", "is missing FLANNEL_NETWORK"),
    ];
    for (text, expected) in cases {
        std::fs::write("/run/flannel/subnet.env", text).unwrap();
        let outcome = node.add(&native(), "web-1", &node.pod());
        let object: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(object["cniVersion"], json!("1.0.0"), "errors carry the configuration's version");
        let (code, said) = outcome.error();
        assert!(code == 7 && said.contains(expected), "{said}");
    }
}
