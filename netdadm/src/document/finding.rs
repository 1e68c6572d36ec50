//! `Finding`: one thing wrong with a topology, with its place; `Findings`: all of them.
//!
//! Invariant: findings come out in the order of the file, each once.

use std::fmt;

use cluster::Problem;

use super::Position;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// No cluster can be made of it.
    Error,
    /// A cluster can be made of it; whoever wrote it should know.
    Warning,
}

/// One thing wrong with a topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where.
    pub(crate) at: Position,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// What.
    pub(crate) problem: Problem,
}

impl Finding {
    /// No cluster can be made of this.
    pub(crate) const fn error(at: Position, problem: Problem) -> Self {
        Self { at, severity: Severity::Error, problem }
    }

    /// Whoever wrote this should know.
    pub(crate) const fn warning(at: Position, problem: Problem) -> Self {
        Self { at, severity: Severity::Warning, problem }
    }
}

impl fmt::Display for Finding {
    /// `12:5: hosts.a.address: found; accepted: …`, as compilers print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        write!(f, "{}:{}: {word}{}", self.at.line, self.at.column, self.problem)
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    /// Adds one that lets no cluster be made.
    pub(crate) fn error(&mut self, at: Position, field: &str, found: impl Into<String>, accepted: impl Into<String>) {
        self.0.push(Finding::error(at, Problem::new(field, found, accepted)));
    }

    /// Adds one to know of.
    pub(crate) fn warning(&mut self, at: Position, field: &str, found: impl Into<String>, accepted: impl Into<String>) {
        self.0.push(Finding::warning(at, Problem::new(field, found, accepted)));
    }

    /// All of them in the order of the file.
    pub(crate) fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| (finding.at, finding.severity));
        self.0.dedup();
        self.0
    }
}
