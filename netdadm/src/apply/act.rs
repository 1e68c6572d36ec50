//! The way from a plan to its end, or back.
//!
//! Invariant: the order of writes. The record names every change; copies are kept; files change; units follow; the record says that it is done;
//! only then goes what would put it back.

use std::collections::BTreeSet;
use std::path::PathBuf;

use host::{FileError, Files, Job, Manifest};
use reconcile::{Step, Target};

use super::plan::Plan;
use super::record::{Change, Record, Underway, Whose};
use super::services::Services;
use super::{End, Report};

/// A plan with what it needs.
pub(super) struct Act<'a> {
    pub(super) files: &'a mut Files,
    pub(super) record: &'a mut Record,
    pub(super) services: Option<&'a mut Services>,
    pub(super) manifest: &'a Manifest,
    pub(super) plan: &'a Plan,
}

impl Act<'_> {
    /// Carries the plan out; what fails is undone.
    ///
    /// # Errors
    /// When the record cannot be written: nothing was touched then.
    pub(super) fn run(mut self, report: &mut Report<'_>) -> Result<End, String> {
        let before = self.record.clone();
        self.announce()?;
        if let Err(failure) = self.carry_out(report).and_then(|()| self.conclude()) {
            return Ok(End::Undone(self.undo(&before, &failure, report)));
        }
        // The host is as the folder says; what is left over goes now, or at the next call.
        if let Err(cause) = clean_up(self.files, self.record) {
            let rest = "the host is as the folder says, but what was replaced lies beside its place; run it again";
            return Ok(End::Undone(format!("{cause}\n{rest}")));
        }
        let copies = self.plan.steps.iter().filter(|step| !matches!(step, Step::Create(..))).count();
        if copies > 0 {
            let folder = Record::kept_folder(self.record.calls);
            report.say(&format!("copies of {copies} files from before are in {}", folder.display()));
        }
        report.say("done");
        Ok(End::Applied)
    }

    /// Writes down what will be done.
    fn announce(&mut self) -> Result<(), String> {
        let mut folders = BTreeSet::new();
        for step in &self.plan.steps {
            folders.extend(self.files.missing_folders(step.key()).map_err(|error| error.to_string())?);
        }
        let has_job = |job: Option<Job>| matches!(job, Some(Job::Restart | Job::Reload));
        let affected = self.plan.units.iter().filter(|unit| has_job(unit.job)).map(|unit| unit.name.clone());
        let stale: BTreeSet<String> = self.record.stale.drain(..).chain(affected).collect();
        self.record.stale = stale.into_iter().collect();
        // What is started from here on is known to the next call, however this one ends.
        let started = self.plan.units.iter().map(|unit| &unit.name);
        let new: Vec<String> = started.filter(|name| !self.record.units.contains(name)).cloned().collect();
        self.record.units.extend(new);
        self.record.calls = self.record.calls.saturating_add(1);
        self.record.underway = Some(Underway { changes: self.plan.changes(), folders: folders.into_iter().collect() });
        self.record.write(self.files)
    }

    fn carry_out(&mut self, report: &mut Report<'_>) -> Result<(), String> {
        for step in self.plan.steps.iter().filter(|step| !matches!(step, Step::Create(..))) {
            let copy = Record::kept(self.record.calls, step.key());
            self.files.copy(step.key(), &copy).map_err(|error| error.to_string())?;
        }
        if let Some(services) = &mut self.services {
            services.stop_dropped(self.plan, report)?;
        }
        let results = self.files.apply(&self.plan.steps);
        // The one that failed by itself, not those that it kept back.
        let failures: Vec<FileError> = results.into_iter().filter_map(Result::err).collect();
        if let Some(first) = failures.iter().find(|failure| !failure.is_consequence()) {
            return Err(first.to_string());
        }
        match &mut self.services {
            Some(services) => services.bring_up(self.plan, report),
            None => Ok(()),
        }
    }

    /// Writes down that it is done.
    fn conclude(&mut self) -> Result<(), String> {
        let mut done = self.record.clone();
        let Some(underway) = done.underway.take() else { return Ok(()) };
        done.of = Some(Whose::of(self.manifest));
        done.folders.extend(underway.folders);
        done.units = self.manifest.units.iter().map(|unit| unit.name.clone()).collect();
        done.stale.clear();
        done.files.retain(|path, _| self.manifest.files.contains_key(path.as_path()));
        for Change { path, after, .. } in underway.changes {
            if let Some(file) = after {
                done.files.insert(path.clone(), file);
            }
            done.replaced.push(path);
        }
        done.write(self.files)?;
        *self.record = done;
        Ok(())
    }

    /// Brings files and units back to what they were; returns what failed and how that went.
    fn undo(&mut self, before: &Record, failure: &str, report: &mut Report<'_>) -> String {
        report.say(&format!("failed: {failure}"));
        report.say("what was done is undone:");
        let mut problems = Vec::new();
        if let Some(services) = &mut self.services {
            problems.extend(services.stop_new(report));
        }
        problems.extend(put_back(self.files, self.record).err());
        if let Some(services) = &mut self.services {
            problems.extend(services.restore(self.plan.touches_units(), report));
        }
        if problems.is_empty() {
            let calls = self.record.calls;
            *self.record = Record { calls, ..before.clone() };
            problems.extend(self.record.write(self.files).err());
        }
        let end = match problems.is_empty() {
            true => "files and units are as they were before".to_owned(),
            false => {
                format!("not everything could be put back: {}; run it again when that is mended", problems.join("; "))
            }
        };
        format!("{failure}\n{end}")
    }
}

/// Puts the files back that a call was changing when it ended, and forgets its copies.
///
/// # Errors
/// When one cannot be put back; the record keeps what is to be done.
pub(super) fn put_back(files: &Files, record: &mut Record) -> Result<(), String> {
    let Some(underway) = &record.underway else { return Ok(()) };
    let undone = || {
        let mut copies = BTreeSet::new();
        for Change { path, before, after } in underway.changes.iter().rev() {
            files.undo(path, before.is_some(), after.as_ref())?;
            if before.is_some() {
                let copy = Record::kept(record.calls, path);
                files.discard(&copy)?;
                let above = Record::kept_folder(record.calls);
                copies.extend(
                    copy.ancestors().skip(1).take_while(|folder| folder.starts_with(&above)).map(PathBuf::from),
                );
            }
        }
        files.remove_folders(&copies.into_iter().collect::<Vec<_>>())?;
        files.remove_folders(&underway.folders)
    };
    undone().map_err(|error: FileError| error.to_string())?;
    record.underway = None;
    record.write(files)
}

/// Removes what the last call could have put back, and the folders of ours in which nothing is any more.
///
/// # Errors
/// When the file system refuses; the next call does it.
pub(super) fn clean_up(files: &Files, record: &mut Record) -> Result<(), String> {
    if record.replaced.is_empty() {
        return Ok(());
    }
    let failed = |error: FileError| error.to_string();
    record.replaced.iter().try_for_each(|path| files.settle(path)).map_err(failed)?;
    files.remove_folders(&record.folders).map_err(failed)?;
    let mut folders = Vec::new();
    for folder in &record.folders {
        if !files.missing_folders(&folder.join("file").as_path().into()).map_err(failed)?.contains(folder) {
            folders.push(folder.clone());
        }
    }
    record.folders = folders;
    record.replaced.clear();
    record.write(files)
}
