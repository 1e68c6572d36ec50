//! `netd doctor`: what keeps Pods from reaching each other, each finding with its fix.
//!
//! One file per check, which judges [`Facts`] and does nothing else; [`facts`] and [`probing`] gather them. Invariants: a
//! finding names its object and what to do; what could not be found out is said, never taken for well.

mod bridge;
mod clock;
mod daemon;
mod duplicates;
mod entrance;
pub(crate) mod facts;
mod firewall;
mod forwarding;
mod holders;
pub(crate) mod kept;
mod networks;
mod outer;
pub(crate) mod packet;
mod paths;
pub(crate) mod probing;
mod reverse_path;

use ::daemon::lifecycle::Exit;
use ::daemon::status::Lines;
use anyhow::Result;
use serde::Serialize;

use crate::command::args::Flags;
pub(crate) use facts::{Facts, ask};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; packets pass.
    Note,
    /// Some packets do not pass, or will not.
    Problem,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The check.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, on which object.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// One check: its name, what is said when it finds nothing, and its judgement.
struct Check {
    name: &'static str,
    well: &'static str,
    judge: fn(&Facts) -> Vec<Trouble>,
}

/// What is wrong, before it is known which check said so.
struct Trouble {
    severity: Severity,
    found: String,
    fix: String,
}

impl Trouble {
    fn problem(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, found: found.into(), fix: fix.into() }
    }

    fn note(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Note, found: found.into(), fix: fix.into() }
    }
}

/// The checks in the order in which they are made.
const CHECKS: [Check; 12] = [
    Check { name: "daemon", well: "netd runs, and every row is in the kernel", judge: daemon::judge },
    Check { name: "forwarding", well: "packets are forwarded", judge: forwarding::judge },
    Check { name: "rp_filter", well: "no packet was dropped for its source address", judge: reverse_path::judge },
    Check { name: "br_netfilter", well: "bridged packets pass the rules", judge: bridge::judge },
    Check { name: "networks", well: "no network overlaps another", judge: networks::judge },
    Check { name: "duplicates", well: "every node has an address and a subnet of its own", judge: duplicates::judge },
    Check { name: "outer", well: "tunnels have a route to every node", judge: outer::judge },
    Check { name: "port", well: "every node answers", judge: paths::reachability },
    Check { name: "checksum", well: "packets with checksums arrive", judge: paths::checksums },
    Check { name: "mtu", well: "packets of the Pods' size arrive whole", judge: paths::sizes },
    Check { name: "firewall", well: "no rule dropped a packet meanwhile", judge: firewall::judge },
    Check { name: "clock", well: "the nodes' clocks agree", judge: clock::judge },
];

/// Makes every check and prints what it found; exit status 1 when there is a problem.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn act(flags: &Flags, probe_port: Option<u16>, json: bool) -> Result<Exit> {
    let facts = facts::gather(flags, probe_port)?;
    let findings = examine(&facts);
    if json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{}", text(&findings));
    }
    let worst = findings.iter().map(|finding| finding.severity).max();
    Ok(if worst == Some(Severity::Problem) { Exit::Failure } else { Exit::Success })
}

fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in &CHECKS {
        let troubles = (check.judge)(facts);
        if troubles.is_empty() {
            let found = check.well.to_owned();
            findings.push(Finding { check: check.name, severity: Severity::Ok, found, fix: String::new() });
        }
        findings.extend(troubles.into_iter().map(|Trouble { severity, found, fix }| Finding {
            check: check.name,
            severity,
            found,
            fix,
        }));
    }
    findings
}

fn text(findings: &[Finding]) -> String {
    let mut lines = Lines::new();
    for finding in findings {
        let mark = match finding.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Problem => "PROBLEM",
        };
        lines.push(format_args!("{mark:<8} {:<12} {}", finding.check, finding.found));
        if !finding.fix.is_empty() {
            lines.push(format_args!("{:<8} {:<12} {}", "", "to do", finding.fix));
        }
    }
    lines.into_text()
}

#[cfg(test)]
mod tests;
