//! The difference between what is and what shall be, row by row.
//!
//! Invariant: carrying out the steps of all differing rows gives the desired rows plus the foreign ones, and nothing differs
//! then.

use std::collections::BTreeMap;

use crate::target::{Observed, Owner, Rows, Step};
use crate::walk::Walk;

/// The keys of the rows that need a [`step`], each list in key order: those that are desired, and those of ours that nobody
/// desires. `satisfies(have, want)` says whether a row that is `have` needs no change to be `want`.
pub(crate) fn differing<'a, K: Ord, V>(
    desired: &'a BTreeMap<K, V>,
    observed: &'a Rows<K, V>,
    satisfies: impl Fn(&V, &V) -> bool,
) -> (Vec<&'a K>, Vec<&'a K>) {
    let (mut observed_by, mut desired_by) =
        (Walk::along(observed, desired.len()), Walk::along(desired, observed.len()));
    let mut stands = |key, want| observed_by.get(key).is_some_and(|have| satisfies(&have.value, want));
    let upserts = desired.iter().filter(|(key, want)| !stands(*key, *want)).map(|(key, _)| key).collect();
    let ours = observed.iter().filter(|(_, have)| have.owner == Owner::Ours).map(|(key, _)| key);
    (upserts, ours.filter(|key| desired_by.get(key).is_none()).collect())
}

/// True when one row needs a [`step`].
pub(crate) fn needs_step<V>(want: Option<&V>, have: Option<&Observed<V>>, satisfies: impl Fn(&V, &V) -> bool) -> bool {
    match (want, have) {
        (Some(want), Some(have)) => !satisfies(&have.value, want),
        (Some(_), None) => true,
        (None, Some(have)) => have.owner == Owner::Ours,
        (None, None) => false,
    }
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

    fn plan(desired: &BTreeMap<u8, u8>, observed: &Table) -> Vec<Step<u8, u8>> {
        let (upserts, removals) = differing(desired, observed, PartialEq::eq);
        let keys: Vec<&u8> = upserts.into_iter().chain(removals).collect();
        let steps = keys.iter().filter_map(|key| step(*key, desired.get(key), observed.get(key), PartialEq::eq));
        let steps: Vec<_> = steps.collect();
        assert_eq!(steps.len(), keys.len(), "each of them needs a step");
        steps
    }

    fn apply(steps: &[Step<u8, u8>], table: &Table) -> Table {
        let mut table = table.clone();
        for step in steps {
            match step {
                Step::Create(key, value) | Step::Change(key, _, value) => {
                    table.insert(*key, Observed { value: *value, owner: Owner::Ours });
                }
                Step::Remove(key, _) => {
                    table.remove(key);
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
            let plan = plan(&desired, &before);
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
            prop_assert!(self::plan(&desired, &after).is_empty());
        }
    }

    #[test]
    fn equal_rows_cost_nothing_even_when_foreign() {
        let desired = BTreeMap::from([(1, 2)]);
        let observed = BTreeMap::from([(1, Observed { value: 2, owner: Owner::Foreign })]);
        assert!(plan(&desired, &observed).is_empty());
    }
}
