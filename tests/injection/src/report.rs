//! A process followed by another one, and what that one says of it.
//!
//! Invariant: a line each, in the form in which it is read.

use std::fmt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{Effect, Plan};

/// What has been seen of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many operations have begun.
    pub operations: usize,
    /// Its faults in their order: the kind of operation, and the whole in words.
    pub faults: Vec<(String, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.operations)?;
        self.faults.iter().try_for_each(|(kind, words)| writeln!(f, "{kind} {words}"))
    }
}

impl Report {
    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let operations = lines.next().and_then(|line| line.parse().ok()).unwrap_or_default();
        let faults = lines.filter_map(|line| line.split_once(' '));
        Self { operations, faults: faults.map(|(kind, words)| (kind.to_owned(), words.to_owned())).collect() }
    }
}

/// A process that the program `injection` follows.
#[derive(Debug)]
pub struct Followed(Child);

impl Followed {
    /// Has `program` follow the process that the launcher started.
    #[must_use]
    pub fn start(program: &Path, process: i32, plan: &Plan) -> Self {
        let words = plan.iter().map(|(number, effect)| match effect {
            Effect::Fails(errno) => format!("{number}={errno}"),
            Effect::Killed => format!("{number}=kill"),
        });
        let command = Command::new(program).arg(process.to_string()).args(words).stdout(Stdio::piped()).spawn();
        Self(command.unwrap())
    }

    /// What it has seen; the process has ended, or is about to.
    #[must_use]
    pub fn finish(self) -> Report {
        let output = self.0.wait_with_output().unwrap();
        assert!(output.status.success(), "the supervisor ended with {}", output.status);
        Report::read(&String::from_utf8_lossy(&output.stdout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let faults = vec![("Open".to_owned(), "operation 3, Open /run/x fails with EIO".to_owned())];
        let report = Report { operations: 7, faults };
        assert_eq!(Report::read(&report.to_string()), report);
    }
}
