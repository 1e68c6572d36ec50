//! An audit in parts: the table is compared with what it is known to hold while its rows go on being written.
//!
//! Invariants: an audit changes nothing that is known, and no step of it grows with the table. A row that is written meanwhile is
//! not compared, because the listing may have it as it was, twice or not at all. A listing that lacks rows after something was
//! written may have passed over them, and is made again; whatever else differs has the table listed whole, and that listing
//! decides.

use std::collections::BTreeSet;

use super::Reconciler;
use crate::stage::Audited;
use crate::target::{Observed, PartsOf, Target};

/// Listings in parts, beside the first one, of a table that is written all the time, before it is listed whole.
const AGAIN: u32 = 3;

/// Rows that are counted in one step.
const COUNTED: usize = 1024;

/// How far the comparison is.
pub(super) struct Audit<T: Target> {
    /// The listing; `None` when it is over.
    parts: Option<PartsOf<T>>,
    /// Rows that are as they are known to be, in the order of the listing.
    same: Vec<T::Key>,
    /// Those of them that were counted, where the listing may have rows twice.
    counted: BTreeSet<T::Key>,
    /// Rows that were written since the audit began.
    touched: BTreeSet<T::Key>,
    /// So often the listing may be made again.
    again: u32,
}

impl<T: Target> Reconciler<T> {
    /// Reads and compares the next part; an error has the table listed whole, which reports it.
    pub(super) fn audit_part(&mut self) -> Audited {
        if self.mirror.is_none() {
            return Audited::Due;
        }
        let Some(mut audit) = self.audit.take() else { return self.begin_audit(AGAIN) };
        match audit.parts.as_mut().map(Iterator::next) {
            Some(Some(Ok(rows))) if rows.iter().all(|row| audit.touched.contains(&row.0) || self.is_known(row)) => {
                audit.same.extend(rows.into_iter().map(|(key, _)| key));
            }
            Some(Some(_)) => return Audited::Due,
            Some(None) => audit.parts = None,
            None => audit.count(),
        }
        if !audit.is_over() {
            self.audit = Some(audit);
            return Audited::More;
        }
        match self.is_whole(&audit) {
            true => {
                self.target.confirm();
                Audited::Same
            }
            false if audit.touched.is_empty() || audit.again == 0 => Audited::Due,
            false => self.begin_audit(audit.again - 1),
        }
    }

    fn begin_audit(&mut self, again: u32) -> Audited {
        if self.target.is_unchanged() {
            return Audited::Same;
        }
        let Ok(Some(parts)) = self.target.parts() else { return Audited::Due };
        self.totals.listings += 1;
        let (parts, same, counted, touched) = (Some(parts), Vec::new(), BTreeSet::new(), BTreeSet::new());
        self.audit = Some(Audit { parts, same, counted, touched, again });
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

    /// True when the rows that are the same are all that are known, but for those that were touched.
    fn is_whole(&self, audit: &Audit<T>) -> bool {
        let Some(mirror) = &self.mirror else { return false };
        let Audit { same, counted, touched, .. } = audit;
        let listed = same.len() + counted.len() - touched.iter().filter(|key| counted.contains(*key)).count();
        let left = touched.iter().filter(|key| mirror.contains_key(*key)).count();
        listed + left == mirror.len()
    }
}

impl<T: Target> Audit<T> {
    /// Counts some of the rows, each once.
    fn count(&mut self) {
        let rest = self.same.len().saturating_sub(COUNTED);
        self.counted.extend(self.same.drain(rest..));
    }

    /// True when nothing is left to be listed, nor to be counted because of what was touched.
    fn is_over(&self) -> bool {
        self.parts.is_none() && (self.touched.is_empty() || self.same.is_empty())
    }
}
