//! `diff`: the steps from what is to what shall be.
//!
//! Invariant: applying the plan to `observed` gives `desired` plus the foreign rows, and the plan of that is empty.

use std::collections::BTreeMap;

use crate::target::{Observed, Owner, Rows, Step};

/// The difference of two tables. Both lists are in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<K, V> {
    /// Creates and changes.
    pub upserts: Vec<Step<K, V>>,
    /// Removals.
    pub removals: Vec<Step<K, V>>,
}

impl<K, V> Plan<K, V> {
    /// True when nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// The steps that make `observed` equal to `desired`, leaving foreign rows alone.
pub fn diff<K: Ord + Clone, V: Clone + PartialEq>(desired: &BTreeMap<K, V>, observed: &Rows<K, V>) -> Plan<K, V> {
    diff_by(desired, observed, PartialEq::eq)
}

/// As [`diff`], where `satisfies(have, want)` says whether a row that is `have` needs no change to be `want`.
pub fn diff_by<K: Ord + Clone, V: Clone>(
    desired: &BTreeMap<K, V>,
    observed: &Rows<K, V>,
    satisfies: impl Fn(&V, &V) -> bool,
) -> Plan<K, V> {
    let upserts = desired.iter().filter_map(|(key, want)| step(key, Some(want), observed.get(key), &satisfies));
    let removals = observed
        .iter()
        .filter(|(key, _)| !desired.contains_key(key))
        .filter_map(|(key, have)| step(key, None, Some(have), &satisfies));
    Plan { upserts: upserts.collect(), removals: removals.collect() }
}

/// The step for one row, if one is needed.
pub(crate) fn step<K: Clone, V: Clone>(
    key: &K,
    want: Option<&V>,
    have: Option<&Observed<V>>,
    satisfies: impl Fn(&V, &V) -> bool,
) -> Option<Step<K, V>> {
    match (want, have) {
        (Some(want), None) => Some(Step::Create(key.clone(), want.clone())),
        (Some(want), Some(have)) if !satisfies(&have.value, want) => {
            Some(Step::Change(key.clone(), have.value.clone(), want.clone()))
        }
        (None, Some(have)) if have.owner == Owner::Ours => Some(Step::Remove(key.clone(), have.value.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Table = BTreeMap<u8, Observed<u8>>;

    fn observed() -> impl Strategy<Value = Table> {
        let row = (any::<u8>(), any::<bool>()).prop_map(|(value, ours)| Observed {
            value: value % 4,
            owner: if ours { Owner::Ours } else { Owner::Foreign },
        });
        prop::collection::btree_map(any::<u8>(), row, 0..40)
    }

    fn apply(plan: &Plan<u8, u8>, table: &Table) -> Table {
        let mut table = table.clone();
        for step in plan.upserts.iter().chain(&plan.removals) {
            match step {
                Step::Create(k, v) | Step::Change(k, _, v) => {
                    table.insert(*k, Observed { value: *v, owner: Owner::Ours });
                }
                Step::Remove(k, _) => {
                    table.remove(k);
                }
            }
        }
        table
    }

    proptest! {
        #[test]
        fn applied_plan_gives_the_desired_rows_and_keeps_foreign_ones(
            desired in prop::collection::btree_map(any::<u8>(), 0u8..4, 0..40),
            before in observed(),
        ) {
            let plan = diff(&desired, &before);
            let after = apply(&plan, &before);
            for (key, want) in &desired {
                prop_assert_eq!(&after[key].value, want);
            }
            for (key, row) in &before {
                if row.owner == Owner::Foreign && !desired.contains_key(key) {
                    prop_assert_eq!(after.get(key), Some(row));
                }
            }
            let orphans = after.iter().filter(|(k, r)| r.owner == Owner::Ours && !desired.contains_key(k));
            prop_assert_eq!(orphans.count(), 0);
            prop_assert!(diff(&desired, &after).is_empty());
        }
    }

    #[test]
    fn equal_rows_cost_nothing_even_when_foreign() {
        let desired = BTreeMap::from([(1, 'a')]);
        let observed = BTreeMap::from([(1, Observed { value: 'a', owner: Owner::Foreign })]);
        assert!(diff(&desired, &observed).is_empty());
    }
}
