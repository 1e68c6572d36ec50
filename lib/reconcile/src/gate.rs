//! `Gate`: no removal before every kind of desired state is known whole.
//!
//! Invariant: once open it stays open. While a source is listed again (a compaction, a reconnect) its
//! consumers keep what they know, so nothing is missing meanwhile.

use std::collections::BTreeSet;

/// The kinds whose first list is not complete yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate<K> {
    waiting: BTreeSet<K>,
}

impl<K: Ord> Gate<K> {
    /// A gate that waits for each of `kinds`.
    pub fn new(kinds: impl IntoIterator<Item = K>) -> Self {
        Self { waiting: kinds.into_iter().collect() }
    }

    /// The first list of `kind` is complete. Returns whether that opened the gate.
    pub fn complete(&mut self, kind: &K) -> bool {
        self.waiting.remove(kind) && self.is_open()
    }

    /// True when removals may run.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The kinds that are still awaited, in order, for the status page.
    pub fn waiting(&self) -> impl Iterator<Item = &K> {
        self.waiting.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_the_last_kind_and_says_so_once() {
        let mut gate = Gate::new(["leases", "node"]);
        assert!(!gate.complete(&"leases"));
        assert!(!gate.complete(&"unknown"));
        assert_eq!(gate.waiting().collect::<Vec<_>>(), [&"node"]);
        assert!(gate.complete(&"node"));
        assert!(gate.is_open());
        assert!(!gate.complete(&"node"));
    }
}
