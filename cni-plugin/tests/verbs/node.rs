//! A node of the test's own: private network and mount namespaces, Pods, and the built plugin under any name.
//!
//! Each test runs on a thread that left the host's namespaces; what it makes disappears with the thread. The plugin
//! is executed as a runtime does it: `CNI_*` in an otherwise empty environment, configuration on standard input.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cni_plugin::{Attachment, ContainerId};
use kernel::{Netns, Rtnl};
use netstate::IfName;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const PLUGIN: &str = env!("CARGO_BIN_EXE_netd-cni");

/// Subnet file of node hdss7-21 of the reference cluster.
pub(crate) const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The same node with IPv6.
pub(crate) const DUAL_ENV: &str = "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:7::/48\nFLANNEL_IPV6_SUBNET=fd00:7:0:21::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// One node.
pub(crate) struct Node {
    dir: PathBuf,
    pods: AtomicUsize,
}

/// The end of one execution of the plugin.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    /// What an operator finds in the runtime's log.
    pub(crate) notice: String,
}

impl Outcome {
    pub(crate) fn of(output: &Output) -> Self {
        let notice = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(notice.is_empty() || notice.starts_with("netd-cni: network "), "the plugin wrote to stderr: {notice}");
        Self { ok: output.status.success(), stdout: String::from_utf8_lossy(&output.stdout).into_owned(), notice }
    }

    /// The result object.
    pub(crate) fn result(&self) -> Value {
        assert!(self.ok, "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Checks that the verb succeeded without a result.
    pub(crate) fn silent(&self) {
        assert!(self.ok && self.stdout.is_empty(), "{self:?}");
    }

    /// The error's code and text.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.ok, "succeeded: {}", self.stdout);
        let object: Value = serde_json::from_str(&self.stdout).unwrap();
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        (object["code"].as_u64().unwrap(), format!("{}; {}", text("msg"), text("details")))
    }
}

/// Runs `test` on a node of its own.
pub(crate) fn on_node(test: impl FnOnce(&Node) + Send + 'static) {
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect(
            "make mounts private, before anything is written; a chroot that is no mount point has none of its own",
        );
        for dir in ["/run", "/var/lib"] {
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        fs::create_dir_all("/run/netns").unwrap();
        fs::create_dir_all("/run/flannel").unwrap();
        fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
        let dir = PathBuf::from("/run/bin");
        fs::create_dir_all(&dir).unwrap();
        let loopback = IfName::new("lo").unwrap();
        let link = Rtnl::open().unwrap().link(&loopback).unwrap().unwrap().link;
        Rtnl::open().unwrap().set_link(&loopback, &netstate::Link { up: true, mac: None, ..link }).unwrap();
        test(&Node { dir, pods: AtomicUsize::new(0) });
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Node {
    /// The path of the plugin under `name`.
    pub(crate) fn plugin(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        if !path.exists() {
            std::os::unix::fs::symlink(PLUGIN, &path).unwrap();
        }
        path
    }

    /// A new network namespace; answers its path.
    pub(crate) fn pod(&self) -> PathBuf {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/run/netns/pod{number}"));
        File::create(&path).unwrap();
        let target = path.clone();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        })
        .join()
        .unwrap();
        path
    }

    /// Removes a namespace as a runtime does after DEL.
    pub(crate) fn remove_pod(&self, path: &Path) {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(path).unwrap();
    }

    /// Starts one verb.
    pub(crate) fn start(&self, program: &str, vars: &[(&str, &str)], stdin: &str) -> Child {
        start_at(&self.plugin(program), vars, stdin)
    }

    /// Runs one verb of the plugin at `path`.
    pub(crate) fn exec_at(&self, path: &str, vars: &[(&str, &str)], stdin: &str) -> Outcome {
        Outcome::of(&start_at(Path::new(path), vars, stdin).wait_with_output().unwrap())
    }

    /// Runs one verb with exactly `vars` as its environment.
    pub(crate) fn exec(&self, program: &str, vars: &[(&str, &str)], stdin: &str) -> Outcome {
        Outcome::of(&self.start(program, vars, stdin).wait_with_output().unwrap())
    }

    /// Runs `command` for container `id`, interface eth0.
    pub(crate) fn verb(&self, command: &str, conf: &Value, id: &str, netns: &str) -> Outcome {
        let program = conf["type"].as_str().unwrap();
        let vars = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/run/bin"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=default"),
        ];
        self.exec(program, &vars, &conf.to_string())
    }

    pub(crate) fn add(&self, conf: &Value, id: &str, netns: &Path) -> Outcome {
        self.verb("ADD", conf, id, netns.to_str().unwrap())
    }

    pub(crate) fn check(&self, conf: &Value, id: &str, netns: &Path, previous: &Value) -> Outcome {
        self.verb("CHECK", &with(conf, "prevResult", previous.clone()), id, netns.to_str().unwrap())
    }

    pub(crate) fn del(&self, conf: &Value, id: &str, netns: &Path) -> Outcome {
        self.verb("DEL", conf, id, netns.to_str().unwrap())
    }

    /// Attaches a new Pod; answers its namespace and address.
    pub(crate) fn attached(&self, conf: &Value, id: &str) -> (PathBuf, IpAddr) {
        let pod = self.pod();
        let address = first_address(&self.add(conf, id, &pod).result());
        (pod, address)
    }

    /// Names of the host's links, in order.
    pub(crate) fn links(&self) -> Vec<String> {
        let mut names: Vec<String> =
            Rtnl::open().unwrap().links().unwrap().iter().map(|l| l.name.to_string()).collect();
        names.sort();
        names
    }

    /// Everything under the state directories, with content, in order. Locks, the memory of the last address and the list of
    /// data directories are the network's, not a Pod's, and left out.
    pub(crate) fn files(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        walk(Path::new("/var/lib/cni"), &mut found);
        found.retain(|(name, _)| !["/lock", "last_reserved_ip", "/.pools/"].iter().any(|part| name.contains(part)));
        found.sort();
        found
    }
}

pub(crate) fn start_at(path: &Path, vars: &[(&str, &str)], stdin: &str) -> Child {
    let mut child = Command::new(path)
        .env_clear()
        .envs(vars.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that does not read its input (VERSION) may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child
}

fn walk(dir: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push((path.display().to_string(), String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()));
        }
    }
}

/// The name of the host end of container `id`.
pub(crate) fn host_link(id: &str) -> String {
    let container = ContainerId::new(id).unwrap();
    Attachment::new(container, IfName::new("eth0").unwrap()).host_link().to_string()
}

/// Environment of `command` for eth0 of container `id`.
pub(crate) fn vars<'a>(command: &'a str, id: &'a str, netns: &'a str) -> [(&'a str, &'a str); 4] {
    [("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0")]
}

/// A native configuration.
pub(crate) fn native() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "netd-cni"})
}

/// The first entry of flannel's stock configuration, as libcni hands it on.
pub(crate) fn flannel() -> Value {
    json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "flannel",
           "delegate": {"hairpinMode": true, "isDefaultGateway": true}})
}

/// `conf` with `key` set.
pub(crate) fn with(conf: &Value, key: &str, value: Value) -> Value {
    let mut conf = conf.clone();
    conf[key] = value;
    conf
}

/// The first address of a result.
pub(crate) fn first_address(result: &Value) -> IpAddr {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}

/// Runs `work` in the namespace at `path`.
pub(crate) fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    Netns::open(path).unwrap().run(work).unwrap()
}

/// A socket from `bind` at an address that another socket may have had a moment ago: a process that some test is starting
/// right now may still hold that one.
pub(crate) fn bound<S>(bind: impl Fn() -> io::Result<S>) -> S {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            other => return other.unwrap(),
        }
    }
}
