//! `check`: reads a topology, prints what is wrong with it, or what it makes.
//!
//! Invariant: a file that cannot be read and one that is wrong are different ends.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use daemon::json;
use daemon::status::escape;
use serde::Serialize;

use super::args::Check;
use super::said;
use crate::check::{self, Checked};
use crate::document::{Finding, Severity};
use crate::topology::Topology;

/// A finding for programs.
#[derive(Serialize)]
struct Row<'a> {
    file: &'a str,
    line: usize,
    column: usize,
    severity: &'static str,
    field: &'a str,
    found: &'a str,
    accepted: &'a str,
}

/// Checks the file that was named.
///
/// # Errors
/// When it cannot be read, or what was found cannot be written.
pub(super) fn run(asked: &Check, out: &mut impl Write) -> Result<ExitCode, String> {
    let name = asked.file.display().to_string();
    let text = read(&asked.file).map_err(|cause| format!("read {name}: {cause}"))?;
    let Checked { topology, findings } = check::text(&text);
    let sound = topology.is_some();
    let printed = if asked.json { json(&name, &findings)? } else { plain(&name, &findings, topology.as_ref()) };
    said(out, &printed)?;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The topology of `file`, for a verb that goes on with it; where it has errors there is none, and they are printed.
///
/// # Errors
/// When it cannot be read, or what was found cannot be written.
pub(super) fn topology(file: &Path, out: &mut impl Write) -> Result<Option<Topology>, String> {
    let name = file.display().to_string();
    let text = read(file).map_err(|cause| format!("read {name}: {cause}"))?;
    let Checked { topology, findings } = check::text(&text);
    if topology.is_none() {
        said(out, &plain(&name, &findings, None))?;
    }
    Ok(topology)
}

/// The text of `file`, or of standard input.
///
/// # Errors
/// What the system says.
pub(super) fn read(file: &Path) -> io::Result<String> {
    bounded::read_argument(file, bounded::MANIFEST)
}

/// The findings, how many there are, and what the hosts will be.
pub(super) fn plain(name: &str, findings: &[Finding], topology: Option<&Topology>) -> String {
    let mut text = String::new();
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    for finding in findings {
        // Writing into a text does not fail.
        let _ = writeln!(text, "{}", escape(&format!("{name}:{finding}")));
    }
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (count(errors, "error"), count(findings.len().saturating_sub(errors), "warning"));
    let _ = writeln!(text, "{name}: {errors}, {warnings}");
    text + &topology.map_or_else(String::new, check::summary)
}

fn json(name: &str, findings: &[Finding]) -> Result<String, String> {
    let row = |finding: &Finding| -> serde_json::Result<String> {
        serde_json::to_string(&Row {
            file: name,
            line: finding.at.line,
            column: finding.at.column,
            severity: if finding.severity == Severity::Error { "error" } else { "warning" },
            field: &finding.problem.field,
            found: &finding.problem.found,
            accepted: &finding.problem.accepted,
        })
    };
    let rows: serde_json::Result<Vec<String>> = findings.iter().map(row).collect();
    let text = rows.map_err(|cause| format!("print findings: {cause}"))?.join(",\n ");
    Ok(format!("[{}]\n", json::escaped(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_has_16_mib_at_most() {
        let asked = Check { file: "/dev/zero".into(), json: false };
        let error = run(&asked, &mut io::sink()).unwrap_err();
        assert!(error.contains("read /dev/zero: it has more than 16777216 bytes"), "{error}");
    }
}
