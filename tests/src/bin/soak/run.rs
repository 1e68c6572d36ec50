//! One run: steps, quiet points between them, and the verdict.
//!
//! Invariant: what a step does depends on the seed alone; only how many steps there are depends on the time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::act::rows::{self, Row};
use crate::act::{Action, Heal};
use crate::evidence::Evidence;
use crate::judge::{logs, resources::Samples};
use crate::options::Options;
use crate::report::{self, Tally};
use crate::shared::Shared;
use crate::world::World;
use crate::{quiet, sentence, violate};

/// Steps between two quiet points.
const STEPS: u32 = 25;

/// The first of them break no path, so that every path must work all the while.
const GENTLE: u32 = 11;

/// Pause after a step: paths are asked meanwhile.
const PAUSE: Duration = Duration::from_millis(1500);

/// So many violations end a run: what follows is a consequence.
const ENOUGH: usize = 40;

/// A run of this length has time for everything, in six rounds; three do.
const WHOLE: Duration = Duration::from_secs(300);

pub(crate) struct Run {
    world: World,
    held: Vec<(u32, Heal)>,
    step: u32,
    tally: Tally,
    samples: Samples,
    evidence: Evidence,
    log: Vec<String>,
    reported: usize,
}

impl Run {
    /// Brings the cluster up and goes through its schedule.
    ///
    /// # Errors
    /// When the cluster does not come up, or the lab fails.
    pub(crate) fn start(options: Options, shared: Arc<Shared>) -> Result<Self> {
        let evidence = Evidence::new(&options.folder, options.seed);
        let (time, seeded) = (options.time, options.violate);
        let world = World::start(options, shared)?;
        let (held, log, tally, samples) = (Vec::new(), Vec::new(), Tally::default(), Samples::default());
        let mut run = Self { world, held, step: 0, tally, samples, evidence, log, reported: 0 };
        run.note(&format!("five nodes are ready with etcd at {}", run.world.etcd.endpoints()));
        // The state before the first round is another one: no file and no table of a first time.
        run.quiet(false);
        if seeded {
            run.quiet(true);
            let done = violate::action_that_fails(&mut run.world);
            run.took_place(Action::AddPod, 1, done);
            let _kept = violate::all(&mut run.world)?;
            run.watch();
            run.quiet(true);
            return Ok(run);
        }
        let end = run.world.shared.now() + time;
        while run.world.shared.now() < end && run.reported < ENOUGH {
            for step in 0..STEPS {
                run.one_step(step < GENTLE);
            }
            run.quiet(true);
        }
        Ok(run)
    }

    fn one_step(&mut self, gentle: bool) {
        self.step += 1;
        self.heal(false);
        if let Some(action) = Action::draw(&mut self.world, gentle) {
            self.act(action);
        }
        std::thread::sleep(PAUSE);
        self.watch();
    }

    fn act(&mut self, action: Action) {
        let hold = self.world.random.u32(1..=4);
        let done = action.run(&mut self.world);
        self.took_place(action, hold, done);
    }

    /// Writes down what became of an action.
    fn took_place(&mut self, action: Action, hold: u32, done: Result<(String, Option<Heal>)>) {
        let (count, failed) = self.tally.actions.entry(action).or_default();
        *count += 1;
        *failed += u32::from(done.is_err());
        match done {
            Ok((what, heal)) => {
                self.note(&format!("{}: {what}", action.title()));
                self.held.extend(heal.map(|heal| (self.step + hold, heal)));
            }
            Err(error) => self.failed(action.title(), &error),
        }
    }

    fn failed(&mut self, what: &str, error: &anyhow::Error) {
        let text = format!("{what}: {error:#}");
        self.note(&format!("FAILED {text}"));
        self.world.shared.verified("actions succeed", [text]);
    }

    /// Ends what is due, or all that is held.
    fn heal(&mut self, all: bool) {
        let held = std::mem::take(&mut self.held);
        // Members of etcd first: daemons are ready only where it serves.
        let (members, others): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|(_, heal)| matches!(heal, Heal::Members(_) | Heal::Room(_)));
        for (due, heal) in members.into_iter().chain(others) {
            if !(all || due <= self.step) || !heal.is_possible(&self.world) {
                self.held.push((due, heal));
                continue;
            }
            match heal.run(&mut self.world) {
                Ok(what) => self.note(&format!("  end of {what}")),
                Err(error) => self.failed("end of what was held", &error),
            }
        }
    }

    /// A quiet point.
    fn quiet(&mut self, counts: bool) {
        self.heal(true);
        match quiet::point(&mut self.world) {
            Ok(sample) => {
                self.note(&format!("quiet point: {sample:?}"));
                self.tally.quiet_points += 1;
                if counts {
                    self.samples.add(&sample);
                }
            }
            Err(error) => self.failed("quiet point", &error),
        }
        self.watch();
    }

    /// What is verified all the time: daemons run, what they log, and one node's foreign things.
    fn watch(&mut self) {
        let full = self.world.shared.now() < self.world.full_until;
        let mut ended = Vec::new();
        let mut found = Vec::new();
        for node in self.world.nodes.values_mut() {
            for daemon in node.ended() {
                ended.push(format!("{daemon} on {} ended by itself", node.name));
            }
            let lines = node.new_lines();
            for line in lines.iter().filter(|line| logs::is_error(line)) {
                *self.tally.errors.entry(logs::kind(line)).or_default() += 1;
            }
            found.extend(logs::of_lines(lines.iter().map(String::as_str), full));
        }
        self.world.shared.verified("daemons run", ended);
        self.world.shared.verified("no error but of a full disk", found);
        let names = self.world.joined();
        if let Some(name) = names.get(self.step as usize % names.len().max(1))
            && let Err(error) = quiet::foreign_of(&self.world, name)
        {
            self.failed("compare what is foreign", &error);
        }
        self.report_new();
    }

    /// Prints violations that came since the last time, and dumps what there is to see.
    fn report_new(&mut self) {
        let new: Vec<String> = self.world.shared.lock().violations.iter().skip(self.reported).map(sentence).collect();
        if new.is_empty() {
            return;
        }
        self.reported += new.len();
        for text in new {
            println!("VIOLATION {text}");
            self.log.push(format!("VIOLATION {text}"));
        }
        if let Err(error) = self.evidence.dump(&self.world) {
            self.log.push(format!("no dump: {error:#}"));
        }
    }

    fn note(&mut self, text: &str) {
        let line = format!("{:8.1} s  step {:4}  {text}", self.world.shared.now().as_secs_f64(), self.step);
        println!("{line}");
        self.log.push(line);
    }

    /// The report; true when nothing was found.
    ///
    /// # Errors
    /// When what is to be left cannot be written.
    pub(crate) fn finish(mut self) -> Result<bool> {
        let grown = self.samples.grown();
        let deleted = |row: &Row| (row.what, self.world.deleted.get(row.what).copied().unwrap_or_default());
        self.tally.deleted = rows::all(&self.world.options).map(deleted).collect();
        if self.world.options.time >= WHOLE {
            self.world.shared.verified("nothing left out", self.tally.left_out().map(str::to_owned));
        }
        self.world.shared.verified("nothing grows", grown);
        self.report_new();
        let (report, violations) = {
            let state = self.world.shared.lock();
            (report::text(&self.tally, &state, &self.samples), state.violations.len())
        };
        let (minutes, steps, points) =
            (self.world.shared.now().as_secs_f64() / 60.0, self.step, self.tally.quiet_points);
        println!(
            "\n{steps} steps and {points} quiet points in {minutes:.1} minutes, seed {}\n",
            self.world.options.seed
        );
        print!("{report}");
        if violations == 0 {
            println!("passed: no violation");
            return Ok(true);
        }
        self.evidence.keep(&self.world, &report, &self.log)?;
        println!("FAILED: {violations} violations; what is needed to find out why: {}", self.evidence.folder.display());
        Ok(false)
    }
}
