//! The units' part of a call: what systemd is asked for, in the plan's order, and how it is undone.
//!
//! Invariant: whatever was done to a unit is noted before it is done, so that undoing knows of it however it ended.

use std::time::Duration;

use host::{Job, Refused, Service, UnitError, UnitState, Units};

use super::Report;
use super::plan::{Plan, UnitPlan};
use super::ready;

/// How long a job may take. A unit's own limits (`TimeoutStartSec=`) end most of them earlier.
const JOB: Duration = Duration::from_secs(300);
/// How long a unit has to stay up that systemd calls started: a program that ends at once is seen to be active for a moment.
const SETTLE: Duration = Duration::from_secs(1);
/// What systemd says of a unit that has failed and that it will start again.
const AGAIN: &str = "auto-restart";
/// After so many restarts a unit will not come up by another one.
const ATTEMPTS: u32 = 5;
/// Between two readings while a unit settles.
const PAUSE: Duration = Duration::from_millis(100);

/// The units of a host, and what was done to them.
pub(super) struct Services {
    units: Units,
    done: Vec<Done>,
}

/// What was done to a unit, with what it was before.
struct Done {
    name: String,
    ran: bool,
    enabled: bool,
    disabled: bool,
    job: bool,
    waits: bool,
}

impl Services {
    /// Connects to systemd.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn connect() -> Result<Self, String> {
        Ok(Self { units: Units::connect().map_err(|error| error.to_string())?, done: Vec::new() })
    }

    /// What systemd says of a unit.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn state(&self, unit: &str) -> Result<UnitState, String> {
        self.units.state(unit).map_err(|error| error.to_string())
    }

    /// Stops the units that the folder has no more; before their files go.
    ///
    /// # Errors
    /// When one does not stop.
    pub(super) fn stop_dropped(&mut self, plan: &Plan, report: &mut Report<'_>) -> Result<(), String> {
        for name in &plan.dropped {
            let state = self.state(name)?;
            let ran = runs(&state);
            self.done.push(Done {
                name: name.clone(),
                ran,
                enabled: false,
                disabled: state.file == "enabled",
                job: state.load == "loaded",
                waits: true,
            });
            let stopped = self.units.disable(name);
            stopped.map_err(|error| error.to_string())?;
            if state.load == "loaded" {
                self.units.run(Job::Stop, name, JOB).map_err(|error| error.to_string())?;
            }
            report.say(&format!("{name} is stopped"));
        }
        Ok(())
    }

    /// Reads unit files again, enables, and brings each unit of the plan to where it should be.
    ///
    /// # Errors
    /// When one is not there in time, or does not stay.
    pub(super) fn bring_up(&mut self, plan: &Plan, report: &mut Report<'_>) -> Result<(), String> {
        if plan.touches_units() {
            self.units.reload().map_err(|error| error.to_string())?;
        }
        let mut up = Vec::new();
        for unit in &plan.units {
            let state = self.state(&unit.name)?;
            self.done.push(Done {
                name: unit.name.clone(),
                ran: runs(&state),
                enabled: unit.enable && state.file == "disabled",
                disabled: false,
                job: unit.job.is_some(),
                waits: unit.wait,
            });
            if unit.enable && state.file == "disabled" {
                self.units.enable(&unit.name).map_err(|error| error.to_string())?;
            }
            if let Some(job) = unit.job {
                up.extend(self.do_job(unit, job, report)?);
            }
        }
        up.iter().try_for_each(|(name, service)| self.stays_up(name, service))
    }

    /// Does one job and waits for readiness, unless the unit is not to be waited for.
    fn do_job(
        &self,
        unit: &UnitPlan,
        job: Job,
        report: &mut Report<'_>,
    ) -> Result<Option<(String, Option<Service>)>, String> {
        // A unit that has failed too often in too short a time would not start.
        self.units.forget_failure(&unit.name).map_err(|error| error.to_string())?;
        if !unit.wait {
            self.units.begin(job, &unit.name).map_err(|error| error.to_string())?;
            report.say(&format!("{} is asked to {}, and not waited for", unit.name, job.verb()));
            return Ok(None);
        }
        let mut state = match (self.units.run(job, &unit.name, JOB), &unit.ready) {
            (Ok(state), _) => state,
            // Its manager starts it again, as it does when whom it needs is late; whether that helps is seen by asking it.
            (Err(UnitError { refused: Refused::Ended { state, .. }, .. }), Some(_)) if state.sub == AGAIN => *state,
            (Err(error), _) => return Err(error.to_string()),
        };
        if let Some(ready) = &unit.ready {
            ready::wait(ready, || self.is_started_in_vain(&unit.name)).map_err(|cause| {
                let now = self.units.state(&unit.name).map_or_else(|error| error.to_string(), |state| state.words());
                format!("{} is {now}, and {cause}; see journalctl --unit {0}", unit.name)
            })?;
            state = self.state(&unit.name)?;
        }
        report.say(&format!("{} is ready", unit.name));
        Ok(Some((unit.name.clone(), state.service)))
    }

    /// Why a unit is not worth to be waited for any more.
    fn is_started_in_vain(&self, name: &str) -> Option<String> {
        let service = self.state(name).ok()?.service?;
        (service.restarts >= ATTEMPTS).then(|| format!("it has ended {} times", service.restarts))
    }

    /// Reads a unit again for a while: `done` does not mean that it lives.
    fn stays_up(&self, name: &str, service: &Option<Service>) -> Result<(), String> {
        let end = std::time::Instant::now() + SETTLE;
        loop {
            let now = self.state(name)?;
            let is_done = service.as_ref().is_some_and(|service| service.kind == "oneshot");
            let is_up = now.active == "active" || (is_done && now.active == "inactive");
            let restarts = |service: &Option<Service>| service.as_ref().map(|service| service.restarts);
            if !is_up || restarts(&now.service) > restarts(service) {
                return Err(format!(
                    "{name} was started and did not stay up: it is {}; see journalctl --unit {name}",
                    now.words()
                ));
            }
            if std::time::Instant::now() >= end {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Stops what did not run before and takes it out of the boot, the last first, while its unit files stand. Returns what could not be.
    pub(super) fn stop_new(&mut self, report: &mut Report<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        for done in self.done.iter().rev() {
            if done.enabled {
                problems.extend(self.units.disable(&done.name).err());
            }
            if done.job && !done.ran {
                match self.units.run(Job::Stop, &done.name, JOB) {
                    Ok(_) => report.say(&format!("{} is stopped, as it was", done.name)),
                    Err(error) if error.refused == Refused::Missing => {}
                    Err(error) => problems.push(error),
                }
                // It ran into its failure with files that go now.
                problems.extend(self.units.forget_failure(&done.name).err());
            }
        }
        problems.iter().map(ToString::to_string).collect()
    }

    /// Brings what ran before back to its files from before, the last first. Returns what could not be.
    pub(super) fn restore(&mut self, touches_units: bool, report: &mut Report<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        if touches_units {
            problems.extend(self.units.reload().err());
        }
        for done in self.done.drain(..).rev() {
            if done.disabled {
                problems.extend(self.units.enable(&done.name).err());
            }
            if !(done.job && done.ran) {
                continue;
            }
            problems.extend(self.units.forget_failure(&done.name).err());
            let again = match done.waits {
                true => self.units.run(Job::Restart, &done.name, JOB).map(drop),
                false => self.units.begin(Job::Restart, &done.name),
            };
            match again {
                Ok(()) => report.say(&format!("{} runs again with the files from before", done.name)),
                Err(error) => problems.push(error),
            }
        }
        problems.iter().map(ToString::to_string).collect()
    }
}

fn runs(state: &UnitState) -> bool {
    matches!(state.active.as_str(), "active" | "reloading" | "activating")
}
