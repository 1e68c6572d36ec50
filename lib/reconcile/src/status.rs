//! What is known of each row: whether it is in place, and if not, why and since when.

use std::time::Duration;

use crate::target::{Owner, RetryClass};

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not tried yet.
    Pending,
    /// In the kernel as desired.
    Done,
    /// The last try failed.
    Failed {
        /// What kind of failure.
        class: RetryClass,
        /// The error's text.
        reason: String,
        /// Failures in a row.
        times: u32,
        /// When the first of them happened, on the caller's clock.
        since: Duration,
        /// When the row is tried again, on the caller's clock.
        next: Duration,
    },
}

/// A row with its state, for status pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The row's key as text.
    pub key: String,
    /// Where it stands.
    pub state: State,
}

/// A row as it is desired and as it is, for whoever wants to compare by eye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The row's key as text.
    pub key: String,
    /// The desired value; `None` when nobody desires the row.
    pub desired: Option<String>,
    /// The value in the kernel and whose it is, as far as known; `None` when the row is missing or was not listed.
    pub actual: Option<(String, Owner)>,
    /// Where the row stands; a foreign row that nobody desires is `Done`.
    pub state: State,
}

/// What the reason of a row begins with that somebody else keeps undoing.
pub const CONTESTED: &str = "somebody else";

/// Rows of one table that a status has in full; beyond that only their number is said.
pub const SHOWN: usize = 100;

/// A table's state in numbers, with the first of the rows that are not in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableStatus {
    /// Rows that are desired.
    pub desired: usize,
    /// Of these, rows in place.
    pub done: usize,
    /// The rows that are not, those that failed before those that were not tried, each in key order; at most [`SHOWN`].
    pub open: Vec<Row>,
    /// How many there are in all.
    pub open_count: usize,
    /// Why the table could not be listed, if the last attempt failed.
    pub observe_error: Option<String>,
}

impl TableStatus {
    /// True when every desired row is in place and the table could be read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.open_count == 0 && self.observe_error.is_none() && self.done == self.desired
    }
}

/// A table in numbers, for metrics: the first four as they are now, the others since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that are desired.
    pub desired: usize,
    /// Of these, rows in place.
    pub done: usize,
    /// Rows of ours that the kernel holds; `None` while the table has to be listed again.
    pub actual: Option<usize>,
    /// Rows whose last try failed.
    pub failed: usize,
    /// Listings of the table.
    pub listings: u64,
    /// Rows created or changed.
    pub upserted: u64,
    /// Of these, rows that somebody else had taken away or changed.
    pub repaired: u64,
    /// Rows removed.
    pub removed: u64,
    /// Steps and listings that failed.
    pub failures: u64,
}
