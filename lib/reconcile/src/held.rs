//! Rows that the kernel holds as they are desired, kept once as far as copies of a key or value share memory.
//!
//! Invariant: what is returned compares equal to what was given.

use std::collections::BTreeMap;

use crate::target::{Observed, Rows};
use crate::walk::Walk;

/// The row `key`, `value` as `mirror` has it, if it has it so.
pub(crate) fn held<K: Ord + Clone, V: PartialEq + Clone>(
    mirror: &mut Walk<'_, K, Observed<V>>,
    key: &K,
    value: &V,
) -> Option<(K, V)> {
    let (key, row) = mirror.entry(key)?;
    (row.value == *value).then(|| (key.clone(), row.value.clone()))
}

/// What was observed, with those rows of `desired` that are the same.
pub(crate) fn sharing<K: Ord + Clone, V: PartialEq + Clone>(
    observed: Rows<K, V>,
    desired: &BTreeMap<K, V>,
) -> Rows<K, V> {
    if desired.is_empty() {
        return observed;
    }
    let mut desired = Walk::along(desired, observed.len());
    let shared = observed.into_iter().map(|(key, row)| match desired.entry(&key) {
        Some((same, value)) if *value == row.value => (same.clone(), Observed { value: value.clone(), ..row }),
        _ => (key, row),
    });
    shared.collect()
}
