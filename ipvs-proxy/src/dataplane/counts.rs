//! `Counts`: who needs the rows that are not one frontend's own.
//!
//! Invariant: a row is there as long as one frontend needs it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

/// How many frontends need each thing.
#[derive(Debug, Clone)]
pub(super) struct Counts<K>(BTreeMap<K, u32>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Counts<K> {
    /// Takes in that a frontend which needed `before` needs `after` now; returns what began to be needed (`true`) and what
    /// nobody needs any more.
    pub(super) fn change(&mut self, before: &BTreeSet<K>, after: &BTreeSet<K>) -> Vec<(K, bool)> {
        let mut changed = Vec::new();
        for key in before.difference(after) {
            if let Entry::Occupied(mut users) = self.0.entry(key.clone()) {
                *users.get_mut() = users.get().saturating_sub(1);
                if *users.get() == 0 {
                    users.remove();
                    changed.push((key.clone(), false));
                }
            }
        }
        for key in after.difference(before) {
            let users = self.0.entry(key.clone()).or_default();
            *users = users.saturating_add(1);
            if *users == 1 {
                changed.push((key.clone(), true));
            }
        }
        changed
    }
}
