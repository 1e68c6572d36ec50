//! Recorded cases against `ipvs-proxy`: objects go into its directory, clients ask, and what they see is compared.
//!
//! Invariant: nothing is asked before the proxy's status shows the last object of the step, and tracked connections of n1 are
//! emptied between. What differs is reported with case, step, client and destination; what is expected to differ stands in [`purpose`].

pub(crate) mod client;
mod flows;
mod health;
mod judge;
mod kept;
mod machines;
mod moved;
mod objects;
mod opened;
pub(crate) mod purpose;
mod script;
mod server;
mod timed;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Process, eventually};
use netstate::{IpFamily, Protocol};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oracle::{Case, Outcome, Probe, Run, Script, Seen, Step};
use serde_json::Value;

use client::{Target, Transport};
use judge::{Sight, Verdict};
use machines::Machines;
use objects::Objects;

const SOON: Duration = Duration::from_secs(60);
const SERVICES: &str = "/run/services";

/// How long the recorded clients waited.
const PATIENCE: Duration = Duration::from_millis(1800);
/// How long those wait once more that got no answer where kube-proxy gave one, on a machine that may have other work.
const LONG_PATIENCE: Duration = Duration::from_secs(6);
/// How often one client asks one address anew until all endpoints have answered: of four one is left out 240 times in 10^-30.
const ROUNDS: usize = 20;

/// How `ipvs-proxy` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The data path, as `--proxy-mode` has it.
    pub(crate) path: &'static str,
    /// The recorded run that it is compared with.
    pub(crate) run: Run,
    /// What this run adds to the command line.
    pub(crate) flags: &'static [&'static str],
}

/// One difference.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    pub(crate) family: IpFamily,
    pub(crate) text: String,
}

/// A case in one of the set-ups.
type Job = (usize, Case);

/// Makes all cases of all set-ups and compares them, some beside each other on machines of their own.
pub(crate) fn replay(settings: &[Setting], lanes: usize) -> Result<()> {
    // Thousands of connections at once, more than a login shell allows by itself.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (jobs, found) = (Mutex::new(jobs(settings)), Mutex::new(vec![BTreeMap::new(); settings.len()]));
    let lane = || -> Result<()> {
        let mut player: Option<Player> = None;
        let mut last = 0;
        loop {
            let Some((number, case)) = next(&mut jobs.lock().unwrap(), last) else { return Ok(()) };
            last = number;
            let player = match &mut player {
                Some(player) => player,
                none => none.insert(Player::new(settings[number])?),
            };
            player.setting = settings[number];
            let differences = player.play(&case).with_context(|| format!("{}{}", case.name, lab::logs()))?;
            found.lock().unwrap()[number].insert(case.name, differences);
        }
    };
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    ended.into_iter().collect::<Result<()>>()?;
    let held = settings.iter().zip(found.into_inner().unwrap()).map(|(setting, found)| purpose::hold(*setting, &found));
    let complaints: Vec<String> = held.filter_map(|held| Some(format!("{:#}", held.err()?))).collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

/// All of them, long ones last: these are begun first, so that no lane is left with one at the end.
fn jobs(settings: &[Setting]) -> Vec<Job> {
    let cases = oracle::cases();
    let of = |(number, setting): (usize, &Setting)| {
        let recorded = cases.iter().filter(|case| case.runs.contains(&setting.run)).cloned();
        recorded.map(|case| (number, case)).collect::<Vec<_>>()
    };
    let mut jobs: Vec<Job> = settings.iter().enumerate().flat_map(of).collect();
    let length = |step: &Step| if matches!(step.script, Script::None) { 1 } else { 20 };
    jobs.sort_by_key(|(_, case)| case.steps.iter().map(length).sum::<usize>());
    jobs
}

/// The next one for a lane that has set-up `last`: another set-up costs a new start of the proxy.
fn next(jobs: &mut Vec<Job>, last: usize) -> Option<Job> {
    let same = jobs.iter().rposition(|(number, _)| *number == last);
    same.or_else(|| jobs.len().checked_sub(1)).map(|place| jobs.remove(place))
}

struct Player {
    setting: Setting,
    objects: Objects,
    /// Services that a script has taken away for a while.
    aside: BTreeMap<String, Value>,
    /// The set-up and the zone with which the proxy runs, and its process.
    proxy: Option<((Setting, Option<String>), Process)>,
    machines: Machines,
}

/// A probe of one family, what it saw so far, and how it stands.
struct Asked<'a> {
    probe: &'a Probe,
    family: IpFamily,
    target: Target,
    sticky: bool,
    /// What it should see.
    expected: Seen,
    sight: Sight,
    verdict: Verdict,
}

impl Player {
    fn new(setting: Setting) -> Result<Self> {
        let machines = Machines::start()?;
        machines.n1()?.run(&["mkdir", "-p", SERVICES])?;
        Ok(Self { setting, objects: Objects::default(), aside: BTreeMap::new(), proxy: None, machines })
    }

    /// Makes a case and takes its objects away again.
    fn play(&mut self, case: &Case) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        for step in &case.steps {
            self.run_in(step.zone.as_deref())?;
            self.objects.take(step);
            self.apply().with_context(|| step.name.clone())?;
            self.forget()?;
            if step.determined {
                found.extend(self.probe(case, step)?);
                found.extend(script::play(self, case, step).unwrap_or_else(|error| {
                    let text = format!("{} [{}] cannot be played: {error:#}", case.name, step.name);
                    vec![Difference { family: IpFamily::V4, text }]
                }));
            }
        }
        self.objects.clear();
        self.apply().context("all objects of the case deleted")?;
        self.forget()?;
        Ok(found)
    }

    const fn setting(&self) -> Setting {
        self.setting
    }

    const fn machines(&self) -> &Machines {
        &self.machines
    }

    const fn objects(&self) -> &Objects {
        &self.objects
    }

    const fn objects_mut(&mut self) -> &mut Objects {
        &mut self.objects
    }

    /// Keeps Services that were taken away until [`Self::bring_back`].
    fn put_aside(&mut self, services: BTreeMap<String, Value>) {
        self.aside = services;
    }

    fn bring_back(&mut self) {
        self.objects.put(std::mem::take(&mut self.aside));
    }

    /// Ends the proxy; what it has made stays.
    fn stop(&mut self) -> Result<()> {
        let (_, process) = self.proxy.take().context("no proxy runs")?;
        process.terminate(SOON).map(drop)
    }

    /// Starts it again and waits until all objects are applied.
    fn start_again(&mut self, zone: Option<&str>) -> Result<()> {
        self.run_in(zone)?;
        self.apply()
    }

    /// Starts the proxy where its set-up or its node's zone is another one now.
    fn run_in(&mut self, zone: Option<&str>) -> Result<()> {
        let wanted = (self.setting, zone.map(str::to_owned));
        if self.proxy.as_ref().is_some_and(|(running, _)| *running == wanted) {
            return Ok(());
        }
        if let Some((_, old)) = self.proxy.take() {
            old.terminate(SOON)?;
        }
        let flags = [
            format!("--services-dir={SERVICES}"),
            format!("--proxy-mode={}", self.setting.path),
            "--hostname-override=n1".to_owned(),
            "--service-cidr=10.96.0.0/16,fd00:10:96::/112".to_owned(),
            "--healthz-bind-address=0.0.0.0:10256".to_owned(),
        ];
        let command = self.machines.n1()?.command(lab::bin("ipvs-proxy")?).args(flags).args(self.setting.flags);
        let process = command.args(zone.map(|zone| format!("--node-zone={zone}"))).start("ipvs-proxy")?;
        process.wait_for_line("ready", SOON)?;
        self.proxy = Some((wanted, process));
        Ok(())
    }

    /// Writes the objects into the proxy's directory; returns how many Services and slices there are.
    fn write(&mut self) -> Result<(usize, usize)> {
        let n1 = self.machines.n1()?;
        let (text, services, slices) = self.objects.manifest();
        n1.write("/run/objects.json", text)?;
        std::fs::rename(n1.path("/run/objects.json"), n1.path(format!("{SERVICES}/objects.json")))?;
        Ok((services, slices))
    }

    /// Writes the objects and waits until all of them are applied.
    fn apply(&mut self) -> Result<()> {
        let (services, slices) = self.write()?;
        let n1 = self.machines.n1()?;
        eventually(SOON, || {
            let status: Value = serde_json::from_str(&n1.read("/run/ipvs-proxy/status.json")?)?;
            let known = status["services"] == services && status["endpointSlices"] == slices;
            ensure!(known && status["ok"] == true, "{services} Services and {slices} slices are not applied: {status}");
            Ok(())
        })
    }

    /// Forgets the tracked connections of n1.
    fn forget(&self) -> Result<()> {
        self.machines.n1()?.run(&["conntrack", "-F"]).map(drop)
    }

    /// Asks for all probes of a step at once, and again where something is missing.
    fn probe(&self, case: &Case, step: &Step) -> Result<Vec<Difference>> {
        let mut asked: Vec<_> = step.probes.iter().flat_map(|probe| self.asked(probe)).collect();
        let mut late = 0;
        for _ in 0..ROUNDS {
            let patience = if late == 0 { PATIENCE } else { LONG_PATIENCE };
            self.ask(asked.iter_mut().filter(|asked| asked.is_open()).collect(), patience)?;
            late += usize::from(asked.iter().any(|asked| matches!(asked.verdict, Verdict::Late(_))));
            if late > 2 || asked.iter().all(|asked| !asked.is_open()) {
                break;
            }
        }
        let name = |probe: &Probe| format!("{} [{}] {} -> {}", case.name, step.name, probe.client, probe.dest);
        let mut found: Vec<_> = asked.iter().filter_map(|asked| asked.difference(&name(asked.probe))).collect();
        let http = step.probes.iter().filter(|probe| probe.http.is_some());
        for (probe, family) in http.flat_map(|probe| IpFamily::ALL.map(|family| (probe, family))) {
            let difference = health::compare(&self.machines, probe, self.setting.run, family)?;
            let text =
                difference.map(|text| format!("{} {}: {text}", name(probe), probe.http.as_deref().unwrap_or("")));
            found.extend(text.map(|text| Difference { family, text }));
        }
        Ok(found)
    }

    fn asked<'a>(&self, probe: &'a Probe) -> Vec<Asked<'a>> {
        let of = |family| {
            let (transport, to) = target(probe, family)?;
            let theirs = probe.seen(self.setting.run, family);
            let count = if theirs.outcome == Some(Outcome::Answered) { 12 } else { 3 };
            let target = Target { transport, to, count };
            let expected = purpose::expected(self.setting, &self.objects, (&probe.client, target), theirs);
            let sticky = self.objects.keeps_clients(to);
            let verdict = Verdict::Partial("not asked".to_owned());
            Some(Asked { probe, family, target, sticky, expected, sight: Sight::default(), verdict })
        };
        IpFamily::ALL.into_iter().filter_map(of).collect()
    }

    /// Asks from all clients at the same time.
    fn ask(&self, asked: Vec<&mut Asked<'_>>, patience: Duration) -> Result<()> {
        let mut clients: BTreeMap<&str, Vec<&mut Asked<'_>>> = BTreeMap::new();
        for one in asked {
            clients.entry(&one.probe.client).or_default().push(one);
        }
        let errors = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for (client, asked) in &mut clients {
                scope.spawn(|| {
                    let targets: Vec<_> = asked.iter().map(|asked| asked.target).collect();
                    match self.machines.at(client, || client::ask_all(&targets, patience)) {
                        Ok(ends) => {
                            asked.iter_mut().zip(ends).for_each(|(asked, ends)| asked.take(&ends));
                        }
                        Err(error) => errors.lock().unwrap().push(error),
                    }
                });
            }
        });
        errors.into_inner().unwrap().into_iter().next().map_or(Ok(()), Err)
    }
}

/// How and where a probe asks; `None` of a question to the health server.
fn target(probe: &Probe, family: IpFamily) -> Option<(Transport, SocketAddr)> {
    if let Some(to) = probe.ping(family) {
        return Some((Transport::Ping, SocketAddr::new(to, 0)));
    }
    let (protocol, to) = probe.to(family)?;
    match protocol {
        Protocol::Tcp => Some((Transport::Tcp, to)),
        Protocol::Udp => Some((Transport::Udp, to)),
        // No kernel of the lab has it.
        Protocol::Sctp => None,
    }
}

impl Asked<'_> {
    fn is_open(&self) -> bool {
        matches!(self.verdict, Verdict::Partial(_) | Verdict::Late(_))
    }

    fn take(&mut self, ends: &[client::Ended]) {
        self.sight.forgive();
        self.sight.take(ends);
        self.verdict = self.sight.judge(&self.expected, self.sticky);
    }

    fn difference(&self, name: &str) -> Option<Difference> {
        match &self.verdict {
            Verdict::Same => None,
            Verdict::Partial(text) | Verdict::Late(text) | Verdict::Different(text) => {
                let text = format!("{name} ({}): {text}", self.target.to);
                Some(Difference { family: self.family, text })
            }
        }
    }
}
