//! Every write of state and every step in the kernel of the daemons fails once, or they are killed at it: the node converges to what an
//! undisturbed run makes.
//!
//! A run begins with nothing on the node, takes in what there is and one change, and has each n-th operation fail, with another errno from one
//! to the next. What the daemon sends to etcd counts as well. A daemon that ends itself is started again, as its unit does it. `FAULTS=all` has
//! each operation fail with every errno of its kind that may pass, and the daemon killed at each fifth.
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod proxy;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use injection::{Effect, Followed, Kind, Plan, Report, launcher};
use lab::{Command, Host, Need, Process, eventually};
use netd_node::{Net, kernel_state};
use proxy::{Nodes, SERVICES, WEB_SERVICE, slice};

/// How long a daemon may take to put right what failed: it tries again after half a minute at most.
const CONVERGED: Duration = Duration::from_secs(90);
/// Each n-th operation of a run fails: a prime, so that it is another one of what is done again and again.
const STEP: usize = 37;
/// More operations than a run has: one that reaches none of its plan is counted to its end.
const NEVER: usize = usize::MAX;

/// A daemon and its node.
trait Scene {
    /// The daemon with what precedes it.
    fn daemon(&self) -> Result<Command>;
    /// The node.
    fn node(&self) -> Result<&Host>;
    /// What the node has once all is in place.
    fn state(&self) -> Result<String>;
    /// Takes away everything that the daemon made, and takes back the change.
    fn clear(&self) -> Result<()>;
    /// What the state has before and after the change, and not the other way round.
    const SIGNS: [&'static str; 2];
    /// One change of what is desired.
    fn change(&self) -> Result<()>;
    /// True when the daemon says that nothing is missing.
    fn is_in_place(&self) -> Result<bool>;
}

/// One run of a daemon, which is started again where it ended.
struct Run {
    process: Process,
    followed: Option<Followed>,
    plan: Plan,
    /// What was seen of it, all starts together.
    seen: Report,
}

impl Run {
    fn start(scene: &impl Scene, plan: &Plan) -> Result<Self> {
        let (process, followed) = Self::process(scene, plan)?;
        Ok(Self { process, followed: Some(followed), plan: plan.clone(), seen: Report::default() })
    }

    fn process(scene: &impl Scene, plan: &Plan) -> Result<(Process, Followed)> {
        let process = scene.daemon()?.start("the daemon")?;
        let followed = Followed::start(&lab::bin("injection")?, process.pid(), plan);
        Ok((process, followed))
    }

    /// Starts it again where it ended; what is left of its plan is for the next one.
    fn again(&mut self, scene: &impl Scene) -> Result<()> {
        if self.process.is_running() {
            return Ok(());
        }
        self.report();
        ensure!(!self.seen.faults.is_empty(), "it ended without a fault:\n{}", self.process.log());
        let left = self.plan.clone().into_iter().skip(self.seen.faults.len()).collect();
        let (process, followed) = Self::process(scene, &left)?;
        (self.process, self.followed) = (process, Some(followed));
        Ok(())
    }

    fn report(&mut self) {
        let report = self.followed.take().map(Followed::finish).unwrap_or_default();
        self.seen.operations = self.seen.operations.max(report.operations);
        self.seen.faults.extend(report.faults);
    }

    /// Ends it, and says what was seen of it.
    fn finish(mut self) -> Result<Report> {
        self.process.kill()?;
        self.report();
        Ok(self.seen)
    }

    /// Waits until the node is as `wanted` and the daemon says so.
    fn converges(&mut self, scene: &impl Scene, sign: &str, wanted: Option<&str>) -> Result<String> {
        let mut last = String::new();
        eventually(CONVERGED, || {
            self.again(scene)?;
            let state = scene.state()?;
            ensure!(scene.is_in_place()?, "it says that something is missing:\n{}", self.process.log());
            // Without a wanted state it is the one that stays.
            let is_wanted = wanted.map_or(state == last && state.contains(sign), |wanted| state == wanted);
            last.clone_from(&state);
            ensure!(is_wanted, "{}\n{}", differences(&state, wanted.unwrap_or("")), self.process.log());
            Ok::<_, anyhow::Error>(state)
        })
    }
}

/// The lines that are in one of two texts only.
fn differences(now: &str, wanted: &str) -> String {
    let only = |sign: &str, a: &str, b: &str| {
        let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    only("-", wanted, now) + &only("+", now, wanted)
}

/// Both states of a run with `plan`, and what has been seen of it.
fn run<S: Scene>(scene: &S, plan: &Plan, wanted: Option<&[String; 2]>) -> Result<([String; 2], Report)> {
    scene.clear()?;
    let mut run = Run::start(scene, plan)?;
    let mut converge = || {
        let first = run.converges(scene, S::SIGNS[0], wanted.map(|wanted| wanted[0].as_str()))?;
        scene.change()?;
        Ok([first, run.converges(scene, S::SIGNS[1], wanted.map(|wanted| wanted[1].as_str()))?])
    };
    let converged: Result<_> = converge();
    let seen = run.finish()?;
    let faults = seen.faults.iter().map(|(_, words)| words.as_str()).collect::<Vec<_>>().join("\n");
    Ok((converged.with_context(|| format!("its faults:\n{faults}"))?, seen))
}

/// Plans for a run of so many operations: a few, or with `FAULTS=all` each operation with each errno, and a death at each fifth.
fn plans(operations: usize) -> Vec<Plan> {
    let failing = |first: usize, errno: usize| -> Plan {
        let of_it = (first..operations).step_by(STEP).enumerate();
        of_it.map(|(turn, at)| (at, Effect::FailsForNow(turn + errno))).collect()
    };
    let killed = |at: usize| Plan::from([(at, Effect::Killed)]);
    if injection::all() {
        let errnos = |first| (0..Kind::MOST).map(move |errno| failing(first, errno));
        return (0..STEP).flat_map(errnos).chain((0..operations).step_by(5).map(killed)).collect();
    }
    (0..STEP).step_by(10).map(|first| failing(first, first)).chain([killed(operations / 2)]).collect()
}

fn every_fault_is_got_over(scene: &impl Scene) -> Result<()> {
    let (wanted, seen) = run(scene, &Plan::from([(NEVER, Effect::Killed)]), None)?;
    ensure!(wanted[0] != wanted[1], "the change changes nothing: {wanted:?}");
    ensure!(seen.operations > 50, "only {} operations", seen.operations);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for plan in plans(seen.operations) {
        let (_, seen) = run(scene, &plan, Some(&wanted)).with_context(|| format!("plan {plan:?}"))?;
        for (kind, _) in seen.faults {
            *kinds.entry(kind).or_default() += 1;
        }
    }
    println!("{} operations, {} faults: {kinds:?}", seen.operations, kinds.values().sum::<usize>());
    Ok(())
}

struct Netd(Net);

impl Scene for Netd {
    const SIGNS: [&'static str; 2] = ["172.7.22.0/24", "172.7.23.0/24"];

    fn daemon(&self) -> Result<Command> {
        let endpoints = format!("--etcd-endpoints={}", self.0.etcd.endpoints());
        let command = self.node()?.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin("netd")?);
        Ok(command.args([endpoints.as_str(), "--iface=eth0", "--ip-masq"]))
    }

    fn node(&self) -> Result<&Host> {
        self.0.host("hdss7-21")
    }

    fn state(&self) -> Result<String> {
        let node = self.node()?;
        let script = "cat /run/flannel/subnet.env; ls /run/netd | grep -v http.sock; sysctl net.ipv4.ip_forward";
        let files = node.command("sh").args(["-c", script]).output()?.stdout;
        Ok(format!("{}{files}{:?}", kernel_state(node)?, self.0.subnets()?))
    }

    fn clear(&self) -> Result<()> {
        let node = self.node()?;
        node.command(lab::bin("netd")?).args(["cleanup", "--yes", "--files"]).run()?;
        node.run(&["sysctl", "-qw", "net.ipv4.ip_forward=0"])?;
        let key = "/coreos.com/network/subnets/172.7.23.0-24";
        if self.0.etcd.get(key)?.is_some() { self.0.etcd.delete(key) } else { Ok(()) }
    }

    fn change(&self) -> Result<()> {
        self.0.put_lease("172.7.23.0-24", "10.4.7.12", "host-gw")
    }

    fn is_in_place(&self) -> Result<bool> {
        let status = self.node()?.command(lab::bin("netd")?).arg("status").output()?;
        Ok(status.status.success())
    }
}

fn netd_gets_over_every_operation_that_fails_once() -> Result<()> {
    let net = Net::start(netd_node::HOST_GW)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    every_fault_is_got_over(&Netd(net))
}

struct Proxy(Nodes);

impl Scene for Proxy {
    const SIGNS: [&'static str; 2] = ["172.7.21.2 .", "172.7.21.3 ."];

    fn daemon(&self) -> Result<Command> {
        let command = self.node()?.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin("ipvs-proxy")?);
        let command = command.arg(format!("--services-dir={SERVICES}"));
        Ok(command.args(["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]))
    }

    fn node(&self) -> Result<&Host> {
        self.0.node()
    }

    fn state(&self) -> Result<String> {
        let script = "nft -s list ruleset; ip -br link | cut -d' ' -f1; ip -4 route show table all; ls /run/ipvs-proxy | grep -v http.sock; \
                      sysctl net.ipv4.ip_forward";
        Ok(self.node()?.run(&["sh", "-c", script])?.stdout)
    }

    fn clear(&self) -> Result<()> {
        self.node()?.command(lab::bin("ipvs-proxy")?).arg("--cleanup").output()?;
        self.node()?.run(&["sh", "-c", "rm -rf /run/ipvs-proxy; sysctl -qw net.ipv4.ip_forward=0"])?;
        self.0.publish("web.yaml", WEB_SERVICE)?;
        self.0.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.2"]))
    }

    fn change(&self) -> Result<()> {
        self.0.publish("slice.yaml", &slice(&["172.7.21.3", "172.7.22.3"]))
    }

    fn is_in_place(&self) -> Result<bool> {
        let status = self.node()?.command(lab::bin("ipvs-proxy")?).arg("status").output()?;
        Ok(status.status.success())
    }
}

fn proxy_gets_over_every_operation_that_fails_once() -> Result<()> {
    every_fault_is_got_over(&Proxy(Nodes::start()?))
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![netd_gets_over_every_operation_that_fails_once, proxy_gets_over_every_operation_that_fails_once],
    )
}
