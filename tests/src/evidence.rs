//! The logs of a test's processes, kept until the verdict: a failed test prints the end of each.
//!
//! Invariant: a record belongs to the test whose thread started the process (the harness runs every test on one thread), so
//! tests that run side by side never print each other's logs.

use std::cell::RefCell;
use std::sync::Arc;

use crate::process::Record;

thread_local! {
    static RECORDS: RefCell<Vec<(String, Arc<Record>)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the record of a process that this thread has started.
pub(crate) fn remember(name: &str, record: &Arc<Record>) {
    RECORDS.with_borrow_mut(|records| records.push((name.to_owned(), Arc::clone(record))));
}

/// Forgets everything, before the thread runs its next test.
pub(crate) fn clear() {
    RECORDS.with_borrow_mut(Vec::clear);
}

/// The end of the log of every process that this thread has started, in the order of starting: what a failed test shows.
#[must_use]
pub fn report() -> String {
    RECORDS.with_borrow(|records| {
        records
            .iter()
            .map(|(name, record)| format!("\n  log of {name}:\n{}", record.tail()))
            .collect::<Vec<_>>()
            .join("")
    })
}
