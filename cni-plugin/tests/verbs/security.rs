//! What others must not be able to do through the plugin: read state, have it write or look elsewhere, name paths.
//!
//! The files and what is allowed are named in the README.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::faults::links::traced;
use crate::faults::modern;
use crate::node::{DUAL_ENV, Node, Outcome, first_address, flannel, host_link, native, vars, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("state_is_for_root_only_after_every_verb_whatever_the_umask", modes),
    ("planted_symbolic_links_are_not_followed_and_reveal_nothing", symbolic_links),
    ("names_from_outside_never_become_paths", names),
    ("two_capabilities_are_enough_for_every_verb_and_name", capabilities),
    ("status_takes_no_lock_and_lists_no_kernel_table", status_calls),
    ("status_knows_pods_on_a_bridge_that_was_there_before", adopted_bridge),
    ("version_opens_nothing_but_what_starting_a_program_opens", version_calls),
];

const SECRET: &str = "root:hunter2:19000:0:99999:7:::";

/// Every verb of every name that keeps something, for container `id`, in the order of a Pod's life; `run` executes one.
fn life(id: &str, run: &mut dyn FnMut(&str, &Value) -> Outcome) {
    let mapping = json!({"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]});
    let valid = json!([{"containerID": id, "ifname": "eth0"}]);
    let host_local = json!({"cniVersion": "1.1.0", "name": "apart", "type": "host-local",
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}});
    let guarded = json!({"cniVersion": "1.1.0", "name": "wired", "type": "bridge", "bridge": "br8", "isGateway": true,
        "ipMasq": true, "macspoofchk": true, "ipam": {"type": "host-local", "subnet": "10.8.8.0/24"}});
    for conf in [with(&native(), "runtimeConfig", mapping.clone()), flannel(), host_local, guarded] {
        let conf = modern(&conf);
        let result = run("ADD", &conf).result();
        run("CHECK", &with(&conf, "prevResult", result.clone())).silent();
        if conf["type"] == json!("flannel") {
            let chained = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "runtimeConfig": mapping,
                "prevResult": result});
            run("ADD", &chained).result();
            run("CHECK", &chained).silent();
            run("GC", &with(&chained, "cni.dev/valid-attachments", valid.clone())).silent();
            run("DEL", &chained).silent();
        }
        run("STATUS", &conf).silent();
        run("GC", &with(&conf, "cni.dev/valid-attachments", valid.clone())).silent();
        run("DEL", &conf).silent();
        run("ADD", &conf).result();
        run("GC", &conf).silent();
    }
}

fn modes(node: &Node) {
    let pod = node.pod();
    let mut run = |command: &str, conf: &Value| {
        fs::write("/run/stdin", conf.to_string()).unwrap();
        let mut plugin = Command::new(node.plugin(conf["type"].as_str().unwrap()));
        plugin.env_clear().envs(vars(command, "web-1", pod.to_str().unwrap()));
        plugin.stdin(fs::File::open("/run/stdin").unwrap());
        let open_to_all = || {
            nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            Ok(())
        };
        // SAFETY: umask(2) is one system call on no memory of ours.
        #[allow(unsafe_code)]
        let outcome = Outcome::of(&unsafe { plugin.pre_exec(open_to_all) }.output().unwrap());
        private(Path::new("/var/lib/cni"), &format!("after {command} of {}", conf["type"]));
        outcome
    };
    life("web-1", &mut run);
}

fn private(path: &Path, when: &str) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let wanted = if meta.is_dir() { 0o700 } else { 0o600 };
    assert_eq!(meta.permissions().mode() & 0o7777, wanted, "{} {when}", path.display());
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
    if meta.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| private(&entry.unwrap().path(), when));
    }
}

/// A directory with files that nobody may touch, as a link could lead to.
fn treasure() -> PathBuf {
    let dir = PathBuf::from("/run/treasure");
    let _ = fs::remove_dir_all(&dir);
    for below in ["", "cbr0", "netd/cbr0"] {
        fs::create_dir_all(dir.join(below)).unwrap();
        for name in ["web-1", "web-1@eth0", "172.7.21.2", "lock", "last_reserved_ip.0", "file"] {
            fs::write(dir.join(below).join(name), SECRET).unwrap();
        }
    }
    dir
}

/// Names, contents and times of everything below `dir`.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>, i64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap(), meta.ctime_nsec()));
        }
    }
    found.sort();
    found
}

fn symbolic_links(node: &Node) {
    let treasure = treasure();
    let before = contents(&treasure);
    let places = [
        ("/var/lib/cni/netd", ""),
        ("/var/lib/cni/netd/cbr0", "cbr0"),
        ("/var/lib/cni/netd/cbr0/web-1@eth0", "file"),
        ("/var/lib/cni/netd/.ports", ""),
        ("/var/lib/cni/netd/.ports/cbr0", "cbr0"),
        ("/var/lib/cni/netd/.ports/cbr0/web-1@eth0", "file"),
        ("/var/lib/cni/netd/.shape", ""),
        ("/var/lib/cni/netd/.shape/cbr0", "cbr0"),
        ("/var/lib/cni/netd/.shape/cbr0/web-1@eth0", "file"),
        ("/var/lib/cni/networks/.owners", ""),
        ("/var/lib/cni/networks/.owners/cbr0", "cbr0"),
        ("/var/lib/cni/networks/.owners/cbr0/web-1@eth0", "file"),
        ("/var/lib/cni/networks/cbr0", "cbr0"),
        ("/var/lib/cni/networks/cbr0/lock", "file"),
        ("/var/lib/cni/networks/cbr0/172.7.21.2", "file"),
        ("/var/lib/cni/networks/cbr0/last_reserved_ip.0", "file"),
        ("/var/lib/cni/flannel", ""),
        ("/var/lib/cni/flannel/web-1", "file"),
        ("/var/lib/cni/flannel/.web-1", "file"),
        ("/run/flannel/subnet.env", "file"),
    ];
    for (place, target) in places {
        let chained = ["portmap", "bandwidth"].map(|name| modern(&json!({"name": "cbr0", "type": name})));
        let host_local = json!({"name": "cbr0", "type": "host-local", "ipam": {"subnet": "172.7.21.0/24"}});
        for conf in [modern(&native()), modern(&flannel()), modern(&host_local)].into_iter().chain(chained) {
            let _ = fs::remove_dir_all("/var/lib/cni");
            let subnet = fs::read("/run/flannel/subnet.env").unwrap();
            fs::create_dir_all(Path::new(place).parent().unwrap()).unwrap();
            let _ = fs::remove_file(place);
            symlink(treasure.join(target), place).unwrap();
            let pod = node.pod();
            let mapping = json!({"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]});
            let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "172.7.21.9/24"}]});
            let mut conf = conf;
            if conf["type"] == json!("portmap") {
                conf["runtimeConfig"] = mapping;
                conf["prevResult"] = result;
            }
            for command in ["STATUS", "ADD", "STATUS", "DEL", "GC"] {
                let outcome = node.verb(command, &conf, "web-1", pod.to_str().unwrap());
                assert!(!outcome.stdout.contains("hunter2"), "{command} with {place}: {}", outcome.stdout);
                if !outcome.ok {
                    outcome.error();
                }
                let now = contents(&treasure);
                assert!(now == before, "{command} of {} went through {place}: {now:?}", conf["type"]);
            }
            fs::remove_file(place).unwrap_or_default();
            fs::remove_file("/run/flannel/subnet.env").unwrap_or_default();
            fs::write("/run/flannel/subnet.env", subnet).unwrap();
            node.verb("DEL", &conf, "web-1", "").silent();
            node.remove_pod(&pod);
        }
    }
}

fn names(node: &Node) {
    let treasure = treasure();
    let before = contents(&treasure);
    let pod = node.pod();
    let path = pod.to_str().unwrap();
    let long = "x".repeat(201);
    let up = "../../../../run/treasure/web-1";
    for bad in ["", ".", "..", ".ports", ".owners", "/run/treasure", up, "a/b", "a\u{0}b", "a\nb", &long] {
        for conf in [native(), flannel()] {
            let conf = modern(&with(&conf, "name", json!(bad)));
            for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
                assert_eq!(node.verb(command, &conf, "web-1", path).error().0, 7, "{command} with name {bad:?}");
            }
        }
        if bad.contains('\u{0}') {
            continue;
        }
        for command in ["ADD", "CHECK", "DEL"] {
            assert_eq!(node.verb(command, &native(), bad, path).error().0, 4, "{command} with container {bad:?}");
            let mut vars = vars(command, "web-1", path);
            vars[3].1 = bad;
            if bad.starts_with('.') && bad.len() > 2 {
                // A name that an interface may have, and a file: it is never one by itself.
                continue;
            }
            assert_eq!(
                node.exec("netd-cni", &vars, &native().to_string()).error().0,
                4,
                "{command} with ifname {bad:?}"
            );
        }
    }
    // Names that come out of files and lists: of a reservation, a record, a valid attachment.
    node.add(&native(), "web-1", &pod).result();
    for (number, bad) in ["..", up, "/run/treasure/web-1", ".ports"].into_iter().enumerate() {
        let file = format!("/var/lib/cni/networks/cbr0/172.7.21.{}", 100 + number);
        fs::write(&file, format!("{bad}\r\neth0")).unwrap();
        fs::write(format!("{file}0"), bad).unwrap();
        let listed = json!([{"containerID": bad, "ifname": "eth0"}]);
        for conf in [modern(&native()), modern(&flannel())] {
            let conf = with(&conf, "cni.dev/valid-attachments", listed.clone());
            assert_eq!(node.verb("GC", &conf, "", "").error().0, 7, "{bad}");
            let _ = node.verb("GC", &modern(&flannel()), "", "");
        }
    }
    assert_eq!(contents(&treasure), before);
    assert!(!node.links().contains(&host_link("web-1")), "GC did its work among them");
}

/// The capabilities that every verb gets by with.
pub(crate) const ENOUGH: &str = "+net_admin,+sys_admin";

/// Runs one verb for `web-1` in `pod` with only the capabilities in `set`.
pub(crate) fn with_capabilities(node: &Node, pod: &Path, set: &str, command: &str, conf: &Value) -> Outcome {
    fs::write("/run/stdin", conf.to_string()).unwrap();
    let mut setpriv = Command::new("setpriv");
    setpriv.arg(format!("--bounding-set=-all,{set}")).arg(node.plugin(conf["type"].as_str().unwrap()));
    setpriv.env_clear().env("PATH", "/usr/bin:/bin").envs(vars(command, "web-1", pod.to_str().unwrap()));
    Outcome::of(&setpriv.stdin(fs::File::open("/run/stdin").unwrap()).output().unwrap())
}

fn capabilities(node: &Node) {
    fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let pod = node.pod();
    let limited = |set: &str, command: &str, conf: &Value| with_capabilities(node, &pod, set, command, conf);
    life("web-1", &mut |command, conf| limited(ENOUGH, command, &with_masquerade(conf)));
    let loopback = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    for command in ["ADD", "CHECK", "DEL"] {
        assert!(limited(ENOUGH, command, &loopback).ok);
    }
    // STATUS and VERSION need none.
    for command in ["STATUS", "VERSION"] {
        let outcome = limited("-net_admin", command, &modern(&native()));
        assert!(outcome.ok, "{}", outcome.stdout);
    }
    // One alone is not enough, and says so.
    for set in ["+net_admin", "+sys_admin"] {
        let before = node.files();
        let (_, text) = limited(set, "ADD", &native()).error();
        assert!(text.contains("Operation not permitted"), "with {set}: {text}");
        assert_eq!(node.files(), before, "with {set}");
    }
    assert!(!node.links().contains(&host_link("web-1")));
}

fn with_masquerade(conf: &Value) -> Value {
    if conf["type"] == json!("netd-cni") { with(conf, "ipMasq", json!(true)) } else { conf.clone() }
}

/// Checks a trace of STATUS: it locks nothing, and asks no kernel table for everything.
fn light(trace: &str, when: &str) {
    for call in ["flock(", "F_SETLK", "NLM_F_DUMP", "fork(", "mkdir", "unlink", "O_CREAT", "O_WRONLY"] {
        let found: Vec<&str> = trace.lines().filter(|line| line.contains(call)).collect();
        // O_RDWR|O_CREAT would show as well; the runtime library opens /dev/null only where a stream is missing.
        assert!(found.is_empty(), "{when}: {found:#?}");
    }
    // Otherwise a listing could not be distinguished from anything else.
    assert!(trace.contains("nlmsg_flags=NLM_F_REQUEST"), "{when}: strace does not read netlink");
    assert!(trace.contains("subnet.env"), "{when}: STATUS read nothing:\n{trace}");
}

fn status_calls(node: &Node) {
    for conf in [modern(&native()), modern(&flannel())] {
        let status = |when: &str| light(&traced(node, &conf, "STATUS", "", ""), when);
        status("on a fresh node");
        let pods: Vec<_> = (0..4).map(|n| (node.attached(&conf, &format!("web-{n}")).0, format!("web-{n}"))).collect();
        status("with Pods");
        // Full, of leftovers: one of them is enough to know that ADD will find an address.
        for host in 6..=254 {
            let name = format!("/var/lib/cni/networks/cbr0/172.7.21.{host}");
            fs::write(name, format!("old{host}\r\neth0")).unwrap();
            let record = json!({"boot": "another", "addresses": []});
            fs::write(format!("/var/lib/cni/netd/cbr0/old{host}@eth0"), record.to_string()).unwrap();
        }
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let memory = fs::File::options().write(true).open("/var/lib/cni/networks/cbr0/last_reserved_ip.0").unwrap();
        memory.set_modified(long_ago).unwrap();
        status("when the range is full");
        for (pod, id) in pods {
            node.del(&conf, &id, &pod).silent();
        }
        fs::remove_dir_all("/var/lib/cni").unwrap();
        let bridge = if conf["type"] == json!("flannel") { "cni0" } else { "cbr0" };
        kernel::Rtnl::open().unwrap().delete_link(&bridge.parse().unwrap()).unwrap();
    }
}

fn adopted_bridge(node: &Node) {
    // flannel's bridge is there, with Pods; the native name joins it.
    node.attached(&flannel(), "web-1");
    let (pod, _) = node.attached(&native(), "web-2");
    let conf = modern(&native());
    let status = || node.verb("STATUS", &conf, "", "");
    status().silent();
    light(&traced(node, &conf, "STATUS", "", ""), "with a bridge that was there before");
    kernel::Rtnl::open().unwrap().delete_link(&"cni0".parse().unwrap()).unwrap();
    let (code, text) = status().error();
    assert!(code == 51 && text.contains("is gone"), "{text}");
    node.del(&native(), "web-2", &pod).silent();
    node.verb("DEL", &flannel(), "web-1", "").silent();
    status().silent();
    let address = first_address(&node.add(&native(), "web-3", &node.pod()).result());
    assert!(address.is_ipv4());
}

fn version_calls(node: &Node) {
    let trace = traced(node, &native(), "VERSION", "", "");
    for line in trace.lines().filter(|line| line.contains("open")) {
        let is_of_start =
            ["/lib", "/etc/ld.so", "/proc/self", "/sys/", "/usr/lib"].iter().any(|path| line.contains(path));
        assert!(is_of_start, "{line}");
    }
    assert!(!trace.contains("NETLINK"), "{trace}");
}
