//! `Parts`: the plan of all leases in parts, so that the first ones are written while the others are decided about.
//!
//! Invariants: every lease is known before the first part is made, so no part depends on a later one; all parts together are
//! the rows of the other nodes in the whole plan.

use std::sync::Arc;

use super::{Changes, Disputed, PeerRows, Planner, Tables};
use crate::format::lease::{StoredLease, SubnetKey};

/// Leases of one part: enough that a part costs no more than its rows, few enough that the kernel waits a millisecond for it.
const PART: usize = 1024;

/// Leases that are still to be decided about.
pub(crate) struct Parts {
    keys: std::vec::IntoIter<SubnetKey>,
    disputed: Disputed,
}

impl Parts {
    /// True when every part has been made.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.len() == 0
    }
}

impl Planner {
    /// True when no lease is known.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Takes in leases that are there, differ or are gone, and begins to plan all of them anew.
    pub(crate) fn begin(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>) -> Parts {
        if self.leases.is_empty() {
            self.fill(leases);
        } else {
            self.set(leases);
            self.pack();
        }
        self.forget_verdicts();
        self.entered.clear();
        Parts { keys: self.leases.keys().copied().collect::<Vec<_>>().into_iter(), disputed: self.disputed() }
    }

    /// The rows of the next leases.
    pub(crate) fn part(&mut self, parts: &mut Parts) -> Changes {
        let mut rows = PeerRows::default();
        self.settle(parts.keys.by_ref().take(PART), Some(&parts.disputed), &mut rows);
        self.added(rows)
    }

    /// The rows that this node needs whatever the other nodes are.
    pub(crate) fn own_part(&self) -> Changes {
        Changes::between(Tables::default(), self.local_rows())
    }
}

#[cfg(test)]
impl Planner {
    /// All parts at once, those of this node itself among them.
    pub(crate) fn update_all(
        &mut self,
        leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>,
    ) -> Changes {
        let mut parts = self.begin(leases);
        let mut changes = self.own_part();
        while !parts.is_empty() {
            changes.extend(self.part(&mut parts));
        }
        changes
    }
}
