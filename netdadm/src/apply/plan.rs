//! What a call will do to a host, as a value: files, and units in their order.
//!
//! Pure. Invariant: what the plan does not name is not touched; a file that we did not write, or that somebody has changed since, is in no plan
//! unless the order says so.

use std::collections::BTreeMap;

use host::{Content, File, FilePath, Job, Manifest, Ready, UnitEntry, UnitState};
use reconcile::{Owner, Rows, Step};

use super::record::{Before, Change, Record};

/// Everything that will be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step<FilePath, File>>,
    /// Files in the way, each with the reason.
    pub(super) foreign: Vec<(FilePath, String)>,
    /// Files of ours that the manifest has no more and that somebody has changed.
    pub(super) left: Vec<FilePath>,
    /// Units that the manifest has no more, the last first.
    pub(super) dropped: Vec<String>,
    /// Units with something to do, in the manifest's order.
    pub(super) units: Vec<UnitPlan>,
}

/// What will be done to a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnitPlan {
    pub(super) name: String,
    pub(super) enable: bool,
    pub(super) job: Option<Job>,
    pub(super) why: String,
    pub(super) ready: Option<Ready>,
    pub(super) wait: bool,
}

impl Plan {
    /// The files' part: the way from `found` to the manifest.
    pub(super) fn of_files(
        manifest: &Manifest,
        record: &Record,
        found: &Rows<FilePath, File>,
        overwrite: bool,
    ) -> Self {
        let mut plan = Self::default();
        let desired: BTreeMap<FilePath, File> =
            manifest.files.iter().map(|(path, entry)| (FilePath::from(path.as_path()), File::from(entry))).collect();
        for (path, want) in &desired {
            let Some(have) = found.get(path) else {
                plan.steps.push(Step::Create(path.clone(), want.clone()));
                continue;
            };
            if have.value == *want {
                continue;
            }
            let is_file = !matches!(have.value.content, Content::Other(_));
            if is_file && (overwrite || have.owner == Owner::Ours) {
                plan.steps.push(Step::Change(path.clone(), have.value.clone(), want.clone()));
            } else {
                plan.foreign.push((path.clone(), reason(&have.value, record.files.contains_key(path))));
            }
        }
        for path in record.files.keys().filter(|path| !desired.contains_key(*path)) {
            match found.get(path) {
                Some(have) if have.owner == Owner::Ours => {
                    plan.steps.push(Step::Remove(path.clone(), have.value.clone()));
                }
                Some(_) => plan.left.push(path.clone()),
                None => {}
            }
        }
        plan
    }

    /// Adds the units' part, by what systemd says of each.
    ///
    /// # Errors
    /// When a unit is masked: somebody does not want it to run.
    pub(super) fn add_units(
        &mut self,
        manifest: &Manifest,
        record: &Record,
        state: impl Fn(&str) -> Result<UnitState, String>,
    ) -> Result<(), String> {
        let named = |name: &String| manifest.units.iter().any(|unit| unit.name == *name);
        self.dropped = record.units.iter().filter(|name| !named(name)).rev().cloned().collect();
        for unit in &manifest.units {
            let state = state(&unit.name)?;
            if state.load == "masked" {
                return Err(format!("{0} is masked; if it is to run: systemctl unmask {0}", unit.name));
            }
            let planned = self.unit(unit, &state, record.stale.contains(&unit.name));
            if planned.enable || planned.job.is_some() {
                self.units.push(planned);
            }
        }
        Ok(())
    }

    fn unit(&self, unit: &UnitEntry, state: &UnitState, is_stale: bool) -> UnitPlan {
        let touched = |paths: &[std::path::PathBuf]| {
            let keys = self.steps.iter().map(Step::key);
            keys.filter(|key| paths.iter().any(|path| path == key.as_path())).map(ToString::to_string).next()
        };
        let service = state.service.as_ref();
        let has_run = service.is_some_and(|service| service.kind == "oneshot" && service.result == "success");
        let runs = matches!(state.active.as_str(), "active" | "reloading" | "activating");
        let (job, why) = match (touched(&unit.restart), touched(&unit.reload)) {
            (Some(path), _) if runs => (Some(Job::Restart), format!("{path} changes")),
            _ if runs && is_stale => {
                (Some(Job::Restart), "it may run with files of a call that was cut off".to_owned())
            }
            (None, Some(path)) if runs => (Some(Job::Reload), format!("{path} changes")),
            // What has done its work once does it again when its files change, and at the next boot.
            (None, _) if !runs && has_run && state.load == "loaded" => (None, String::new()),
            _ if state.active == "activating" && unit.wait => (Some(Job::Start), "it is not ready yet".to_owned()),
            _ if runs => (None, String::new()),
            _ => (Some(Job::Start), if state.load == "loaded" { state.words() } else { "it is new".to_owned() }),
        };
        let enable = matches!(state.file.as_str(), "" | "disabled");
        // What served before has whom it waits for; only a first start may have to wait for hosts that are not made yet.
        let served = unit.ready.is_some() && state.active == "active" && job.is_some();
        UnitPlan { name: unit.name.clone(), enable, job, why, ready: unit.ready.clone(), wait: unit.wait || served }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.dropped.is_empty() && self.units.is_empty()
    }

    /// Whether systemd has to read unit files again.
    pub(super) fn touches_units(&self) -> bool {
        let unit_file = |step: &Step<FilePath, File>| step.key().to_string().contains("/systemd/system/");
        self.steps.iter().any(unit_file)
    }

    /// The files' part for the record.
    pub(super) fn changes(&self) -> Vec<Change> {
        let before = |file: &File| Some(Before(file.to_string()));
        let change = |step: &Step<FilePath, File>| match step {
            Step::Create(path, file) => Change { path: path.clone(), before: None, after: Some(file.clone()) },
            Step::Change(path, old, new) => {
                Change { path: path.clone(), before: before(old), after: Some(new.clone()) }
            }
            Step::Remove(path, old) => Change { path: path.clone(), before: before(old), after: None },
        };
        self.steps.iter().map(change).collect()
    }

    /// The plan for a person, a line for each thing.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for name in &self.dropped {
            lines.push(format!("stop     {name}: the folder has it no more"));
        }
        for step in &self.steps {
            lines.push(match step {
                Step::Create(path, file) => format!("write    {path} {file}"),
                Step::Change(path, old, new) => format!("replace  {path} {new}, was {old}"),
                Step::Remove(path, old) => format!("remove   {path} {old}"),
            });
        }
        for path in &self.left {
            lines.push(format!("leave    {path}: the folder has it no more, but somebody has changed it"));
        }
        for unit in &self.units {
            if unit.enable {
                lines.push(format!("enable   {}", unit.name));
            }
            if let Some(job) = unit.job {
                let wait = if unit.wait { "" } else { "; it is not waited for" };
                lines.push(format!("{:<8} {}: {}{wait}", job.verb(), unit.name, unit.why));
            }
            if let Some(ready) = unit.ready.as_ref().filter(|_| unit.wait && unit.job.is_some()) {
                lines.push(format!("wait     until {} answers 200, at most {} s", ready.url, ready.seconds));
            }
        }
        lines
    }
}

/// Why a file is left alone.
fn reason(have: &File, is_recorded: bool) -> String {
    match &have.content {
        Content::Other(kind) => format!("is a {kind}"),
        _ if is_recorded => format!("was changed since netdadm wrote it ({have})"),
        _ => format!("was not written by netdadm ({have})"),
    }
}
