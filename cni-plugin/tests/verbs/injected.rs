//! Every write of state and every step in the kernel fails once: the verb succeeds all the same, or says what the kernel said, and what a
//! following DEL or GC leaves is what was there before, see [`HostState`].
//!
//! Which operations there are is found by running the verb ([`injection`]). `FAULTS=all` has each fail with every errno of its kind, and has the
//! verb killed before each; without it each fails with one, in turn.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use injection::{Effect, Injected, Plan, Run, effects};
use netstate::calls;
use serde_json::{Value, json};

use crate::bandwidth;
use crate::crash::{gc, used, valid, with_port};
use crate::faults::modern;
use crate::guard::guarded;
use crate::node::{DUAL_ENV, Node, Outcome, native, on_node, with};
use crate::state::HostState;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("add_with_any_operation_failing_is_whole_or_undone", add),
    ("first_add_of_a_node_with_any_operation_failing_is_whole_or_undone", first_add),
    ("bridge_add_with_any_operation_failing_is_whole_or_undone", bridge_add),
    ("del_with_any_operation_failing_is_finished_by_del", del),
    ("gc_with_any_operation_failing_is_finished_by_gc", collected),
    ("check_and_status_with_any_operation_failing_change_nothing", asked),
];

/// With limits of a Pod, where the kernel has them.
pub(crate) const LIMITED_TESTS: &[Test] = &[("limited_add_with_any_operation_failing_is_whole_or_undone", limited_add)];

/// One verb, by what a runtime gives it.
struct Verb<'a> {
    command: &'a str,
    conf: Value,
    netns: &'a Path,
}

impl Verb<'_> {
    fn run(&self, node: &Node, fault: (usize, Effect)) -> Run {
        let mut command = Command::new(node.plugin(self.conf["type"].as_str().unwrap()));
        command
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", "victim")
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/run/bin")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=default");
        injection::run(&command, &self.conf.to_string(), Plan::from([fault]))
    }
}

/// What became of a verb with a fault: it succeeded, it failed in its own words, or it was killed.
fn outcome(run: &Run, injected: &Injected) -> Option<Outcome> {
    let code = run.status.code()?;
    assert!(
        run.stderr.is_empty() || run.stderr.lines().all(|line| line.starts_with("netd-cni: ")),
        "{injected}: {}",
        run.stderr
    );
    let outcome = Outcome { ok: code == 0, stdout: run.stdout.clone(), notice: run.stderr.clone() };
    if !outcome.ok {
        let (code, text) = outcome.error();
        let errno = std::io::Error::from_raw_os_error(injected.errno.unwrap() as i32).to_string();
        let kernels = errno.split(" (").nth(1).unwrap();
        assert!(text.len() > 20 && code > 0, "{injected}: {text}");
        assert!(text.contains(kernels) || advises(&text), "{injected}: the error does not say so: {text}");
    }
    Some(outcome)
}

/// What the plugin says in its own words of an errno.
fn advises(text: &str) -> bool {
    ["descriptors", "capabilit", "CAP_", "memory", "read-only", "no space", "overrun"]
        .iter()
        .any(|word| text.contains(word))
}

/// A verb run again and again, each time with another operation failing.
pub(crate) struct Walk<'a> {
    pub(crate) node: &'a Node,
    /// Without `FAULTS=all` each so many operations one fails.
    pub(crate) step: usize,
    /// Detaches what a verb without a fault has left.
    pub(crate) undo: &'a dyn Fn(&Path),
}

impl Walk<'_> {
    /// `prepare` before each round, `finish` after each fault; all must be as in the beginning then.
    pub(crate) fn run(
        &self,
        prepare: impl Fn(&Path) -> (&'static str, Value),
        finish: impl Fn(&Path, Option<Outcome>, &Injected, &HostState),
    ) {
        let Self { node, step, undo } = *self;
        let (before, step) = (HostState::now(), if injection::all() { 1 } else { step });
        let mut kinds: BTreeMap<injection::Kind, usize> = BTreeMap::new();
        for at in (0..).step_by(step) {
            let mut reached = false;
            for effect in effects(at) {
                let pod = node.pod();
                let (command, conf) = prepare(&pod);
                let run = Verb { command, conf: conf.clone(), netns: &pod }.run(node, (at, effect));
                if let Some(injected) = &run.injected {
                    reached = true;
                    *kinds.entry(injected.operation.kind).or_default() += 1;
                    finish(&pod, outcome(&run, injected), injected, &before);
                    HostState::now().must_be(&before, &injected.to_string());
                } else {
                    assert!(run.status.success(), "{run:?}");
                    undo(&pod);
                }
                node.remove_pod(&pod);
            }
            if !reached {
                break;
            }
        }
        let all: usize = kinds.values().sum();
        println!("{all} faults: {kinds:?}");
        assert!(all * step > 8, "only {all} operations: the walk did not reach the work");
    }
}

/// ADD with each operation failing. A whole attachment passes CHECK; behind any other a second ADD succeeds; DEL undoes either.
fn add_walk(node: &Node, conf: &Value) {
    Walk { node, step: 1, undo: &|pod| node.del(conf, "victim", pod).silent() }.run(
        |_| ("ADD", conf.clone()),
        |pod, outcome, injected, before| {
            let result = match outcome.filter(|outcome| outcome.ok) {
                Some(whole) => whole.result(),
                None => {
                    node.del(conf, "victim", pod).silent();
                    HostState::now().must_be(before, &format!("{injected}, and DEL"));
                    let again = node.add(conf, "victim", pod);
                    assert!(again.ok, "{injected}: a second ADD fails: {}", again.stdout);
                    again.result()
                }
            };
            let checked = node.check(conf, "victim", pod, &result);
            assert!(checked.ok, "{injected}: CHECK of what ADD said is whole: {}", checked.stdout);
            node.del(conf, "victim", pod).silent();
        },
    );
}

fn add(node: &Node) {
    let conf = with(&with_port(&native()), "ipMasq", json!(true));
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    std::fs::create_dir_all("/run/netd").unwrap();
    std::fs::write(calls::PATH, calls::Calls::default().encode()).unwrap();
    used(node, &conf);
    add_walk(node, &conf);
}

fn bridge_add(node: &Node) {
    used(node, &guarded());
    add_walk(node, &guarded());
}

fn limited_add(node: &Node) {
    let conf = with(&native(), "runtimeConfig", bandwidth::asked());
    used(node, &conf);
    add_walk(node, &conf);
}

/// The first Pod makes what is the network's: bridge, tables, folders. Half of it is in no later ADD's way.
fn first_add(_: &Node) {
    for at in 0.. {
        let reached = Arc::new(AtomicBool::new(false));
        for effect in effects(at) {
            let reached = Arc::clone(&reached);
            on_node(move |node| {
                let conf = with(&with_port(&native()), "ipMasq", json!(true));
                let pod = node.pod();
                let run = Verb { command: "ADD", conf: conf.clone(), netns: &pod }.run(node, (at, effect));
                let Some(injected) = &run.injected else { return };
                reached.store(true, Ordering::Relaxed);
                if outcome(&run, injected).is_none_or(|outcome| !outcome.ok) {
                    node.del(&conf, "victim", &pod).silent();
                    assert!(node.files().is_empty(), "{injected}: {:?}", node.files());
                }
                let again = node.add(&conf, "victim", &pod);
                assert!(again.ok || again.stdout.contains("is attached to network"), "{injected}: {}", again.stdout);
            });
        }
        if !reached.load(Ordering::Relaxed) {
            break;
        }
    }
}

fn del(node: &Node) {
    let conf = with(&with_port(&native()), "ipMasq", json!(true));
    used(node, &conf);
    Walk { node, step: 1, undo: &|pod| node.del(&conf, "victim", pod).silent() }.run(
        |pod| {
            node.add(&conf, "victim", pod).result();
            ("DEL", conf.clone())
        },
        |pod, outcome, injected, _| {
            if outcome.is_some_and(|outcome| outcome.ok) {
                return;
            }
            let again = node.del(&conf, "victim", pod);
            assert!(again.ok, "{injected}: a second DEL fails: {}", again.stdout);
        },
    );
}

fn collected(node: &Node) {
    let conf = modern(&with_port(&native()));
    used(node, &conf);
    Walk { node, step: 1, undo: &|pod| node.del(&conf, "victim", pod).silent() }.run(
        |pod| {
            node.add(&conf, "victim", pod).result();
            ("GC", valid(&conf, &[]))
        },
        |_, outcome, _, _| {
            if outcome.is_none_or(|outcome| !outcome.ok) {
                gc(node, &conf, &[]);
            }
        },
    );
}

fn asked(node: &Node) {
    let conf = modern(&with_port(&native()));
    let pod = node.pod();
    let previous = node.add(&conf, "victim", &pod).result();
    let before = HostState::now();
    for (command, least) in [("CHECK", 10), ("STATUS", 1)] {
        for at in 0.. {
            let mut reached = false;
            for effect in effects(at) {
                let conf = with(&conf, "prevResult", previous.clone());
                let run = Verb { command, conf, netns: &pod }.run(node, (at, effect));
                if let Some(injected) = &run.injected {
                    reached = true;
                    outcome(&run, injected);
                    HostState::now().must_be(&before, &format!("{command}: {injected}"));
                }
            }
            if !reached {
                assert!(at >= least, "{command}: only {at} operations");
                break;
            }
        }
    }
}
