//! Every write of state and every step in the kernel fails once under each name of the plugin, and in the verbs of an operator.
//!
//! What follows, DEL or GC of the whole chain or the same call again, leaves what was there before, see [`HostState`].

use std::fs;
use std::path::Path;
use std::process::Command;

use injection::{Effect, Plan, effects};
use serde_json::{Value, json};

use crate::crash::{attached_for_portmap, detached_chain, gc, portmap, used, valid};
use crate::guard::guarded;
use crate::injected::Walk;
use crate::node::{Node, flannel, host_link, native, with};
use crate::state::HostState;
use crate::{bandwidth, crash, host_local};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("portmap_with_any_operation_failing_is_undone_by_its_chain", |node| all(node, &PORTMAP)),
    ("flannel_with_any_operation_failing_is_undone_by_its_chain", |node| all(node, &FLANNEL)),
    ("host_local_with_any_operation_failing_is_undone_by_its_chain", |node| all(node, &HOST_LOCAL)),
    ("bridge_with_any_operation_failing_is_undone_by_its_chain", |node| all(node, &BRIDGE)),
    ("cleanup_with_any_operation_failing_is_finished_by_the_next", cleanup),
    ("install_with_any_operation_failing_is_finished_by_the_next", install),
];

/// With limits of a Pod, where the kernel has them.
pub(crate) const LIMITED_TESTS: &[Test] = &[
    ("bandwidth_with_any_operation_failing_is_undone_by_its_chain", |node| all(node, &BANDWIDTH)),
    ("limited_del_and_gc_with_any_operation_failing_are_finished_by_the_next", |node| all(node, &LIMITED)),
];

/// Without `FAULTS=all` each so many operations one fails.
const STEP: usize = 9;

/// A name of the plugin in its chain.
struct Chain {
    /// A Pod come and gone.
    used: fn(&Node),
    /// Attaches the victim up to this plugin, and answers what it is called with then.
    before: fn(&Node, &Path) -> Value,
    /// What DEL and GC of this plugin are given.
    conf: fn() -> Value,
    /// DEL of the whole chain.
    detached: fn(&Node, &Path),
    /// GC of the whole chain.
    collected: fn(&Node),
}

const PORTMAP: Chain = Chain {
    used: crash::used_chain,
    before: |node, pod| attached_for_portmap(node, "victim", pod),
    conf: portmap,
    detached: |node, pod| detached_chain(node, "victim", pod),
    collected: |node| {
        gc(node, &portmap(), &[]);
        gc(node, &flannel(), &[]);
    },
};

const FLANNEL: Chain = alone(
    |node| used(node, &flannel()),
    flannel,
    |node, pod| node.del(&flannel(), "victim", pod).silent(),
    |node| gc(node, &flannel(), &[]),
);

const HOST_LOCAL: Chain = alone(
    |node| used(node, &host_local::walked()),
    host_local::walked,
    |node, pod| node.del(&host_local::walked(), "victim", pod).silent(),
    |node| gc(node, &host_local::walked(), &[]),
);

const BRIDGE: Chain = alone(
    |node| used(node, &guarded()),
    guarded,
    |node, pod| node.del(&guarded(), "victim", pod).silent(),
    |node| gc(node, &guarded(), &[]),
);

const BANDWIDTH: Chain = Chain {
    used: bandwidth::used_chain,
    before: bandwidth::attached,
    conf: || bandwidth::chained(&Value::Null),
    detached: bandwidth::detached,
    collected: bandwidth::collected,
};

const LIMITED: Chain = alone(
    |node| used(node, &limited()),
    limited,
    |node, pod| node.del(&limited(), "victim", pod).silent(),
    |node| gc(node, &limited(), &[]),
);

fn limited() -> Value {
    with(&native(), "runtimeConfig", bandwidth::asked())
}

/// A plugin that is first in its chain and last.
const fn alone(used: fn(&Node), conf: fn() -> Value, detached: fn(&Node, &Path), collected: fn(&Node)) -> Chain {
    Chain { used, before: |_, _| Value::Null, conf, detached, collected }
}

impl Chain {
    /// What ADD of this plugin is given.
    fn begun(&self, node: &Node, pod: &Path) -> Value {
        let conf = (self.before)(node, pod);
        if conf.is_null() { (self.conf)() } else { conf }
    }
}

/// ADD, DEL and GC of a chain.
fn all(node: &Node, chain: &Chain) {
    (chain.used)(node);
    let detached = |pod: &Path| (chain.detached)(node, pod);
    let walk = Walk { node, step: STEP, undo: &detached };
    walk.run(|pod| ("ADD", chain.begun(node, pod)), |pod, _, _, _| detached(pod));
    walk.run(|pod| ("ADD", chain.begun(node, pod)), |_, _, _, _| (chain.collected)(node));
    let attached = |pod: &Path| {
        let conf = chain.begun(node, pod);
        node.add(&conf, "victim", pod).result();
    };
    let del = |pod: &Path| {
        attached(pod);
        ("DEL", (chain.conf)())
    };
    walk.run(del, |pod, _, _, _| detached(pod));
    let collect = |pod: &Path| {
        attached(pod);
        ("GC", valid(&(chain.conf)(), &[]))
    };
    walk.run(collect, |_, _, _, _| (chain.collected)(node));
}

/// Calls a verb of an operator with each operation failing: `prepare` before, and `finish` behind the call that follows, which has to succeed.
fn operator(node: &Node, words: &[&str], prepare: impl Fn(), finish: impl Fn(&str)) {
    let (mut faults, step) = (0, if injection::all() { 1 } else { STEP });
    for at in (0..).step_by(step) {
        let reached = faults;
        for effect in effects(at) {
            prepare();
            let mut command = Command::new(node.plugin("netd-cni"));
            let run = injection::run(command.args(words), "", Plan::from([(at, effect)]));
            let Some(injected) = run.injected else { continue };
            faults += 1;
            let said = format!("{}{}", run.stdout, run.stderr);
            if let (Some(code), Some(errno)) = (run.status.code(), injected.errno) {
                let names = said.contains(&format!("(os error {})", errno as i32));
                let advises = ["capabilit", "overrun"].iter().any(|word| said.contains(word));
                assert!(code == 0 || names || advises, "{injected}: {said}");
            } else {
                assert_eq!(effect, Effect::Killed, "{injected}: {:?}", run.status);
            }
            if run.status.code() != Some(0) {
                let next = Command::new(node.plugin("netd-cni")).args(words).output().unwrap();
                assert!(next.status.success(), "{injected}: the next call: {next:?}");
            }
            finish(&format!("{injected}: {said}"));
        }
        if faults == reached {
            break;
        }
    }
    println!("{words:?}: {faults} faults");
    assert!(faults > 2, "only {faults} faults: the walk did not reach the work");
}

/// What Pods shared, what one left that nobody deleted, and its ports.
fn cleanup(node: &Node) {
    let conf = crash::with_port(&with(&native(), "ipMasq", json!(true)));
    let list = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [conf]});
    fs::write("/run/10-test.conflist", list.to_string()).unwrap();
    let before = HostState::now();
    let prepare = || {
        let (pod, _) = node.attached(&conf, "forgotten");
        node.remove_pod(&pod);
        let link = host_link("forgotten");
        crate::ports::eventually(|| !node.links().contains(&link));
    };
    operator(node, &["cleanup", "--yes", "/run/10-test.conflist"], prepare, |when| {
        let made = |line: &String| line.contains("/var/lib/cni");
        let left = HostState::now().lines().iter().filter(|line| !made(line)).cloned().collect::<Vec<_>>();
        let was = before.lines().iter().filter(|line| !made(line)).cloned().collect::<Vec<_>>();
        assert_eq!(left, was, "{when}");
        assert!(node.files().is_empty(), "{when}: {:?}", node.files());
    });
}

/// Plugins and the list that names them.
fn install(node: &Node) {
    let list = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "netd-cni"}]}).to_string();
    fs::write("/run/list", &list).unwrap();
    let prepare = || {
        let _ = fs::remove_dir_all("/run/opt");
        let _ = fs::remove_dir_all("/run/net.d");
        fs::create_dir("/run/opt").unwrap();
        fs::write("/run/opt/flannel", "the former one").unwrap();
    };
    let program = fs::read(node.plugin("netd-cni")).unwrap();
    let words = ["install", "--as", "flannel", "--conflist", "/run/list", "/run/net.d/10-netd.conflist", "/run/opt"];
    operator(node, &words, prepare, |when| {
        for (folder, names) in [("/run/opt", &["flannel", "netd-cni"][..]), ("/run/net.d", &["10-netd.conflist"])] {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            // What a call that was killed had begun is no plugin and no list.
            let mut found: Vec<String> = entries.filter(|name| !name.starts_with('.')).collect();
            found.sort();
            assert_eq!(found, names, "{when}");
        }
        for name in ["flannel", "netd-cni"] {
            assert!(fs::read(format!("/run/opt/{name}")).unwrap() == program, "{when}: {name}");
        }
        assert_eq!(fs::read_to_string("/run/net.d/10-netd.conflist").unwrap(), list, "{when}");
    });
}
