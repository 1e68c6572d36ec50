//! `preflight`: examines the host that it runs on.
//!
//! Invariant: nothing is changed on it; a topology with errors is no topology.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use daemon::doctor::{self, Severity};
use daemon::json;

use super::args::Preflight;
use super::{verify, written};
use crate::check::{self, Checked};
use crate::facts;
use crate::preflight::{self, Case, Plan};

/// Examines this host.
///
/// # Errors
/// When the topology cannot be read or has errors, has no such host, or what was found cannot be written.
pub(super) fn run(asked: &Preflight, out: &mut impl Write) -> Result<ExitCode, String> {
    let plan = asked.file.as_deref().map(|file| plan(file, asked.host.as_deref())).transpose()?;
    let facts = facts::gather(Path::new("/"), plan.as_ref());
    let findings = preflight::findings(&Case { facts, plan });
    let text = if asked.json {
        json::pretty(&findings).map_err(|cause| format!("print findings: {cause}"))?
    } else {
        doctor::text(&findings)
    };
    written(out, text.as_bytes())?;
    let is_fit = findings.iter().all(|finding| finding.severity != Severity::Problem);
    Ok(if is_fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The topology, and the host that is meant: the one that is named, else the one that this host calls itself.
fn plan(file: &Path, host: Option<&str>) -> Result<Plan, String> {
    let name = file.display();
    let text = verify::read(file).map_err(|cause| format!("read {name}: {cause}"))?;
    let Checked { topology, .. } = check::text(&text);
    let topology = topology.ok_or_else(|| format!("{name} has errors: see `netdadm check -f {name}`"))?;
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase();
    let wanted = host.unwrap_or(&own);
    let short = wanted.split('.').next().unwrap_or_default();
    let exact = topology.hosts.iter().find(|found| found.name.value == wanted);
    let found = exact.or_else(|| topology.hosts.iter().find(|found| found.name.value == short)).cloned();
    let known = || topology.hosts.iter().map(|host| host.name.value.as_str()).collect::<Vec<_>>().join(", ");
    let host = found.ok_or_else(|| format!("{name} has no host {wanted:?}: name one of {} by --host", known()))?;
    Ok(Plan { topology, host })
}
