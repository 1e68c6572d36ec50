//! An audit in parts: the table is compared with what it is known to hold while its rows go on being written.
//!
//! Invariant: an audit changes nothing that is known. A row that is written meanwhile is not compared, because the listing may
//! have it as it was, twice or not at all; whatever else differs has the table listed whole, and that listing decides.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::stage::Audited;
use crate::target::{Observed, PartsOf, Target};

/// How far the comparison is.
pub(super) struct Audit<T: Target> {
    parts: PartsOf<T>,
    /// Rows that are as they are known to be, in the order of the listing.
    same: Vec<T::Key>,
    /// Rows that were written since the audit began.
    touched: BTreeSet<T::Key>,
}

impl<T: Target> Reconciler<T> {
    /// Reads and compares the next part; an error has the table listed whole, which reports it.
    pub(super) fn audit_part(&mut self) -> Audited {
        if self.mirror.is_none() {
            return Audited::Due;
        }
        let Some(mut audit) = self.audit.take() else { return self.begin_audit() };
        match audit.parts.next() {
            Some(Ok(rows)) if rows.iter().all(|row| audit.touched.contains(&row.0) || self.is_known(row)) => {
                audit.same.extend(rows.into_iter().map(|(key, _)| key));
                self.audit = Some(audit);
                Audited::More
            }
            Some(_) => Audited::Due,
            None if self.is_whole(audit.same, &audit.touched) => Audited::Same,
            None => Audited::Due,
        }
    }

    fn begin_audit(&mut self) -> Audited {
        if self.target.is_unchanged() {
            return Audited::Same;
        }
        let Ok(Some(parts)) = self.target.parts() else { return Audited::Due };
        self.totals.listings += 1;
        self.audit = Some(Audit { parts, same: Vec::new(), touched: BTreeSet::new() });
        Audited::More
    }

    /// Notes that the row `key` is being written, or found to be something else.
    pub(super) fn touch(&mut self, key: &T::Key) {
        if let Some(audit) = &mut self.audit {
            audit.touched.insert(key.clone());
        }
    }

    fn is_known(&self, (key, row): &(T::Key, Observed<T::Value>)) -> bool {
        let known = self.mirror.as_ref().and_then(|mirror| mirror.get(key));
        known.is_some_and(|known| known.owner == row.owner && self.target.satisfies(&row.value, &known.value))
    }

    /// True when the rows that are the `same` are all that are known, but for those that were touched.
    fn is_whole(&self, mut same: Vec<T::Key>, touched: &BTreeSet<T::Key>) -> bool {
        let Some(mirror) = &self.mirror else { return false };
        if !touched.is_empty() {
            same.retain(|key| !touched.contains(key));
            same.sort_unstable();
            same.dedup();
        }
        let left = touched.iter().filter(|key| mirror.contains_key(*key)).count();
        same.len() + left == mirror.len()
    }
}
