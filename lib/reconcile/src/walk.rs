//! `Walk`: values of a map by keys that are asked for in their order.
//!
//! Invariant: for keys of which each is greater than the one before, the answers are those of [`BTreeMap::get`], whatever they cost: many keys are met by one walk along the map, few are
//! searched for one by one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

/// A walk pays when at least one of so many entries is asked for: a search compares about as many keys.
const SEARCH: usize = 8;

/// Values of a map by ascending keys.
pub(crate) struct Walk<'a, K, V> {
    map: &'a BTreeMap<K, V>,
    rest: Option<Peekable<btree_map::Range<'a, K, V>>>,
}

impl<'a, K: Ord, V> Walk<'a, K, V> {
    /// Whether so many of the keys of a map with `entries` are many.
    pub(crate) const fn pays(keys: usize, entries: usize) -> bool {
        keys.saturating_mul(SEARCH) >= entries
    }

    /// A walk from `first` on, if it pays.
    pub(crate) fn from(map: &'a BTreeMap<K, V>, first: &K, pays: bool) -> Self {
        Self { map, rest: pays.then(|| map.range(first..).peekable()) }
    }

    /// A walk along the whole map for so many keys.
    pub(crate) fn along(map: &'a BTreeMap<K, V>, keys: usize) -> Self {
        Self { map, rest: Self::pays(keys, map.len()).then(|| map.range(..).peekable()) }
    }

    /// The value of `key`, which is greater than the one before.
    pub(crate) fn get(&mut self, key: &K) -> Option<&'a V> {
        self.entry(key).map(|(_, value)| value)
    }

    /// As [`Walk::get`], with the key as the map has it.
    pub(crate) fn entry(&mut self, key: &K) -> Option<(&'a K, &'a V)> {
        let Some(rest) = &mut self.rest else { return self.map.get_key_value(key) };
        // What was found is passed at once, so that an entry is compared with one key where both have the same.
        loop {
            match rest.peek()?.0.cmp(key) {
                Ordering::Less => drop(rest.next()),
                Ordering::Equal => return rest.next(),
                Ordering::Greater => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn walk_finds_what_a_search_finds(
            map in prop::collection::btree_map(any::<u8>(), any::<u16>(), 0..60),
            keys in prop::collection::btree_set(any::<u8>(), 1..60),
        ) {
            let keys: Vec<u8> = keys.into_iter().collect();
            let mut walks =
                [Walk::along(&map, keys.len()), Walk::from(&map, &keys[0], true), Walk::from(&map, &keys[0], false)];
            for key in &keys {
                for walk in &mut walks {
                    prop_assert_eq!(walk.get(key), map.get(key));
                }
            }
        }
    }
}
