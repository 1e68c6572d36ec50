//! What a consumer knows of one kind of object, folded from a source's events.
//!
//! Invariant: between `Reset` and `Complete` no key disappears unless the source deletes it by name; at
//! `Complete` exactly the keys not put since the last `Reset` disappear. An event that changes nothing reports
//! no changed key, so a duplicate listing costs the consumer no work. Objects of several kinds are several snapshots:
//! each is complete by its own `Complete`, and no kind's listing removes another kind's objects.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Break, Origin};
use crate::{ClusterError, Event, Words};

/// The fold of a source's events.
#[derive(Debug, Clone)]
pub struct Snapshot<K = String, V = Vec<u8>> {
    entries: BTreeMap<K, V>,
    /// Keys put since the last `Reset`; `None` outside a listing.
    listed: Option<BTreeSet<K>>,
    complete: bool,
    /// Of the last finished listing with the changes since, and of the listing that runs.
    origin: Option<Origin>,
    next_origin: Option<Origin>,
    lost: Option<ClusterError>,
    invalid: BTreeMap<String, String>,
    words: BTreeMap<String, Words>,
    notes: BTreeMap<String, Vec<String>>,
}

impl<K, V> Default for Snapshot<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            listed: None,
            complete: false,
            origin: None,
            next_origin: None,
            lost: None,
            invalid: BTreeMap::new(),
            words: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> Snapshot<K, V> {
    /// A snapshot of a source that has not spoken yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one event and returns the keys whose value differs from before, in order.
    pub fn apply(&mut self, event: Event<K, V>) -> Vec<K> {
        match event {
            Event::Put { key, value, revision } => {
                self.advance(revision);
                return self.put(key, value);
            }
            Event::Delete { key, revision } => {
                self.advance(revision);
                return self.delete(key);
            }
            Event::Complete => return self.finish_listing(),
            Event::Commit => {}
            Event::Reset => {
                self.listed = Some(BTreeSet::new());
                self.next_origin = None;
            }
            Event::Origin(origin) => self.next_origin = Some(origin),
            Event::Lost(error) => self.lost = Some(error),
            Event::Invalid { source, reason, words } => {
                self.words.insert(source.clone(), words);
                self.invalid.insert(source, reason);
            }
            Event::Valid { source } => {
                self.words.remove(&source);
                self.invalid.remove(&source);
            }
            Event::Notes { source, notes } if notes.is_empty() => {
                self.notes.remove(&source);
            }
            Event::Notes { source, notes } => {
                self.notes.insert(source, notes);
            }
        }
        Vec::new()
    }

    /// The store has been seen at this revision, by a change: one that shows an earlier one later went back.
    pub fn advance(&mut self, revision: i64) {
        if let Some(origin) = self.origin.as_mut().filter(|_| self.listed.is_none()) {
            origin.advance(revision);
        }
    }

    fn put(&mut self, key: K, value: V) -> Vec<K> {
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        if self.entries.get(&key) == Some(&value) {
            return Vec::new();
        }
        self.entries.insert(key.clone(), value);
        vec![key]
    }

    fn delete(&mut self, key: K) -> Vec<K> {
        if let Some(listed) = &mut self.listed {
            listed.remove(&key);
        }
        match self.entries.remove(&key) {
            Some(_) => vec![key],
            None => Vec::new(),
        }
    }

    fn finish_listing(&mut self) -> Vec<K> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        self.complete = true;
        self.lost = None;
        self.origin = self.next_origin.take().or(self.origin);
        let gone: Vec<K> = self.entries.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in &gone {
            self.entries.remove(key);
        }
        // What a listing put in one by one, in order, left every node half-empty; built at once, they are full.
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        gone
    }

    /// What is known, by key.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<K, V> {
        &self.entries
    }

    /// The value of one key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
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

    /// Which state of which store the running listing shows; outside a listing, the last that was seen.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.next_origin.as_ref().or(self.origin.as_ref())
    }

    /// Why the running listing cannot be a later state of the store that was listed before, if so: it was wiped, restored
    /// or exchanged.
    #[must_use]
    pub fn broken_history(&self) -> Option<Break> {
        self.next_origin?.follows(self.origin.as_ref()?).err()
    }

    /// Why the source is out of reach at the moment, if so.
    #[must_use]
    pub fn lost(&self) -> Option<&ClusterError> {
        self.lost.as_ref()
    }

    /// Items that cannot be read, with the reason.
    #[must_use]
    pub fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }

    /// True when an item that cannot be read may hold all of these names.
    #[must_use]
    pub fn may_hold(&self, names: &[&str]) -> bool {
        self.words.values().any(|words| names.iter().all(|name| words.may_hold(name)))
    }

    /// What items hold beside what is used.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, Vec<String>> {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Class;

    fn put(key: &str, value: u8) -> Event<String, u8> {
        Event::Put { key: key.into(), value, revision: 1 }
    }

    fn delete(key: &str) -> Event<String, u8> {
        Event::Delete { key: key.into(), revision: 2 }
    }

    fn folded(events: Vec<Event<String, u8>>) -> Snapshot<String, u8> {
        let mut snapshot = Snapshot::new();
        for event in events {
            snapshot.apply(event);
        }
        snapshot
    }

    fn listing(entries: &BTreeMap<String, u8>) -> Vec<Event<String, u8>> {
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
        let mut snapshot = Snapshot::<String, u8>::new();
        assert!(!snapshot.is_complete());
        // A Complete without Reset is no listing.
        snapshot.apply(Event::Complete);
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
        snapshot.apply(Event::Reset);
        assert!(snapshot.lost().is_some(), "a listing under way has not shown everything");
        snapshot.apply(put("a", 1));
        snapshot.apply(Event::Complete);
        assert_eq!(snapshot.lost(), None);
        snapshot.apply(Event::Invalid {
            source: "web.yaml".into(),
            reason: "not YAML".into(),
            words: Words::of(b"web api"),
        });
        assert!(snapshot.may_hold(&["web", "api"]) && !snapshot.may_hold(&["web", "dns"]));
        assert_eq!(snapshot.invalid().get("web.yaml").map(String::as_str), Some("not YAML"));
        snapshot.apply(Event::Valid { source: "web.yaml".into() });
        assert!(snapshot.invalid().is_empty());
        let notes = |notes: &[&str]| Event::Notes {
            source: "web.yaml".into(),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        };
        snapshot.apply(notes(&["ClusterRole system:coredns is not used"]));
        assert_eq!(snapshot.notes()["web.yaml"].len(), 1);
        snapshot.apply(notes(&[]));
        assert!(snapshot.notes().is_empty());
        assert_eq!(snapshot.get("a"), Some(&1));
    }

    #[test]
    fn a_store_that_went_back_is_known_before_its_listing_is_applied() {
        let origin = |revision| Event::Origin(Origin { store: 1, member: 1, term: 2, revision });
        let mut snapshot = folded(vec![Event::Reset, origin(10), put("a", 1)]);
        assert_eq!(snapshot.broken_history(), None, "nothing was seen before");
        snapshot.apply(Event::Complete);
        for (revision, broken) in [(12, false), (11, true)] {
            snapshot.apply(Event::Reset);
            assert_eq!(snapshot.broken_history(), None);
            snapshot.apply(origin(revision));
            assert_eq!(snapshot.broken_history().is_some(), broken);
            snapshot.apply(Event::Complete);
            assert_eq!(snapshot.broken_history(), None);
            assert_eq!(snapshot.origin().unwrap().revision, revision);
        }
    }

    #[test]
    fn a_store_that_went_back_behind_a_change_is_known() {
        let origin = |revision| Event::Origin(Origin { store: 1, member: 1, term: 2, revision });
        let changed = |revision| {
            [
                Event::Put { key: "b".into(), value: 1, revision },
                Event::Delete { key: "b".into(), revision },
                Event::Commit,
            ]
        };
        for change in changed(20) {
            let is_change = change.key().is_some();
            let mut snapshot = folded(vec![Event::Reset, origin(10), put("a", 1), Event::Complete, change]);
            snapshot.apply(Event::Reset);
            snapshot.apply(origin(15));
            assert_eq!(snapshot.broken_history().is_some(), is_change);
        }
    }

    #[test]
    fn two_kinds_are_complete_each_by_its_own_listing() {
        let (mut services, mut slices) = (Snapshot::<u8, u8>::new(), Snapshot::<u8, u8>::new());
        for event in [Event::Reset, Event::Put { key: 1, value: 1, revision: 1 }, Event::Complete] {
            services.apply(event);
        }
        assert!(services.is_complete() && !slices.is_complete());
        slices.apply(Event::Reset);
        slices.apply(Event::Complete);
        assert_eq!(services.get(&1), Some(&1));
    }

    fn entries() -> impl Strategy<Value = BTreeMap<String, u8>> {
        proptest::collection::btree_map("[a-e]", 0..3_u8, 0..5)
    }

    fn changes() -> impl Strategy<Value = Vec<Event<String, u8>>> {
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
                    .filter(|key| old.get(*key) != snapshot.get(*key))
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
