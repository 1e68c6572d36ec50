//! `Written`: what was written, as long as its announcement is still to come. For tables where the kernel does not say in
//! announcements who wrote.
//!
//! Invariant: an announcement is own once for each writing, and those of one key come in the order of writing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was written to each key; clones share it.
#[derive(Debug, Clone)]
pub struct Written<K, V>(Arc<Mutex<Expected<K, V>>>);

#[derive(Debug)]
struct Expected<K, V> {
    /// By key and number of the writing.
    values: BTreeMap<(K, u64), V>,
    writings: u64,
}

impl<K, V> Default for Written<K, V> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Expected { values: BTreeMap::new(), writings: 0 })))
    }
}

impl<K: Copy + Ord, V: PartialEq> Written<K, V> {
    /// `key` is being set to `value`. To be called before the kernel can announce it.
    pub(crate) fn note(&self, key: K, value: V) {
        let mut expected = self.expected();
        expected.writings += 1;
        let writing = expected.writings;
        expected.values.insert((key, writing), value);
    }

    /// No announcement is expected for what the kernel has refused; `part` is what a key has of it.
    pub(crate) fn forget<P: Ord>(&self, refused: &BTreeSet<P>, part: impl Fn(&K) -> P) {
        if !refused.is_empty() {
            self.expected().values.retain(|(key, _), _| !refused.contains(&part(key)));
        }
    }

    /// Nor for `key`.
    pub(crate) fn forget_key(&self, key: K) {
        self.expected().forget(key, u64::MAX);
    }

    /// True when the announcement is that of our own writing. Neither it is expected any more then, nor what was written to
    /// `key` before.
    #[cfg(feature = "watch")]
    pub(crate) fn is_own(&self, key: K, value: &V) -> bool {
        let mut expected = self.expected();
        let mut writings = expected.values.range((key, 0)..=(key, u64::MAX));
        let Some(writing) = writings.find(|(_, written)| *written == value).map(|((_, writing), _)| *writing) else {
            return false;
        };
        expected.forget(key, writing);
        true
    }

    /// Announcements were lost.
    #[cfg(feature = "watch")]
    pub(crate) fn clear(&self) {
        self.expected().values.clear();
    }

    fn expected(&self) -> MutexGuard<'_, Expected<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Ord, V> Expected<K, V> {
    /// Nothing is expected for `key` of the writings up to this one.
    fn forget(&mut self, key: K, last: u64) {
        while let Some(place) = self.values.range((key, 0)..=(key, last)).next().map(|(place, _)| *place) {
            self.values.remove(&place);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "watch")]
mod tests {
    use super::*;

    #[test]
    fn announcement_of_what_was_written_is_own_once() {
        let written = Written::default();
        let ours = written.clone();
        ours.note(7, Some("a"));
        assert!(!written.is_own(8, &Some("a")), "another key");
        assert!(!written.is_own(7, &Some("b")), "somebody else's value");
        assert!(!written.is_own(7, &None), "a removal");
        assert!(written.is_own(7, &Some("a")));
        assert!(!written.is_own(7, &Some("a")), "once");
        let forgets: [fn(&Written<_, _>); 3] =
            [|w| w.forget(&BTreeSet::from([7]), |key| *key), |w| w.forget_key(7), Written::clear];
        for forget in forgets {
            ours.note(7, Some("a"));
            ours.note(7, None);
            ours.note(8, Some("a"));
            ours.forget(&BTreeSet::new(), |key| *key);
            ours.forget(&BTreeSet::from([9]), |key| *key);
            assert!(written.is_own(8, &Some("a")), "nothing of it was refused");
            forget(&ours);
            assert!(!written.is_own(7, &Some("a")) && !written.is_own(7, &None), "not expected any more");
        }
    }

    #[test]
    fn several_writings_of_one_key_are_announced_in_their_order() {
        let written = Written::default();
        let values = [Some(22), Some(23), None, Some(22)];
        for value in values {
            written.note(7, value);
        }
        assert!(values.iter().all(|value| written.is_own(7, value)));
        assert!(values.iter().all(|value| !written.is_own(7, value)), "once");
        // A writing that changed nothing is not announced.
        [Some(1), Some(2)].into_iter().for_each(|value| written.note(7, value));
        assert!(written.is_own(7, &Some(2)));
        assert!(!written.is_own(7, &Some(1)), "it came before");
    }
}
