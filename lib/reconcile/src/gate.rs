//! `Gate`: no removal before every source has said "that is all".
//!
//! Invariant: once open it stays open. A source that is listed again later (a compaction, a reconnect) hands its
//! consumers a complete snapshot, so nothing is missing meanwhile.

use std::collections::BTreeSet;

/// The sources that have not completed their first list yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gate {
    waiting: BTreeSet<String>,
}

impl Gate {
    /// A gate that waits for each of `sources`.
    pub fn new(sources: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { waiting: sources.into_iter().map(Into::into).collect() }
    }

    /// `source` has completed its first list. Answers true when that opened the gate.
    pub fn complete(&mut self, source: &str) -> bool {
        self.waiting.remove(source) && self.is_open()
    }

    /// True when removals may run.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The sources that are still awaited, in order, for the status page.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.waiting.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_the_last_source_and_says_so_once() {
        let mut gate = Gate::new(["leases", "node"]);
        assert!(!gate.complete("leases"));
        assert!(!gate.complete("unknown"));
        assert_eq!(gate.waiting().collect::<Vec<_>>(), ["node"]);
        assert!(gate.complete("node"));
        assert!(gate.is_open());
        assert!(!gate.complete("node"));
    }
}
