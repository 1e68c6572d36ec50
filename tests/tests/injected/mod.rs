//! Every write of state and every step in the kernel of a daemon fails once, or it is killed at it: the node converges to what an undisturbed
//! run makes.
//!
//! A run begins with nothing on the node, takes in what there is and one change, and has each n-th operation fail, with another errno from one
//! to the next. What the daemon sends to its source counts as well. A daemon that ends itself is started again, as its unit does it. `FAULTS=all`
//! has each operation fail with every errno of its kind, and the daemon killed at each; `FAULTS_PART=2/4` takes of each four of its runs the
//! second, so that four machines walk beside each other. `FAULTS_JOBS=4` has four runs beside each other on this one.
//!
//! Invariant: a fault is got over within [`CONVERGED`], and nothing but the faults of its plan is done to a run.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

pub(crate) mod netd;
pub(crate) mod netd_verbs;
pub(crate) mod proxy;
pub(crate) mod proxy_verbs;
pub(crate) mod verbs;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use injection::{Effect, Followed, Kind, Plan, Report};
use lab::{Command, Host, Process, eventually};

/// How long a daemon may take to put right what failed: a minute is the longest pause, and its audit's, and the faults before it take as long.
pub(crate) const CONVERGED: Duration = Duration::from_secs(150);
/// Each n-th operation of a run fails: a prime, so that it is another one of what is done again and again.
const SPARSE: usize = 37;
/// The same with `FAULTS=all`, unless a scene says otherwise: more than one try of a listing has, which would meet a fault each time and
/// wait ever longer.
const DENSE: usize = 23;
/// Starts of one run that are killed, one after the other.
const DEATHS: usize = 8;
/// More operations than a run has: one that reaches none of its plan is counted to its end.
const NEVER: usize = usize::MAX;

/// The variable that names a part of the runs.
const PART: &str = "FAULTS_PART";
/// The variable that says how many runs are beside each other.
const JOBS: &str = "FAULTS_JOBS";

/// A walk ends when so many of its runs have failed.
const MANY: usize = 5;

/// A daemon and its node.
pub(crate) trait Scene {
    /// The daemon with what precedes it.
    fn daemon(&self) -> Result<Command>;
    /// The node.
    fn node(&self) -> Result<&Host>;
    /// What the node has once all is in place.
    fn state(&self) -> Result<String>;
    /// Takes away everything that the daemon made, and takes back the change.
    fn clear(&self) -> Result<()>;
    /// What the state has before and after the change, and not the other way round.
    fn signs(&self) -> [&'static str; 2];
    /// One change of what is desired.
    fn change(&self) -> Result<()>;
    /// Asks the daemon, which says that nothing is missing.
    fn is_in_place(&self) -> Result<()>;
    /// How far apart operations are that fail, with `FAULTS=all`: a prime.
    fn apart(&self) -> usize {
        DENSE
    }
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

    /// Starts it again where it ended; what is left of its plan is for the next one. Says whether it did.
    fn again(&mut self, scene: &impl Scene) -> Result<bool> {
        if self.process.is_running() {
            return Ok(false);
        }
        self.report();
        ensure!(!self.seen.faults.is_empty(), "it ended without a fault:\n{}", self.process.log());
        let left = self.plan.clone().into_iter().skip(self.seen.faults.len()).collect();
        let (process, followed) = Self::process(scene, &left)?;
        (self.process, self.followed) = (process, Some(followed));
        Ok(true)
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
            ensure!(!self.again(scene)?, "it has just been started again");
            // One question, where the state is many.
            scene.is_in_place().with_context(|| self.process.log())?;
            let state = scene.state()?;
            // Without a wanted state it is the one that stays.
            let is_wanted = wanted.map_or(state == last && state.contains(sign), |wanted| state == wanted);
            last.clone_from(&state);
            ensure!(is_wanted, "{}\n{}", differences(&state, wanted.unwrap_or("")), self.process.log());
            Ok::<_, anyhow::Error>(state)
        })
    }
}

/// The `status` of a daemon, which says that nothing is missing.
pub(crate) fn says_all_in_place(node: &Host, program: &str) -> Result<()> {
    let status = node.command(lab::bin(program)?).arg("status").output()?;
    ensure!(status.status.success(), "it says that something is missing: {}{}", status.stdout, status.stderr);
    Ok(())
}

/// The lines that are in one of two texts only.
fn differences(now: &str, wanted: &str) -> String {
    let only = |sign: &str, a: &str, b: &str| {
        let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    only("-", wanted, now) + &only("+", now, wanted)
}

/// The rules of a node, with tables and what is in them in the order of their names: the kernel has them in the order in which they were
/// made. Elements with a time are left out: they say who has asked, and which endpoint has just left.
pub(crate) fn rules(node: &Host) -> Result<String> {
    let script = r"nft -s list ruleset | sed 's,whole since [0-9]*,whole,' | sed -zE 's/\t+elements = [{][^}]*timeout[^}]*[}]\n//g'";
    let listed = node.run(&["sh", "-c", script])?.stdout;
    let (mut table, mut objects) = ("", Vec::new());
    for line in listed.lines().filter(|line| !line.is_empty() && *line != "}") {
        let is_object = line.ends_with('{') && line.starts_with('\t') && !line.starts_with("\t\t");
        match objects.last_mut() {
            _ if line.starts_with("table ") => {
                table = line;
                objects.push(line.to_owned());
            }
            Some(object) if !is_object => *object += &format!("\n{line}"),
            _ => objects.push(format!("{table} {}", line.trim_start())),
        }
    }
    objects.sort_unstable();
    Ok(objects.join("\n") + "\n")
}

/// Both states of a run with `plan`, and what has been seen of it.
fn run(scene: &impl Scene, plan: &Plan, wanted: Option<&[String; 2]>) -> Result<([String; 2], Report)> {
    scene.clear()?;
    let mut run = Run::start(scene, plan)?;
    let mut converge = || {
        let first = run.converges(scene, scene.signs()[0], wanted.map(|wanted| wanted[0].as_str()))?;
        scene.change()?;
        Ok([first, run.converges(scene, scene.signs()[1], wanted.map(|wanted| wanted[1].as_str()))?])
    };
    let converged: Result<_> = converge();
    let seen = run.finish()?;
    let faults = seen.faults.iter().map(|(_, words)| words.as_str()).collect::<Vec<_>>().join("\n");
    Ok((converged.with_context(|| format!("its faults:\n{faults}"))?, seen))
}

/// Plans for a run of so many operations: `sample` of them, the last with a death at its end, or with `FAULTS=all` each operation with each
/// errno, and a death at each.
fn plans(operations: usize, sample: usize, dense: usize) -> Vec<Plan> {
    let step = if injection::all() { dense } else { SPARSE };
    let failing = |first: usize, errno: usize| -> Plan {
        let of_it = (first..operations).step_by(step).enumerate();
        of_it.map(|(turn, at)| (at, Effect::Fails(turn + errno))).collect()
    };
    if injection::all() {
        let each = |errno| (0..step).map(move |first| failing(first, errno));
        // Each start dies later than the one before it.
        let apart = operations / DEATHS + 1;
        let deaths = |first| (first..operations).step_by(apart).map(|at| (at, Effect::Killed)).collect();
        return (0..Kind::MOST).flat_map(each).chain((0..apart).map(deaths)).collect();
    }
    let mut plans: Vec<Plan> =
        (0..step).step_by(step / sample).take(sample).map(|first| failing(first, first)).collect();
    plans.iter_mut().next_back().map(|plan| plan.insert(operations / 2, Effect::Killed));
    plans
}

/// Which of how many parts of the runs is walked, from 0: all of them unless `FAULTS_PART` says otherwise.
pub(crate) fn part() -> Result<(usize, usize)> {
    let Ok(text) = std::env::var(PART) else { return Ok((0, 1)) };
    let numbers = text.split_once('/').and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)));
    let (part, parts): (usize, usize) = numbers.with_context(|| format!("{PART} is {text:?}, not such as 2/4"))?;
    ensure!((1..=parts).contains(&part), "{PART} is {text:?}: a part from 1 to the number of parts");
    Ok((part - 1, parts))
}

/// A walk by several scenes beside each other: a run mostly waits for what is tried again.
struct Walk {
    begun: Instant,
    plans: Vec<Plan>,
    part: usize,
    parts: usize,
    /// How many plans of its part have begun.
    taken: AtomicUsize,
    found: Mutex<Found>,
}

/// What the runs of a walk have met.
#[derive(Default)]
struct Found {
    kinds: BTreeMap<String, usize>,
    failed: Vec<String>,
}

impl Walk {
    fn new(plans: Vec<Plan>) -> Result<Self> {
        let (part, parts) = part()?;
        let (begun, taken, found) = (Instant::now(), AtomicUsize::new(0), Mutex::default());
        Ok(Self { begun, plans, part, parts, taken, found })
    }

    /// A plan that nobody has begun, until there is none or too many have failed.
    fn next(&self) -> Option<(usize, &Plan)> {
        let failed = self.found.lock().unwrap_or_else(PoisonError::into_inner).failed.len();
        let number = self.part + self.taken.fetch_add(1, Ordering::Relaxed) * self.parts;
        self.plans.get(number).filter(|_| failed < MANY).map(|plan| (number, plan))
    }

    /// Takes plan by plan; the scene's states are `wanted` without faults.
    fn follow(&self, scene: &impl Scene, wanted: &[String; 2]) {
        while let Some((number, plan)) = self.next() {
            if injection::all() {
                eprintln!("run {number} of {}, {} s", self.plans.len(), self.begun.elapsed().as_secs());
            }
            let ended = run(scene, plan, Some(wanted)).with_context(|| format!("plan {plan:?}"));
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            match ended {
                Ok((_, seen)) => {
                    seen.faults.into_iter().for_each(|(kind, _)| *found.kinds.entry(kind).or_default() += 1)
                }
                Err(error) => found.failed.push(format!("{error:?}")),
            }
        }
    }

    fn finish(self, operations: usize) -> Result<()> {
        let Found { kinds, failed } = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let runs = self.plans.len().saturating_sub(self.part).div_ceil(self.parts);
        let (faults, seconds) = (kinds.values().sum::<usize>(), self.begun.elapsed().as_secs());
        println!("{operations} operations, {faults} faults in {runs} runs and {seconds} s: {kinds:?}");
        ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
        Ok(())
    }
}

/// Both states of a scene without faults, and how many operations led there.
fn undisturbed(scene: &impl Scene) -> Result<([String; 2], usize)> {
    let (wanted, seen) = run(scene, &Plan::from([(NEVER, Effect::Killed)]), None)?;
    ensure!(wanted[0] != wanted[1], "the change changes nothing: {wanted:?}");
    ensure!(seen.operations > 50, "only {} operations", seen.operations);
    Ok((wanted, seen.operations))
}

/// Walks scenes that `start` makes; without `FAULTS=all` by `sample` runs.
pub(crate) fn every_fault_is_got_over<S: Scene + Send>(
    start: impl Fn() -> Result<S> + Sync,
    sample: usize,
) -> Result<()> {
    let scene = start()?;
    let (wanted, operations) = undisturbed(&scene)?;
    let walk = Walk::new(plans(operations, sample, scene.apart()))?;
    let others = || -> Result<()> {
        let scene = start()?;
        walk.follow(&scene, &undisturbed(&scene)?.0);
        Ok(())
    };
    let jobs = jobs()?;
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..jobs).map(|_| scope.spawn(others)).collect();
        walk.follow(&scene, &wanted);
        let ends =
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.collect::<Result<Vec<()>>>()
    })?;
    walk.finish(operations)
}

/// The same of a scene of which there is one at a time.
pub(crate) fn every_fault_is_got_over_alone(scene: &impl Scene, sample: usize) -> Result<()> {
    let (wanted, operations) = undisturbed(scene)?;
    let walk = Walk::new(plans(operations, sample, scene.apart()))?;
    walk.follow(scene, &wanted);
    walk.finish(operations)
}

/// How many scenes of one walk are beside each other: one, unless `FAULTS_JOBS` says otherwise.
fn jobs() -> Result<usize> {
    let Ok(text) = std::env::var(JOBS) else { return Ok(1) };
    text.parse().ok().filter(|jobs| (1..=64).contains(jobs)).with_context(|| format!("{JOBS} is {text:?}, not 1 to 64"))
}
