//! Killed after every single step: what a following DEL, GC or ADD leaves is what was there before, see [`HostState`].
//!
//! The plugin is held at the end of a system call that can change something outside of the process (see [`Held`]) and killed there: at the
//! first in the first round, at the second in the second, until it gets through.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guard::guarded;
use crate::held::Held;
use crate::node::{DUAL_ENV, Node, flannel, host_link, native, with};
use crate::state::HostState;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("add_killed_after_any_step_is_undone_by_del", add_then_del),
    ("add_killed_after_any_step_is_undone_by_gc", add_then_gc),
    ("add_killed_after_any_step_may_be_repeated", add_then_add),
    ("dual_stack_add_killed_after_any_step_is_undone_by_del", dual_add_then_del),
    ("flannel_add_killed_after_any_step_is_undone_by_del", flannel_add_then_del),
    ("flannel_add_killed_after_any_step_is_undone_by_gc", flannel_add_then_gc),
    ("bridge_add_killed_after_any_step_is_undone_by_del", bridge_add_then_del),
    ("bridge_add_killed_after_any_step_is_undone_by_gc", bridge_add_then_gc),
    ("bridge_del_killed_after_any_step_is_finished_by_del", bridge_del_then_del),
    ("portmap_add_killed_after_any_step_is_undone_by_del", portmap_add_then_del),
    ("portmap_add_killed_after_any_step_is_undone_by_gc", portmap_add_then_gc),
    ("del_killed_after_any_step_is_finished_by_del", del_then_del),
    ("del_killed_after_any_step_is_finished_by_gc", del_then_gc),
    ("flannel_del_killed_after_any_step_is_finished_by_del", flannel_del_then_del),
    ("portmap_del_killed_after_any_step_is_finished_by_del", portmap_del_then_del),
    ("gc_killed_after_any_step_is_finished_by_gc", gc_then_gc),
    ("gc_killed_after_any_step_is_finished_by_del", gc_then_del),
    ("flannel_gc_killed_after_any_step_is_finished_by_gc", flannel_gc_then_gc),
    ("portmap_gc_killed_after_any_step_is_finished_by_gc", portmap_gc_then_gc),
];

/// Runs one verb until its `calls`th changing system call has ended, and kills it there. `false`: it ended before.
fn killed(node: &Node, command: &str, conf: &Value, netns: &Path, calls: usize) -> bool {
    let mut verb = Held::start(node, command, conf, "victim", netns);
    let was_held = verb.advance(calls);
    if was_held {
        verb.kill();
    } else {
        verb.finish();
    }
    was_held
}

/// A verb that is killed at its first step, its second, and so on until it gets through.
pub(crate) struct Walk<'a> {
    pub(crate) node: &'a Node,
    pub(crate) command: &'static str,
    /// The configuration on its standard input.
    pub(crate) conf: &'a Value,
}

impl Walk<'_> {
    /// Before each round `prepare`, after it `finish`, and then all must be as in the beginning.
    pub(crate) fn run(&self, prepare: impl Fn(&Path) -> Option<Value>, finish: impl Fn(&Path)) {
        let Self { node, command, conf } = *self;
        let before = HostState::now();
        let mut rounds = 0;
        for calls in 1.. {
            let pod = node.pod();
            let conf = prepare(&pod).unwrap_or_else(|| conf.clone());
            let was_killed = killed(node, command, &conf, &pod, calls);
            no_link_without_reservation(node, command, calls);
            finish(&pod);
            HostState::now().must_be(&before, &format!("{command} killed after change {calls}"));
            node.remove_pod(&pod);
            if !was_killed {
                break;
            }
            rounds = calls;
        }
        assert!(rounds > 15, "only {rounds} system calls: the walk did not reach the work");
    }
}

/// An address that is free while its earlier Pod still answers for it would be given to a second one.
fn no_link_without_reservation(node: &Node, command: &str, calls: usize) {
    for id in ["victim", "dead-port"].iter().filter(|id| node.links().contains(&host_link(id))) {
        let reserved = node.files().iter().any(|(_, text)| *text == format!("{id}\r\neth0"));
        assert!(reserved, "{command} killed after change {calls}: the address of {id} is free, its link is there");
    }
}

/// The bridge, the directories and the tables are the network's: the first Pod makes them, and they stay.
pub(crate) fn used(node: &Node, conf: &Value) {
    let first = node.pod();
    node.add(conf, "first", &first).result();
    node.del(conf, "first", &first).silent();
}

pub(crate) fn with_port(conf: &Value) -> Value {
    with(conf, "runtimeConfig", json!({"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]}))
}

/// `conf` in the version that knows GC, with these containers' eth0 valid.
pub(crate) fn valid(conf: &Value, ids: &[&str]) -> Value {
    let list: Vec<Value> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    with(&with(conf, "cniVersion", json!("1.1.0")), "cni.dev/valid-attachments", json!(list))
}

pub(crate) fn gc(node: &Node, conf: &Value, ids: &[&str]) {
    let program = conf["type"].as_str().unwrap();
    node.exec(program, &[("CNI_COMMAND", "GC")], &valid(conf, ids).to_string()).silent();
}

fn add_then_del(node: &Node) {
    let conf = with_port(&native());
    used(node, &conf);
    Walk { node, command: "ADD", conf: &conf }.run(|_| None, |pod| node.del(&conf, "victim", pod).silent());
}

fn add_then_gc(node: &Node) {
    let conf = with_port(&native());
    used(node, &conf);
    Walk { node, command: "ADD", conf: &conf }.run(|_| None, |_| gc(node, &conf, &[]));
}

fn add_then_add(node: &Node) {
    let conf = with_port(&native());
    used(node, &conf);
    let again = |pod: &Path| {
        let outcome = node.add(&conf, "victim", pod);
        if !outcome.ok {
            let (code, text) = outcome.error();
            assert!(
                code == 101 && text.contains("is attached to network"),
                "only a whole attachment is in the way: {text}"
            );
        }
        node.del(&conf, "victim", pod).silent();
    };
    Walk { node, command: "ADD", conf: &conf }.run(|_| None, again);
}

fn dual_add_then_del(node: &Node) {
    fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let conf = with(&with_port(&native()), "ipMasq", json!(true));
    used(node, &conf);
    Walk { node, command: "ADD", conf: &conf }.run(|_| None, |pod| node.del(&conf, "victim", pod).silent());
}

fn flannel_add_then_del(node: &Node) {
    used(node, &flannel());
    Walk { node, command: "ADD", conf: &flannel() }.run(|_| None, |pod| node.del(&flannel(), "victim", pod).silent());
}

fn flannel_add_then_gc(node: &Node) {
    used(node, &flannel());
    Walk { node, command: "ADD", conf: &flannel() }.run(|_| None, |_| gc(node, &flannel(), &[]));
}

fn del_then_del(node: &Node) {
    let conf = with_port(&native());
    used(node, &conf);
    let attach = |pod: &Path| {
        node.add(&conf, "victim", pod).result();
        None
    };
    Walk { node, command: "DEL", conf: &conf }.run(attach, |pod| node.del(&conf, "victim", pod).silent());
}

fn del_then_gc(node: &Node) {
    let conf = with_port(&native());
    used(node, &conf);
    let attach = |pod: &Path| {
        node.add(&conf, "victim", pod).result();
        None
    };
    Walk { node, command: "DEL", conf: &conf }.run(attach, |_| gc(node, &conf, &[]));
}

fn flannel_del_then_del(node: &Node) {
    used(node, &flannel());
    let attach = |pod: &Path| {
        node.add(&flannel(), "victim", pod).result();
        None
    };
    Walk { node, command: "DEL", conf: &flannel() }.run(attach, |pod| node.del(&flannel(), "victim", pod).silent());
}

fn bridge_add_then_del(node: &Node) {
    used(node, &guarded());
    Walk { node, command: "ADD", conf: &guarded() }.run(|_| None, |pod| node.del(&guarded(), "victim", pod).silent());
}

fn bridge_add_then_gc(node: &Node) {
    used(node, &guarded());
    Walk { node, command: "ADD", conf: &guarded() }.run(|_| None, |_| gc(node, &guarded(), &[]));
}

fn bridge_del_then_del(node: &Node) {
    used(node, &guarded());
    let attach = |pod: &Path| {
        node.add(&guarded(), "victim", pod).result();
        None
    };
    Walk { node, command: "DEL", conf: &guarded() }.run(attach, |pod| node.del(&guarded(), "victim", pod).silent());
}

/// The chained `portmap` of flannel's stock configuration.
pub(crate) fn portmap() -> Value {
    with_port(&json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap"}))
}

/// Attaches container `id` and answers the chained configuration that is to open its port.
pub(crate) fn attached_for_portmap(node: &Node, id: &str, pod: &Path) -> Value {
    with(&portmap(), "prevResult", node.add(&with(&flannel(), "cniVersion", json!("1.0.0")), id, pod).result())
}

/// A chain with one Pod come and gone.
pub(crate) fn used_chain(node: &Node) {
    let first = node.pod();
    let chained = attached_for_portmap(node, "first", &first);
    node.add(&chained, "first", &first).result();
    detached_chain(node, "first", &first);
}

pub(crate) fn detached_chain(node: &Node, id: &str, pod: &Path) {
    node.del(&portmap(), id, pod).silent();
    node.del(&flannel(), id, pod).silent();
}

fn portmap_add_then_del(node: &Node) {
    used_chain(node);
    Walk { node, command: "ADD", conf: &portmap() }
        .run(|pod| Some(attached_for_portmap(node, "victim", pod)), |pod| detached_chain(node, "victim", pod));
}

fn portmap_add_then_gc(node: &Node) {
    used_chain(node);
    let collect = |_: &Path| {
        gc(node, &portmap(), &[]);
        gc(node, &flannel(), &[]);
    };
    Walk { node, command: "ADD", conf: &portmap() }.run(|pod| Some(attached_for_portmap(node, "victim", pod)), collect);
}

fn portmap_del_then_del(node: &Node) {
    used_chain(node);
    let attach = |pod: &Path| {
        let chained = attached_for_portmap(node, "victim", pod);
        node.add(&chained, "victim", pod).result();
        Some(portmap())
    };
    Walk { node, command: "DEL", conf: &portmap() }.run(attach, |pod| detached_chain(node, "victim", pod));
}

fn portmap_gc_then_gc(node: &Node) {
    used_chain(node);
    let open = |id: &str, pod: &Path, port: u16| {
        let mut chained = attached_for_portmap(node, id, pod);
        chained["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(port);
        node.add(&chained, id, pod).result();
    };
    open("alive", &node.pod(), 54);
    let attach = |pod: &Path| {
        open("dead-1", pod, 55);
        open("dead-2", &node.pod(), 56);
        None
    };
    let collect = |_: &Path| {
        gc(node, &portmap(), &["alive"]);
        gc(node, &flannel(), &["alive"]);
    };
    Walk { node, command: "GC", conf: &valid(&portmap(), &["alive"]) }.run(attach, collect);
}

/// Everything that can be left over beside the Pod `alive`: with a port, with a namespace that is gone, of an earlier
/// boot, and of the chain that ran here before us.
const DEAD: [&str; 4] = ["dead-port", "dead-netns", "dead-boot", "dead-predecessor"];

fn leave_dead(node: &Node, conf: &Value, pod: &Path) {
    let record = json!({"boot": "another", "addresses": ["172.7.21.200"], "ports": true});
    fs::write("/var/lib/cni/netd/cbr0/dead-boot@eth0", record.to_string()).unwrap();
    fs::write("/var/lib/cni/networks/cbr0/172.7.21.200", "dead-boot\r\neth0").unwrap();
    fs::write("/var/lib/cni/networks/cbr0/172.7.21.201", "dead-predecessor").unwrap();
    fs::create_dir_all("/var/lib/cni/flannel").unwrap();
    fs::write("/var/lib/cni/flannel/dead-predecessor", json!({"name": "cbr0"}).to_string()).unwrap();
    node.add(conf, "dead-port", pod).result();
    let plain = without_ports(conf);
    let (gone, _) = node.attached(&plain, "dead-netns");
    node.remove_pod(&gone);
    let link = host_link("dead-netns");
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.links().contains(&link) {
        assert!(Instant::now() < deadline, "{link} outlives its namespace");
        std::thread::yield_now();
    }
}

fn without_ports(conf: &Value) -> Value {
    with(conf, "runtimeConfig", Value::Null)
}

/// A Pod that stays: what is done to the dead must not touch it.
fn alive(node: &Node, conf: &Value) -> (PathBuf, Value) {
    let pod = node.pod();
    let mut conf = conf.clone();
    if conf["type"] == json!("netd-cni") {
        conf["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(54);
    }
    let result = node.add(&conf, "alive", &pod).result();
    (pod, result)
}

fn gc_walk(node: &Node, conf: &Value, finish: impl Fn(&Path)) {
    fs::create_dir_all("/var/lib/cni/flannel").unwrap();
    fs::set_permissions("/var/lib/cni/flannel", fs::Permissions::from_mode(0o700)).unwrap();
    used(node, conf);
    let (pod, result) = alive(node, conf);
    let leave = |pod: &Path| {
        leave_dead(node, conf, pod);
        None
    };
    Walk { node, command: "GC", conf: &valid(conf, &["alive"]) }.run(leave, finish);
    node.check(&with(conf, "runtimeConfig", Value::Null), "alive", &pod, &result).silent();
}

fn gc_then_gc(node: &Node) {
    let conf = with_port(&with(&native(), "cniVersion", json!("1.1.0")));
    gc_walk(node, &conf, |_| gc(node, &conf, &["alive"]));
}

fn gc_then_del(node: &Node) {
    let conf = with_port(&with(&native(), "cniVersion", json!("1.1.0")));
    gc_walk(node, &conf, |_| DEAD.iter().for_each(|id| node.verb("DEL", &conf, id, "").silent()));
}

fn flannel_gc_then_gc(node: &Node) {
    let conf = with(&flannel(), "cniVersion", json!("1.1.0"));
    gc_walk(node, &conf, |_| gc(node, &conf, &["alive"]));
}
