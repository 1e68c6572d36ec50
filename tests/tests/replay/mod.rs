//! Recorded cases against `ipvs-proxy`: objects go into its directory, clients ask, and what they see is compared.
//!
//! Invariant: nothing is asked before the proxy's status shows the last object of the step, and tracked connections of n1 are
//! emptied between. What differs is reported with case, step, client and destination; what is expected to differ stands in [`pending`].

mod client;
mod health;
mod judge;
mod kept;
mod machines;
mod objects;
pub(crate) mod pending;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Process, eventually};
use netstate::{IpFamily, Protocol};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use oracle::{Case, Outcome, Probe, Run, Step};

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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// The data path, as `--proxy-mode` has it.
    pub(crate) path: &'static str,
    /// The recorded run that it is compared with.
    pub(crate) run: Run,
    /// What this run adds to the command line.
    pub(crate) flags: &'static [&'static str],
}

/// One difference.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) family: IpFamily,
    pub(crate) text: String,
}

/// Makes all cases of a run and compares them, some beside each other on machines of their own.
pub(crate) fn replay(setting: Setting, lanes: usize) -> Result<()> {
    let mut cases: Vec<_> = oracle::cases().into_iter().filter(|case| case.runs.contains(&setting.run)).collect();
    // Long ones first, so that no lane is left with one at the end.
    cases.sort_by_key(|case| case.steps.len());
    // Thousands of connections at once, more than a login shell allows by itself.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (cases, found) = (Mutex::new(cases), Mutex::new(BTreeMap::new()));
    let lane = || -> Result<()> {
        let mut player = Player::new(setting)?;
        loop {
            let Some(case) = cases.lock().unwrap().pop() else { return Ok(()) };
            let differences = player.play(&case).with_context(|| format!("{}{}", case.name, lab::logs()))?;
            found.lock().unwrap().insert(case.name, differences);
        }
    };
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    ended.into_iter().collect::<Result<()>>()?;
    pending::hold(setting, &found.into_inner().unwrap())
}

struct Player {
    setting: Setting,
    objects: Objects,
    /// The zone with which the proxy runs, and its process.
    proxy: Option<(Option<String>, Process)>,
    machines: Machines,
}

/// A probe of one family, what it saw so far, and how it stands.
struct Asked<'a> {
    probe: &'a Probe,
    family: IpFamily,
    target: Target,
    sticky: bool,
    sight: Sight,
    verdict: Verdict,
}

impl Player {
    fn new(setting: Setting) -> Result<Self> {
        let machines = Machines::start()?;
        machines.n1()?.run(&["mkdir", "-p", SERVICES])?;
        Ok(Self { setting, objects: Objects::default(), proxy: None, machines })
    }

    /// Makes a case and takes its objects away again.
    fn play(&mut self, case: &Case) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        for step in &case.steps {
            self.run_in(step.zone.as_deref())?;
            self.objects.take(step);
            self.publish().with_context(|| step.name.clone())?;
            if step.determined {
                found.extend(self.probe(case, step)?);
                found.extend(kept::compare((&self.machines, self.setting.path), &self.objects, case, step)?);
            }
        }
        self.objects.clear();
        self.publish().context("all objects of the case deleted")?;
        Ok(found)
    }

    /// Starts the proxy where its node has another zone now.
    fn run_in(&mut self, zone: Option<&str>) -> Result<()> {
        if self.proxy.as_ref().is_some_and(|(old, _)| old.as_deref() == zone) {
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
        self.proxy = Some((zone.map(str::to_owned), process));
        Ok(())
    }

    /// Writes the objects into the proxy's directory and waits until all of them are applied.
    fn publish(&mut self) -> Result<()> {
        let n1 = self.machines.n1()?;
        let (text, services, slices) = self.objects.manifest();
        n1.write("/run/objects.json", text)?;
        std::fs::rename(n1.path("/run/objects.json"), n1.path(format!("{SERVICES}/objects.json")))?;
        eventually(SOON, || {
            let status: serde_json::Value = serde_json::from_str(&n1.read("/run/ipvs-proxy/status.json")?)?;
            let known = status["services"] == services && status["endpointSlices"] == slices;
            ensure!(known && status["ok"] == true, "{services} Services and {slices} slices are not applied: {status}");
            Ok(())
        })?;
        n1.run(&["conntrack", "-F"]).map(drop)
    }

    /// Asks for all probes of a step at once, and again where something is missing.
    fn probe(&self, case: &Case, step: &Step) -> Result<Vec<Difference>> {
        let mut asked: Vec<_> = step.probes.iter().flat_map(|probe| self.asked(probe)).collect();
        let mut late = 0;
        for _ in 0..ROUNDS {
            let patience = if late == 0 { PATIENCE } else { LONG_PATIENCE };
            self.ask(asked.iter_mut().filter(|asked| asked.is_open()).collect(), patience)?;
            // What is known to differ is not worth waiting for.
            asked.iter_mut().filter(|asked| self.is_pending(case, asked)).for_each(|asked| asked.give_up());
            late += usize::from(asked.iter().any(|asked| matches!(asked.verdict, Verdict::Late(_))));
            if late > 2 || asked.iter().all(|asked| !asked.is_open()) {
                break;
            }
        }
        let name = |probe: &Probe| format!("{} [{}] {} -> {}", case.name, step.name, probe.client, probe.dest);
        let mut found: Vec<_> = asked.iter().filter_map(|asked| asked.difference(&name(asked.probe))).collect();
        for probe in step.probes.iter().filter(|probe| probe.http.is_some()) {
            let difference = health::compare(&self.machines, probe, self.setting.run)?;
            let text =
                difference.map(|text| format!("{} {}: {text}", name(probe), probe.http.as_deref().unwrap_or("")));
            found.extend(text.map(|text| Difference { family: IpFamily::V4, text }));
        }
        Ok(found)
    }

    fn is_pending(&self, case: &Case, asked: &Asked<'_>) -> bool {
        pending::is_listed(self.setting, asked.family, &case.name)
    }

    fn asked<'a>(&self, probe: &'a Probe) -> Vec<Asked<'a>> {
        let of = |family| {
            let (transport, to) = target(probe, family)?;
            let answered = probe.seen(self.setting.run, family).outcome == Some(Outcome::Answered);
            let target = Target { transport, to, count: if answered { 12 } else { 3 } };
            let sticky = self.objects.keeps_clients(to);
            let verdict = Verdict::Partial("not asked".to_owned());
            Some(Asked { probe, family, target, sticky, sight: Sight::default(), verdict })
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
                            asked.iter_mut().zip(ends).for_each(|(asked, ends)| asked.take(&ends, self.setting.run));
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
        Protocol::Sctp => panic!("no kernel of the lab has SCTP"),
    }
}

impl Asked<'_> {
    fn is_open(&self) -> bool {
        matches!(self.verdict, Verdict::Partial(_) | Verdict::Late(_))
    }

    fn take(&mut self, ends: &[client::Ended], run: Run) {
        self.sight.forgive();
        self.sight.take(ends);
        self.verdict = self.sight.judge(self.probe.seen(run, self.family), self.sticky);
    }

    /// Leaves it at what was seen, if nobody has answered in time.
    fn give_up(&mut self) {
        if let Verdict::Late(text) = &mut self.verdict {
            self.verdict = Verdict::Different(std::mem::take(text));
        }
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
