//! Many calls at once: each gets its own address, none fails, nothing stays.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{LONG, modern, verb_within};
use crate::held::Held;
use crate::node::{Node, Outcome, SUBNET_ENV, first_address, flannel, host_link, native, vars, with};
use crate::state::HostState;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("five_hundred_adds_at_once_get_five_hundred_addresses", five_hundred),
    ("adds_with_ports_at_once_on_a_fresh_node_all_succeed", ports_at_once),
    ("adds_and_dels_mixed_with_status_never_fail", mixed),
    ("del_during_add_leaves_a_whole_attachment_or_none", del_during_add),
    ("held_locks_end_in_code_11_after_a_bounded_wait", held_locks),
];

/// How many processes run at once where many shall.
const PARALLEL: usize = 32;

/// Runs `command` once for each of `pods`, [`PARALLEL`] at a time, and answers the outcomes in order.
fn at_once(node: &Node, command: &str, pods: &[(String, PathBuf)], conf: impl Fn(usize) -> Value) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut running = std::collections::VecDeque::new();
    for (number, (id, pod)) in pods.iter().enumerate() {
        if running.len() == PARALLEL {
            outcomes.extend(running.pop_front().map(finished));
        }
        running.push_back(node.start("netd-cni", &vars(command, id, pod.to_str().unwrap()), &conf(number).to_string()));
    }
    outcomes.extend(running.into_iter().map(finished));
    outcomes
}

fn finished(child: std::process::Child) -> Outcome {
    Outcome::of(&child.wait_with_output().unwrap())
}

fn pods(node: &Node, count: usize) -> Vec<(String, PathBuf)> {
    (0..count).map(|number| (format!("web-{number}"), node.pod())).collect()
}

fn addresses(outcomes: &[Outcome]) -> BTreeSet<IpAddr> {
    outcomes.iter().map(|outcome| first_address(&outcome.result())).collect()
}

/// The bridge and the directories are the network's and stay.
fn used(node: &Node, conf: &Value) -> HostState {
    let (first, _) = node.attached(conf, "first");
    node.del(conf, "first", &first).silent();
    HostState::now()
}

fn five_hundred(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", SUBNET_ENV.replace("172.7.21.1/24", "172.7.20.1/22")).unwrap();
    let before = used(node, &native());
    let pods = pods(node, 500);
    let outcomes = at_once(node, "ADD", &pods, |_| native());
    assert_eq!(addresses(&outcomes).len(), 500);
    assert_eq!(node.links().iter().filter(|name| name.starts_with("veth")).count(), 500);
    at_once(node, "DEL", &pods, |_| native()).iter().for_each(Outcome::silent);
    HostState::now().must_be(&before, "500 ADDs and DELs");
}

fn ports_at_once(node: &Node) {
    let conf = |number: usize| {
        let port = 20_000 + number;
        let mapping = json!({"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]});
        with(&with(&native(), "runtimeConfig", mapping), "ipMasq", json!(true))
    };
    let pods = pods(node, 40);
    let outcomes = at_once(node, "ADD", &pods, conf);
    assert_eq!(addresses(&outcomes).len(), 40);
    let opened = HostState::now();
    for number in 0..40 {
        assert!(format!("{opened:?}").contains(&format!("{}", 20_000 + number)), "port {number} is not open");
    }
    at_once(node, "DEL", &pods, conf).iter().for_each(Outcome::silent);
    let before = used(node, &conf(0));
    let second = at_once(node, "ADD", &pods, conf);
    assert_eq!(addresses(&second).len(), 40);
    at_once(node, "DEL", &pods, conf).iter().for_each(Outcome::silent);
    HostState::now().must_be(&before, "40 ADDs and DELs with ports");
}

fn mixed(node: &Node) {
    let before = used(node, &native());
    let pods = pods(node, 48);
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        while let Some((id, pod)) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = |command: &str| verb_within(node, LONG, &native(), &vars(command, id, pod.to_str().unwrap()));
            run("ADD").result();
            run("DEL").silent();
        }
    };
    node.plugin("netd-cni");
    let asked = thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        let asker = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                verb_within(node, LONG, &modern(&native()), &[("CNI_COMMAND", "STATUS")]).silent();
                asked += 1;
            }
            asked
        });
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        let asked = asker.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
        asked
    });
    assert!(asked > 5, "STATUS was asked {asked} times only");
    HostState::now().must_be(&before, "48 ADDs and DELs at 8 at a time");
}

fn del_during_add(node: &Node) {
    let mapping = json!({"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]});
    for conf in [with(&native(), "runtimeConfig", mapping), with(&flannel(), "cniVersion", json!("1.0.0"))] {
        let before = used(node, &conf);
        let mut outcomes = Vec::new();
        for calls in 0.. {
            let (was_held, is_whole) = del_at(node, &conf, calls);
            HostState::now().must_be(&before, &format!("DEL after change {calls} of {}", conf["type"]));
            outcomes.push(is_whole);
            if !was_held {
                break;
            }
        }
        // Before ADD's first instruction DEL comes first, after its last one DEL comes last.
        assert_eq!((outcomes.first(), outcomes.last()), (Some(&true), Some(&false)), "{outcomes:?}");
        assert!(outcomes.len() > 15, "only {} system calls: ADD did not reach the work", outcomes.len());
        let bridge = if conf["type"] == json!("flannel") { "cni0" } else { "cbr0" };
        kernel::Rtnl::open().unwrap().delete_link(&bridge.parse().unwrap()).unwrap();
    }
}

/// Runs DEL while ADD is held after its `calls`th change. Whether ADD was held there, and whether DEL came first: the attachment is whole.
fn del_at(node: &Node, conf: &Value, calls: usize) -> (bool, bool) {
    let pod = node.pod();
    let mut add = Held::start(node, "ADD", conf, "web-1", &pod);
    let was_held = add.advance(calls);
    let vars = vars("DEL", "web-1", pod.to_str().unwrap());
    let mut del = node.start(conf["type"].as_str().unwrap(), &vars, &conf.to_string());
    let start = Instant::now();
    while del.try_wait().unwrap().is_none() && !waits_for_a_lock(del.id()) {
        assert!(start.elapsed() < LONG, "DEL neither ended nor waits for ADD");
        thread::sleep(Duration::from_millis(1));
    }
    let result = add.finish().result();
    finished(del).silent();
    let is_whole = node.links().contains(&host_link("web-1"));
    if is_whole {
        node.check(conf, "web-1", &pod, &result).silent();
        node.del(conf, "web-1", &pod).silent();
    }
    node.remove_pod(&pod);
    (was_held, is_whole)
}

/// Whether a process waits for a lock of flock(2) that another one holds (proc_locks(5)).
fn waits_for_a_lock(process: u32) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"->") && words.contains(&process.to_string().as_str())
    })
}

fn held_locks(node: &Node) {
    let (pod, _) = node.attached(&native(), "web-1");
    let before = HostState::now();
    let held = |path: &str| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        file.lock().unwrap();
        file
    };
    let record = held("/var/lib/cni/netd/cbr0/web-1@eth0");
    let reservations = held("/var/lib/cni/networks/cbr0/lock");
    let refused = |command: &str, id: &str, netns: &str, words: &str| {
        let (code, text) = verb_within(node, LONG, &native(), &vars(command, id, netns)).error();
        assert!(code == 11 && text.contains(words), "{command} {id}: {code} {text}");
    };
    let (path, other) = (pod.to_str().unwrap(), node.pod());
    let start = Instant::now();
    thread::scope(|scope| {
        for (command, id, netns, words) in [
            ("ADD", "web-1", path, "another call has worked on interface eth0 of container web-1"),
            ("DEL", "web-1", path, "another call has worked on interface eth0 of container web-1"),
            ("ADD", "web-2", other.to_str().unwrap(), "networks/cbr0/lock was held by another process"),
        ] {
            let refused = &refused;
            scope.spawn(move || {
                refused(command, id, netns, words);
            });
        }
        scope.spawn(|| {
            // STATUS and VERSION wait for nobody.
            verb_within(node, Duration::from_secs(4), &modern(&native()), &[("CNI_COMMAND", "STATUS")]).silent();
        });
    });
    assert!(start.elapsed() < LONG);
    drop((record, reservations));
    HostState::now().must_be(&before, "refused calls");
    node.del(&native(), "web-1", &pod).silent();
}
