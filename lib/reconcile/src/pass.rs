//! `Pass`: what one run over one or several tables did, in numbers, with what failed.

use std::error::Error;
use std::fmt;
use std::ops::AddAssign;

use crate::chain::Chain;
use crate::target::{Classify, RetryClass};

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// Tables that were listed.
    pub observed: usize,
    /// Rows created or changed.
    pub upserted: usize,
    /// Of these, rows that somebody else had taken away or changed.
    pub repaired: usize,
    /// Rows removed.
    pub removed: usize,
    /// Steps and listings that failed.
    pub failed: usize,
    /// What they failed of.
    pub errors: Vec<Failure>,
    /// Rows that were written, where the table keeps them ([`crate::Stage::keep_written`]).
    pub written: Vec<Written>,
}

/// A row that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The table's name.
    pub table: &'static str,
    /// The row's key.
    pub row: String,
    /// The value that it has now, or had before it was removed.
    pub value: String,
    /// What was done with it.
    pub done: Done,
}

/// What was done with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was missing.
    Created,
    /// It had another value.
    Changed,
    /// Somebody else had taken it away or changed it.
    Repaired,
    /// Nobody desires it.
    Removed,
}

/// A step or a listing that failed; its text is `table: what failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The table's name.
    pub table: &'static str,
    /// What to do about it.
    pub class: RetryClass,
    /// The operating system's number, where it gave one.
    pub errno: Option<i32>,
    /// Failures in a row of this row, this one included; 1 for a listing.
    pub times: u32,
    /// The error's text.
    pub reason: String,
}

impl Failure {
    /// The failure of an operation on `table`.
    pub fn new(table: &'static str, error: &(impl Classify + Error + 'static)) -> Self {
        Self { table, class: error.class(), errno: error.errno(), times: 1, reason: Chain(error).to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.table, self.reason)
    }
}

impl Pass {
    /// True when the pass changed nothing and nothing failed.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.upserted == 0 && self.removed == 0 && self.failed == 0
    }

    /// Notes a failed step or listing.
    pub fn fail(&mut self, failure: Failure) {
        self.failed += 1;
        self.errors.push(failure);
    }
}

impl AddAssign for Pass {
    fn add_assign(&mut self, other: Self) {
        // Destructured, so that a new field cannot be forgotten.
        let Self { observed, upserted, repaired, removed, failed, errors, written } = other;
        self.observed += observed;
        self.upserted += upserted;
        self.repaired += repaired;
        self.removed += removed;
        self.failed += failed;
        self.errors.extend(errors);
        self.written.extend(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_add_up_in_every_number() {
        let errno = |reason: &str| Failure {
            table: "t",
            class: RetryClass::Retry,
            errno: Some(17),
            times: 1,
            reason: reason.into(),
        };
        let written = || Written { table: "t", row: "r".into(), value: "v".into(), done: Done::Created };
        let mut sum = Pass::default();
        assert!(sum.is_idle());
        for reason in ["first", "second"] {
            let mut one =
                Pass { observed: 1, upserted: 2, repaired: 1, removed: 3, written: vec![written()], ..Pass::default() };
            one.fail(errno(reason));
            sum += one;
        }
        let errors = vec![errno("first"), errno("second")];
        let written = vec![written(), written()];
        assert_eq!(sum, Pass { observed: 2, upserted: 4, repaired: 2, removed: 6, failed: 2, errors, written });
        assert_eq!(sum.errors[1].to_string(), "t: second");
        assert!(!sum.is_idle());
    }
}
