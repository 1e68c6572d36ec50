//! The report: headings, tables and what the kernel holds, as plain text.
//!
//! Invariant: every check that the demo makes is printed with what was expected and what came, and a failed one is counted.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Collects failures while it prints.
#[derive(Debug)]
pub(crate) struct Report {
    started: Instant,
    failures: Vec<String>,
    checks: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), failures: Vec::new(), checks: 0 }
    }

    /// Begins a step.
    pub(crate) fn step(&self, title: &str) {
        println!("\n== {title}  ({:.1} s)", self.started.elapsed().as_secs_f64());
    }

    /// Prints a table, columns as wide as their widest cell.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        let cell = |row: &[String], column: usize| row.get(column).map_or(0, |text| text.chars().count());
        let width = |column: usize, title: &str| {
            rows.iter().map(|row| cell(row, column)).chain([title.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = head.iter().enumerate().map(|(column, title)| width(column, title)).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::from("  ");
            for (cell, width) in cells.zip(&widths) {
                let _ = write!(text, "{cell:<width$}  ");
            }
            println!("{}", text.trim_end());
        };
        line(&mut head.iter().copied());
        for row in rows {
            line(&mut row.iter().map(String::as_str));
        }
    }

    /// Prints what a command showed, indented.
    pub(crate) fn text(&self, title: &str, text: &str) {
        println!("  -- {title}");
        for line in text.lines() {
            println!("     {line}");
        }
    }

    /// Counts a check and answers the word for its row.
    pub(crate) fn check(&mut self, passed: bool, what: &str) -> String {
        self.checks += 1;
        if passed {
            return "ok".to_owned();
        }
        self.failures.push(what.to_owned());
        "FAILED".to_owned()
    }

    /// Prints the sum; true when every check passed.
    pub(crate) fn finish(&self) -> bool {
        let seconds = self.started.elapsed().as_secs_f64();
        println!();
        if self.failures.is_empty() {
            println!("{} checks passed in {seconds:.1} s", self.checks);
            return true;
        }
        println!("{} of {} checks FAILED in {seconds:.1} s:", self.failures.len(), self.checks);
        for failure in &self.failures {
            println!("  {failure}");
        }
        false
    }
}

/// A duration in milliseconds with two digits behind the point.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}
