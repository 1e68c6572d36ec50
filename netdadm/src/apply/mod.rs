//! `apply`: brings one host to what a rendered folder has for it: files, then units, in the manifest's order.
//!
//! Invariant: a call that ends in any way leaves the host as it was or as the folder says, or the next call knows what to put back first. The
//! record is written before anything is touched; a file that is not ours is touched only when the order says so.

mod act;
mod plan;
mod ready;
mod record;
mod services;
mod tree;

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use daemon::terminal;
use host::{Files, Manifest};
use reconcile::Target;

use act::Act;
use plan::Plan;
use record::Record;
use services::Services;
use tree::Tree;

use crate::facts::is_own;

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The host's name in the folder.
    pub(crate) host: String,
    /// The rendered folder.
    pub(crate) out: PathBuf,
    /// Where the files go, for a machine that does not run; `None` is this machine, with its units.
    pub(crate) root: Option<PathBuf>,
    /// Take a host over that was applied from the folder of another cluster or host.
    pub(crate) adopt: bool,
    /// Replace files that we did not write, or that somebody has changed since.
    pub(crate) overwrite: bool,
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The host is as the folder says.
    Applied,
    /// The person who was asked said no.
    Declined,
    /// Something failed; what was done is put back, or the text says what is not.
    Undone(String),
}

/// Where a call says what it does, a line for each thing.
pub(crate) struct Report<'a> {
    out: &'a mut dyn Write,
}

impl Report<'_> {
    /// Prints a line.
    fn say(&mut self, line: &str) {
        // Whoever reads may have read enough; the work goes on.
        let line = terminal::plain(line);
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }
}

/// Carries out an order; `confirm` asks a person.
///
/// # Errors
/// When the order is refused: nothing was touched then.
pub(crate) fn run(
    order: &Order,
    out: &mut dyn Write,
    confirm: &mut dyn FnMut(&str) -> Result<bool, String>,
) -> Result<End, String> {
    let mut report = Report { out };
    let tree = tree::read(&order.out, &order.host)?;
    if order.root.is_none() {
        check_name(&order.host)?;
    }
    let mut files = Files::open(order.root.as_deref().unwrap_or(Path::new("/"))).map_err(|error| error.to_string())?;
    let _lock = Record::lock(&files)?;
    let mut record = Record::read(&files)?;
    if !order.adopt {
        record.check(&tree.manifest)?;
    }
    let mut services = if order.root.is_none() { Some(Services::connect()?) } else { None };
    if let Some(underway) = &record.underway {
        let question = format!("An earlier call was cut off; its {} files are put back first.", underway.changes.len());
        report.say(&question);
        if !confirm("Put them back?")? {
            return Ok(End::Declined);
        }
        act::put_back(&files, &mut record)?;
    }
    act::clean_up(&files, &mut record)?;
    let Tree { manifest, contents } = tree;
    check_owners(&files, &manifest)?;
    files.recall(record.files.clone());
    contents.into_iter().for_each(|(path, content)| files.offer(path, content));
    let plan = plan_for(order, &manifest, &record, &mut files, services.as_ref())?;
    let title = format!("{} of cluster {}", manifest.host, manifest.cluster);
    if plan.is_empty() && record.is_of(&manifest) {
        let (files, units) = (manifest.files.len(), manifest.units.len());
        report.say(&format!("{title}: nothing to do, its {files} files and {units} units are as the folder says"));
        plan.lines().iter().for_each(|line| report.say(&format!("  {line}")));
        return Ok(End::Applied);
    }
    report.say(&format!("{title}:"));
    plan.lines().iter().for_each(|line| report.say(&format!("  {line}")));
    if !confirm("Do it?")? {
        return Ok(End::Declined);
    }
    Act { files: &mut files, record: &mut record, services: services.as_mut(), manifest: &manifest, plan: &plan }
        .run(&mut report)
}

/// What is to be done, or what is in the way.
fn plan_for(
    order: &Order,
    manifest: &Manifest,
    record: &Record,
    files: &mut Files,
    services: Option<&Services>,
) -> Result<Plan, String> {
    let found = files.observe().map_err(|error| error.to_string())?;
    let mut plan = Plan::of_files(manifest, record, &found, order.overwrite);
    if !plan.foreign.is_empty() {
        let lines = plan.foreign.iter().map(|(path, reason)| format!("\n  {path} {reason}"));
        return Err(format!(
            "nothing was touched: {} of the files are not ours:{}\nTo replace them, with a copy kept of each, say --overwrite",
            plan.foreign.len(),
            lines.collect::<String>()
        ));
    }
    if let Some(services) = services {
        plan.add_units(manifest, record, |name| services.state(name))?;
    }
    Ok(plan)
}

/// Refuses the folder of another host: it would give this one that one's keys and addresses.
fn check_name(host: &str) -> Result<(), String> {
    let path = "/proc/sys/kernel/hostname";
    let own = std::fs::read_to_string(path).map_err(|cause| format!("read {path}: {cause}"))?;
    if is_named(own.trim(), host) || has_address(host) {
        return Ok(());
    }
    Err(format!(
        "this machine is called {:?}, not {host:?}; name the right host, or, if the machine's name is wrong: hostnamectl set-hostname {host}",
        own.trim()
    ))
}

/// Whether this machine has the address that the host is named by; what it calls itself is of no account then.
fn has_address(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(is_own)
}

/// Whether a machine that calls itself `own` is the host; one of both names may lack the domain.
fn is_named(own: &str, host: &str) -> bool {
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    own.eq_ignore_ascii_case(host) || (first(own) == first(host) && own.contains('.') != host.contains('.'))
}

fn check_owners(files: &Files, manifest: &Manifest) -> Result<(), String> {
    let wrong = |(path, entry): (&PathBuf, &host::FileEntry)| {
        files.check_owner(&entry.into()).map_err(|cause| format!("{} is for {}: {cause}", path.display(), entry.owner))
    };
    manifest.files.iter().try_for_each(wrong)
}
