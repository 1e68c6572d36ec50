//! What a consumer knows after listening to a source.
//!
//! Invariant: between `Reset` and `Complete` no key disappears unless the source deletes it by name; at
//! `Complete` exactly the keys not put since the last `Reset` disappear. An event that changes nothing reports
//! no changed key, so a duplicate listing costs the consumer no work.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ClusterError, Event};

/// The fold of a source's events.
#[derive(Debug, Clone)]
pub struct Snapshot<T = Vec<u8>> {
    entries: BTreeMap<String, T>,
    /// Keys put since the last `Reset`; `None` outside a listing.
    listed: Option<BTreeSet<String>>,
    complete: bool,
    lost: Option<ClusterError>,
    invalid: BTreeMap<String, String>,
}

impl<T> Default for Snapshot<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), listed: None, complete: false, lost: None, invalid: BTreeMap::new() }
    }
}

impl<T: PartialEq> Snapshot<T> {
    /// A snapshot of a source that has not spoken yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one event and returns the keys whose value differs from before, in order.
    pub fn apply(&mut self, event: Event<T>) -> Vec<String> {
        match event {
            Event::Reset => {
                self.listed = Some(BTreeSet::new());
                Vec::new()
            }
            Event::Put { key, value, .. } => self.put(key, value),
            Event::Delete { key, .. } => self.delete(key),
            Event::Complete => self.finish_listing(),
            Event::Lost(error) => {
                self.lost = Some(error);
                Vec::new()
            }
            Event::Resumed => {
                self.lost = None;
                Vec::new()
            }
            Event::Invalid { source, reason } => {
                self.invalid.insert(source, reason);
                Vec::new()
            }
            Event::Valid { source } => {
                self.invalid.remove(&source);
                Vec::new()
            }
        }
    }

    fn put(&mut self, key: String, value: T) -> Vec<String> {
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        if self.entries.get(&key) == Some(&value) {
            return Vec::new();
        }
        self.entries.insert(key.clone(), value);
        vec![key]
    }

    fn delete(&mut self, key: String) -> Vec<String> {
        if let Some(listed) = &mut self.listed {
            listed.remove(&key);
        }
        match self.entries.remove(&key) {
            Some(_) => vec![key],
            None => Vec::new(),
        }
    }

    fn finish_listing(&mut self) -> Vec<String> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        self.complete = true;
        self.lost = None;
        let gone: Vec<String> = self.entries.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in &gone {
            self.entries.remove(key);
        }
        gone
    }

    /// What is known, by key.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, T> {
        &self.entries
    }

    /// The value of one key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&T> {
        self.entries.get(key)
    }

    /// Whether the source has finished its first listing: the gate for every removal above. It stays open
    /// afterwards, because what is known is a whole picture, however old.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether a listing is under way.
    #[must_use]
    pub fn is_listing(&self) -> bool {
        self.listed.is_some()
    }

    /// How many known keys the running listing has not shown so far: what `Complete` would remove now. 0
    /// outside a listing. A consumer that distrusts a suddenly empty store compares this with
    /// `entries().len()` before it applies `Complete`.
    #[must_use]
    pub fn pending_removals(&self) -> usize {
        let Some(listed) = &self.listed else { return 0 };
        self.entries.keys().filter(|key| !listed.contains(*key)).count()
    }

    /// Why the source cannot be heard at the moment, if so.
    #[must_use]
    pub fn lost(&self) -> Option<&ClusterError> {
        self.lost.as_ref()
    }

    /// Items that cannot be read, with the reason.
    #[must_use]
    pub fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Class;

    fn put(key: &str, value: u8) -> Event<u8> {
        Event::Put { key: key.into(), value, revision: 1 }
    }

    fn delete(key: &str) -> Event<u8> {
        Event::Delete { key: key.into(), revision: 2 }
    }

    fn folded(events: Vec<Event<u8>>) -> Snapshot<u8> {
        let mut snapshot = Snapshot::new();
        for event in events {
            snapshot.apply(event);
        }
        snapshot
    }

    fn listing(entries: &BTreeMap<String, u8>) -> Vec<Event<u8>> {
        let puts = entries.iter().map(|(key, value)| put(key, *value));
        std::iter::once(Event::Reset).chain(puts).chain([Event::Complete]).collect()
    }

    #[test]
    fn reset_removes_nothing_until_complete() {
        let mut snapshot = folded(vec![Event::Reset, put("a", 1), put("b", 2), Event::Complete]);
        assert!(snapshot.apply(Event::Reset).is_empty());
        assert_eq!(snapshot.entries().len(), 2);
        assert_eq!(snapshot.pending_removals(), 2);
        snapshot.apply(put("b", 2));
        assert_eq!(snapshot.pending_removals(), 1);
        assert_eq!(snapshot.apply(Event::Complete), ["a"]);
        assert_eq!(snapshot.entries().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn is_complete_only_after_the_first_whole_listing() {
        let mut snapshot = Snapshot::new();
        assert!(!snapshot.is_complete());
        // A Complete without Reset is no listing.
        snapshot.apply(Event::<u8>::Complete);
        assert!(!snapshot.is_complete());
        snapshot.apply(Event::Reset);
        snapshot.apply(put("a", 1));
        assert!(!snapshot.is_complete());
        snapshot.apply(Event::Complete);
        snapshot.apply(Event::Reset);
        assert!(snapshot.is_complete(), "an old whole picture is a whole picture");
    }

    #[test]
    fn a_listing_that_breaks_off_counts_from_the_last_reset() {
        let mut snapshot = folded(vec![Event::Reset, put("a", 1), Event::Complete, Event::Reset, put("b", 2)]);
        snapshot.apply(Event::Reset);
        snapshot.apply(put("a", 1));
        assert_eq!(snapshot.apply(Event::Complete), ["b"]);
    }

    #[test]
    fn a_key_deleted_while_listing_stays_deleted() {
        let mut snapshot = folded(vec![Event::Reset, put("a", 1), delete("a"), Event::Complete]);
        assert!(snapshot.entries().is_empty());
        assert!(snapshot.apply(delete("a")).is_empty());
    }

    #[test]
    fn an_empty_listing_is_visible_before_it_is_applied() {
        let mut snapshot = folded(vec![Event::Reset, put("a", 1), put("b", 1), Event::Complete, Event::Reset]);
        assert_eq!(snapshot.pending_removals(), snapshot.entries().len());
        assert_eq!(snapshot.apply(Event::Complete), ["a", "b"]);
    }

    #[test]
    fn status_events_change_no_data_and_clear_each_other() {
        let lost = ClusterError::new("watch", "/x/", "http://10.4.7.12:2379", "gone", Class::Retry);
        let mut snapshot = folded(vec![Event::Reset, put("a", 1), Event::Complete]);
        assert!(snapshot.apply(Event::Lost(lost.clone())).is_empty());
        assert_eq!(snapshot.lost(), Some(&lost));
        snapshot.apply(Event::Resumed);
        assert_eq!(snapshot.lost(), None);
        snapshot.apply(Event::Lost(lost));
        snapshot.apply(Event::Reset);
        assert!(snapshot.lost().is_some(), "a listing under way is not yet heard to the end");
        snapshot.apply(put("a", 1));
        snapshot.apply(Event::Complete);
        assert_eq!(snapshot.lost(), None);
        snapshot.apply(Event::Invalid { source: "web.yaml".into(), reason: "not YAML".into() });
        assert_eq!(snapshot.invalid().get("web.yaml").map(String::as_str), Some("not YAML"));
        snapshot.apply(Event::Valid { source: "web.yaml".into() });
        assert!(snapshot.invalid().is_empty());
        assert_eq!(snapshot.get("a"), Some(&1));
    }

    fn entries() -> impl Strategy<Value = BTreeMap<String, u8>> {
        proptest::collection::btree_map("[a-e]", 0..3_u8, 0..5)
    }

    fn changes() -> impl Strategy<Value = Vec<Event<u8>>> {
        let one = prop_oneof![
            ("[a-e]", 0..3_u8).prop_map(|(key, value)| put(&key, value)),
            "[a-e]".prop_map(|key| delete(&key)),
        ];
        proptest::collection::vec(one, 0..20)
    }

    proptest! {
        #[test]
        fn a_listing_gives_exactly_what_was_listed(before in entries(), missed in changes(), after in entries()) {
            let mut snapshot = folded(listing(&before));
            for event in missed {
                snapshot.apply(event);
            }
            for event in listing(&after) {
                snapshot.apply(event);
            }
            prop_assert_eq!(snapshot.entries(), &after);
        }

        #[test]
        fn a_duplicate_listing_changes_nothing(known in entries()) {
            let mut snapshot = folded(listing(&known));
            for event in listing(&known) {
                prop_assert!(snapshot.apply(event).is_empty());
            }
        }

        #[test]
        fn changed_keys_are_exactly_the_keys_that_differ(
            before in entries(), after in entries(), tail in changes(), lose in any::<bool>(),
        ) {
            let mut snapshot = folded(listing(&before));
            let mut events = if lose { listing(&after) } else { Vec::new() };
            events.extend(tail);
            for event in events {
                let old = snapshot.entries().clone();
                let changed = snapshot.apply(event);
                let differ: Vec<String> = ["a", "b", "c", "d", "e"]
                    .into_iter()
                    .filter(|key| old.get(*key) != snapshot.get(key))
                    .map(String::from)
                    .collect();
                prop_assert_eq!(changed, differ);
            }
        }

        #[test]
        fn nothing_disappears_between_reset_and_complete(before in entries(), during in entries()) {
            let mut snapshot = folded(listing(&before));
            snapshot.apply(Event::Reset);
            for (key, value) in &during {
                snapshot.apply(put(key, *value));
                prop_assert!(before.keys().all(|key| snapshot.get(key).is_some()));
            }
        }
    }
}
