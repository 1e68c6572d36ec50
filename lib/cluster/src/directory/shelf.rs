//! What the files of a directory say together, and which events tell the difference.
//!
//! Pure. Invariants: a file that cannot be read keeps its last good objects; an object in two files is taken
//! from the first by name, whatever the order of arrival; events are told only for what differs from what was
//! told before.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Event;
use crate::manifest::Object;

/// What reading one present file gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// Its objects.
    Good(Vec<Object>),
    /// Why it cannot be read.
    Bad(String),
    /// As at the last reading, or being written just now.
    Same,
}

/// The readings of all files present, by name.
pub(super) type Readings = BTreeMap<String, Reading>;

type Objects = BTreeMap<String, Arc<[u8]>>;

/// The state of a directory as told to the consumer.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Last good objects of each file.
    files: BTreeMap<String, Objects>,
    /// Files that cannot be read now.
    unreadable: BTreeMap<String, String>,
    told: Objects,
    told_invalid: BTreeMap<String, String>,
    revision: i64,
}

impl Shelf {
    /// Takes in the readings and returns a whole listing.
    pub(super) fn listing(&mut self, readings: Readings) -> Vec<Event> {
        self.absorb(readings);
        self.told.clear();
        let mut events = vec![Event::Reset];
        events.extend(self.difference());
        events.push(Event::Complete);
        events
    }

    /// Takes in the readings and returns what has changed.
    pub(super) fn changes(&mut self, readings: Readings) -> Vec<Event> {
        self.absorb(readings);
        self.difference()
    }

    fn absorb(&mut self, readings: Readings) {
        self.files.retain(|name, _| readings.contains_key(name));
        self.unreadable.retain(|name, _| readings.contains_key(name));
        for (name, reading) in readings {
            match reading {
                Reading::Same => {}
                Reading::Bad(reason) => {
                    self.unreadable.insert(name, reason);
                }
                Reading::Good(objects) => {
                    self.unreadable.remove(&name);
                    let objects = objects.into_iter().map(|object| (object.key, object.json.into())).collect();
                    self.files.insert(name, objects);
                }
            }
        }
    }

    fn difference(&mut self) -> Vec<Event> {
        let (objects, invalid) = self.union();
        let mut events = Vec::new();
        for (key, json) in &objects {
            if self.told.get(key) != Some(json) {
                self.revision = self.revision.saturating_add(1);
                events.push(Event::Put { key: key.clone(), value: json.to_vec(), revision: self.revision });
            }
        }
        for key in self.told.keys().filter(|key| !objects.contains_key(*key)) {
            self.revision = self.revision.saturating_add(1);
            events.push(Event::Delete { key: key.clone(), revision: self.revision });
        }
        for (source, reason) in &invalid {
            if self.told_invalid.get(source) != Some(reason) {
                events.push(Event::Invalid { source: source.clone(), reason: reason.clone() });
            }
        }
        for source in self.told_invalid.keys().filter(|source| !invalid.contains_key(*source)) {
            events.push(Event::Valid { source: source.clone() });
        }
        self.told = objects;
        self.told_invalid = invalid;
        events
    }

    /// All objects, and every file there is something to say about.
    fn union(&self) -> (Objects, BTreeMap<String, String>) {
        let mut objects = Objects::new();
        let mut origin: BTreeMap<&str, &str> = BTreeMap::new();
        let mut invalid = self.unreadable.clone();
        for (name, contents) in &self.files {
            for (key, json) in contents {
                match origin.get(key.as_str()) {
                    Some(first) => {
                        let reason = format!("{key} stands in {first} as well, and that one counts");
                        invalid.entry(name.clone()).or_insert(reason);
                    }
                    None => {
                        origin.insert(key, name);
                        objects.insert(key.clone(), Arc::clone(json));
                    }
                }
            }
        }
        (objects, invalid)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Snapshot;

    fn good(objects: &[(&str, u8)]) -> Reading {
        Reading::Good(objects.iter().map(|(key, value)| Object { key: (*key).into(), json: vec![*value] }).collect())
    }

    fn bad(reason: &str) -> Reading {
        Reading::Bad(reason.into())
    }

    fn readings<const N: usize>(files: [(&str, Reading); N]) -> Readings {
        files.into_iter().map(|(name, reading)| (name.into(), reading)).collect()
    }

    /// Events as short text.
    fn told(events: Vec<Event>) -> Vec<String> {
        let short = |event| match event {
            Event::Reset => "reset".into(),
            Event::Complete => "complete".into(),
            Event::Put { key, value, .. } => format!("{key}={value:?}"),
            Event::Delete { key, .. } => format!("-{key}"),
            Event::Invalid { source, reason } => format!("!{source} {reason}"),
            Event::Valid { source } => format!("ok {source}"),
            other => format!("{other:?}"),
        };
        events.into_iter().map(short).collect()
    }

    #[test]
    fn a_file_that_breaks_keeps_its_last_good_objects() {
        let mut shelf = Shelf::default();
        let first = shelf.listing(readings([("a", good(&[("x", 1)])), ("b", good(&[("y", 1)]))]));
        assert_eq!(told(first), ["reset", "x=[1]", "y=[1]", "complete"]);
        assert_eq!(told(shelf.changes(readings([("a", bad("torn")), ("b", good(&[("y", 2)]))]))), ["y=[2]", "!a torn"]);
        assert!(shelf.changes(readings([("a", Reading::Same), ("b", Reading::Same)])).is_empty());
        let mended = shelf.changes(readings([("a", good(&[("x", 3)])), ("b", Reading::Same)]));
        assert_eq!(told(mended), ["x=[3]", "ok a"]);
    }

    #[test]
    fn a_removed_file_takes_its_objects_and_its_complaint_along() {
        let mut shelf = Shelf::default();
        shelf.listing(readings([("a", good(&[("x", 1)])), ("b", bad("torn"))]));
        assert_eq!(told(shelf.changes(readings([]))), ["-x", "ok b"]);
    }

    #[test]
    fn an_object_in_two_files_is_the_first_files_and_moves_on_when_that_goes() {
        let mut shelf = Shelf::default();
        let first = shelf.listing(readings([("b", good(&[("x", 2), ("y", 2)])), ("a", good(&[("x", 1)]))]));
        let complaint = "!b x stands in a as well, and that one counts";
        assert_eq!(told(first), ["reset", "x=[1]", "y=[2]", complaint, "complete"]);
        assert_eq!(told(shelf.changes(readings([("b", Reading::Same)]))), ["x=[2]", "ok b"]);
    }

    #[test]
    fn an_object_that_moves_between_files_is_never_deleted() {
        let mut shelf = Shelf::default();
        shelf.listing(readings([("a", good(&[("x", 1)]))]));
        assert!(shelf.changes(readings([("a", good(&[])), ("b", good(&[("x", 1)]))])).is_empty());
    }

    #[test]
    fn a_second_listing_tells_everything_again() {
        let mut shelf = Shelf::default();
        shelf.listing(readings([("a", good(&[("x", 1)])), ("b", good(&[("y", 1)]))]));
        let again = shelf.listing(readings([("a", bad("torn"))]));
        assert_eq!(told(again), ["reset", "x=[1]", "!a torn", "complete"]);
    }

    fn reading() -> impl Strategy<Value = Reading> {
        prop_oneof![
            proptest::collection::btree_map("[x-z]", 0..3_u8, 0..3).prop_map(|objects| Reading::Good(
                objects.into_iter().map(|(key, value)| Object { key, json: vec![value] }).collect()
            )),
            Just(Reading::Bad("torn".into())),
            Just(Reading::Same),
        ]
    }

    proptest! {
        /// The consumer's snapshot always equals the union of the last good files, whichever way it was told.
        #[test]
        fn the_consumer_knows_what_the_files_say(
            steps in proptest::collection::vec((any::<bool>(), proptest::collection::btree_map("[a-c]", reading(), 0..4)), 1..12),
        ) {
            let mut shelf = Shelf::default();
            let mut snapshot = Snapshot::new();
            for (index, (whole, readings)) in steps.into_iter().enumerate() {
                let events = if whole || index == 0 { shelf.listing(readings) } else { shelf.changes(readings) };
                for event in events {
                    snapshot.apply(event);
                }
                let (objects, invalid) = shelf.union();
                let objects: BTreeMap<String, Vec<u8>> =
                    objects.into_iter().map(|(key, json)| (key, json.to_vec())).collect();
                prop_assert_eq!(snapshot.entries(), &objects);
                prop_assert_eq!(snapshot.invalid(), &invalid);
            }
        }
    }
}
