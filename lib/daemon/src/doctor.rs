//! What the doctors of both daemons have in common: checks that judge facts, and how their findings are printed.
//!
//! Invariants: a finding names its object and what to do; a check that finds nothing is one line all the same.

use std::io;

use serde::Serialize;

use crate::json;
use crate::lifecycle::Exit;
use crate::status::{Lines, Table};
use crate::terminal;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; packets pass.
    Note,
    /// Some packets do not pass, or will not.
    Problem,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
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

/// One check on facts of this kind: its name, what is said when it finds nothing, and its judgement.
#[derive(Debug)]
pub struct Check<F> {
    /// Its name.
    pub name: &'static str,
    /// What is said when it finds nothing.
    pub well: &'static str,
    /// Its judgement.
    pub judge: fn(&F) -> Vec<Trouble>,
}

/// What is wrong, before it is known which check said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    severity: Severity,
    found: String,
    fix: String,
}

impl Trouble {
    /// Some packets do not pass.
    pub fn problem(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, found: found.into(), fix: fix.into() }
    }

    /// Worth knowing.
    pub fn note(found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Note, found: found.into(), fix: fix.into() }
    }

    /// A kernel table of `program` that is not as it should be: why, and what to do about that.
    #[must_use]
    pub fn of_table(name: &str, table: &Table, program: &str) -> Self {
        let Table { desired, done, error, open, .. } = table;
        let first = open.first();
        let row = first.map(|row| format!(": {} {} {}", row.state, row.key, row.reason).trim_end().to_owned());
        let why = error.as_ref().map(|error| format!(": {error}")).or(row).unwrap_or_default();
        let fix = match first {
            Some(row) if error.is_none() && row.reason.starts_with(reconcile::CONTESTED) => format!(
                "end the program that undoes it, or have it leave this row alone; the log of {program} names each row that is put right \
                 after `systemctl kill -s USR1 {program}`"
            ),
            _ => format!("see `{program} tables`; the reason says what the kernel did not take"),
        };
        Self::problem(format!("table {name}: {done} of {desired} rows in place{why}"), fix)
    }
}

/// Makes every check.
#[must_use]
pub fn examine<F>(checks: &[Check<F>], facts: &F) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in checks {
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

/// Prints the findings, as text or as JSON; the exit status is 1 when there is a problem.
///
/// # Errors
/// When they cannot be written.
pub fn print(findings: &[Finding], json: bool) -> io::Result<Exit> {
    terminal::put(&if json { json::pretty(findings)? } else { text(findings) })?;
    let worst = findings.iter().map(|finding| finding.severity).max();
    Ok(if worst == Some(Severity::Problem) { Exit::Failure } else { Exit::Success })
}

/// The findings for a terminal.
#[must_use]
pub fn text(findings: &[Finding]) -> String {
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
mod tests {
    use super::*;
    use crate::status::Row;

    const CHECKS: [Check<u32>; 2] = [
        Check { name: "even", well: "it is even", judge: |n| odd(*n) },
        Check {
            name: "small",
            well: "it is small",
            judge: |n| if *n > 9 { vec![Trouble::note("large", "")] } else { Vec::new() },
        },
    ];

    fn odd(n: u32) -> Vec<Trouble> {
        if n % 2 == 1 { vec![Trouble::problem(format!("{n} is odd\nok       even"), "add one")] } else { Vec::new() }
    }

    #[test]
    fn a_table_is_named_with_its_reason_and_with_what_helps_against_that() {
        let row = |state: &str, reason: &str| Row {
            key: "table ip netd".into(),
            state: state.into(),
            reason: reason.into(),
            times: 9,
        };
        let said = |error: Option<&str>, row: Option<Row>| {
            let table = Table {
                desired: 1,
                error: error.map(str::to_owned),
                open: row.into_iter().collect(),
                ..Table::default()
            };
            let Trouble { found, fix, .. } = Trouble::of_table("nft", &table, "netd");
            format!("{found} | {fix}")
        };
        let refused = said(None, Some(row("refused", "create table: EPERM")));
        assert!(
            refused.starts_with(
                "table nft: 0 of 1 rows in place: refused table ip netd create table: EPERM | see `netd tables`"
            ),
            "{refused}"
        );
        let undone = said(
            None,
            Some(row("retrying", "somebody else, probably nft (process 7), has undone it 9 times in a row")),
        );
        assert!(
            undone.contains("probably nft (process 7)") && undone.contains("| end the program that undoes it"),
            "{undone}"
        );
        assert!(undone.contains("systemctl kill -s USR1 netd") && !undone.contains("did not take"), "{undone}");
        let unlisted = said(Some("list tables: EPERM"), None);
        assert!(unlisted.starts_with("table nft: 0 of 1 rows in place: list tables: EPERM | "), "{unlisted}");
    }

    #[test]
    fn each_check_says_what_it_found_or_that_all_is_well_and_no_text_can_forge_a_line() {
        assert_eq!(
            text(&examine(&CHECKS, &2)),
            "ok       even         it is even\nok       small        it is small\n"
        );
        let bad = examine(&CHECKS, &11);
        assert_eq!(bad.iter().map(|finding| finding.severity).collect::<Vec<_>>(), [Severity::Problem, Severity::Note]);
        let all = text(&bad);
        assert_eq!(all.lines().count(), 3, "{all}");
        assert!(all.contains("PROBLEM  even         11 is odd\\nok") && all.contains("to do        add one"), "{all}");
    }
}
