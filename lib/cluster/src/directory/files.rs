//! What the files of a directory say together, and which events make up the difference.
//!
//! Pure. Invariants: a file that cannot be read, or not all of it, keeps the objects that it last had and does not say
//! otherwise now; an object in two files is taken from the first by name, whatever the order of arrival; events are
//! reported only for what differs from what was reported before, and what was found in one go ends with one `Commit`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::manifest::Manifest;
use crate::{Event, Words};

/// What reading one present file gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// What it holds.
    Good(Manifest),
    /// Why it cannot be read, and the names that may stand in it.
    Bad(String, Words),
    /// It has no byte, as one that a full disk cut off.
    Empty,
    /// As at the last reading, or being written just now.
    Same,
}

/// The readings of all files present, by name.
pub(super) type Readings = BTreeMap<String, Reading>;

type Objects = BTreeMap<String, Arc<[u8]>>;

/// Lines by file name.
type Lines = BTreeMap<String, Vec<String>>;

/// The reason by file name, and the names that may stand there.
type Unreadable = BTreeMap<String, (String, Words)>;

/// Unused objects that are named for each file; of more there is the number only.
const NAMED: usize = 20;

/// The files of a directory as reported to the consumer.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Last good objects of each file.
    contents: BTreeMap<String, Objects>,
    /// Files that cannot be read now, or not all of them, with the reason.
    unreadable: Unreadable,
    /// What each file holds beside its objects.
    notes: Lines,
    reported: Reported,
    revision: i64,
}

/// What was reported to the consumer.
#[derive(Debug, Default)]
struct Reported {
    objects: Objects,
    unreadable: Unreadable,
    notes: Lines,
}

impl Files {
    /// Takes in the readings and returns a whole listing of the directory. It has no [`crate::Origin`]: another directory in its place is how
    /// one is deployed, and no sign that it went back.
    pub(super) fn listing(&mut self, readings: Readings) -> Vec<Event> {
        self.absorb(readings);
        self.reported.objects.clear();
        let mut events = vec![Event::Reset];
        events.extend(self.difference());
        events.push(Event::Complete);
        events
    }

    /// Takes in the readings and returns what has changed.
    pub(super) fn changes(&mut self, readings: Readings) -> Vec<Event> {
        self.absorb(readings);
        let mut events = self.difference();
        if events.iter().any(|event| event.key().is_some()) {
            events.push(Event::Commit);
        }
        events
    }

    fn absorb(&mut self, readings: Readings) {
        self.contents.retain(|name, _| readings.contains_key(name));
        self.unreadable.retain(|name, _| readings.contains_key(name));
        self.notes.retain(|name, _| readings.contains_key(name));
        for (name, reading) in readings {
            match reading {
                Reading::Same => {}
                Reading::Bad(reason, words) => {
                    self.unreadable.insert(name, (reason, words));
                }
                Reading::Empty if self.contents.get(&name).is_some_and(|objects| !objects.is_empty()) => {
                    let reason =
                        "is empty; what it held stays until there is something in it, or it is removed".to_owned();
                    self.unreadable.insert(name, (reason, Words::default()));
                }
                Reading::Empty => self.replace(name, Manifest::default()),
                Reading::Good(manifest) => self.replace(name, manifest),
            }
        }
    }

    fn replace(&mut self, name: String, manifest: Manifest) {
        let Manifest { objects, problems, mut duplicates, words, unused } = manifest;
        let contents = self.contents.entry(name.clone()).or_default();
        match problems.as_slice() {
            [] => {
                self.unreadable.remove(&name);
                contents.clear();
            }
            // A missing object may be the element that cannot be read.
            [first, others @ ..] => {
                let more = if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
                self.unreadable.insert(name.clone(), (format!("{first}{more}"), words));
            }
        }
        contents.extend(objects.into_iter().map(|object| (object.key, object.json.into())));
        let more = unused.len().saturating_sub(NAMED);
        duplicates.iter_mut().for_each(|duplicate| duplicate.push_str(", and the first one counts"));
        duplicates.extend(unused.into_iter().take(NAMED).map(|object| format!("{object} is not used")));
        duplicates.extend((more > 0).then(|| format!("{more} more objects are not used")));
        self.notes.insert(name, duplicates);
    }

    fn difference(&mut self) -> Vec<Event> {
        let (objects, notes) = self.union();
        let mut events = Vec::new();
        for (key, json) in &objects {
            if self.reported.objects.get(key) != Some(json) {
                self.revision = self.revision.saturating_add(1);
                events.push(Event::Put { key: key.clone(), value: json.to_vec(), revision: self.revision });
            }
        }
        for key in self.reported.objects.keys().filter(|key| !objects.contains_key(*key)) {
            self.revision = self.revision.saturating_add(1);
            events.push(Event::Delete { key: key.clone(), revision: self.revision });
        }
        for (source, found) in &self.unreadable {
            if self.reported.unreadable.get(source) != Some(found) {
                let (reason, words) = found.clone();
                events.push(Event::Invalid { source: source.clone(), reason, words });
            }
        }
        for source in self.reported.unreadable.keys().filter(|source| !self.unreadable.contains_key(*source)) {
            events.push(Event::Valid { source: source.clone() });
        }
        for (source, lines) in &notes {
            if self.reported.notes.get(source) != Some(lines) {
                events.push(Event::Notes { source: source.clone(), notes: lines.clone() });
            }
        }
        for source in self.reported.notes.keys().filter(|source| !notes.contains_key(*source)) {
            events.push(Event::Notes { source: source.clone(), notes: Vec::new() });
        }
        self.reported = Reported { objects, unreadable: self.unreadable.clone(), notes };
        events
    }

    /// All objects, and every file there is something to say about.
    fn union(&self) -> (Objects, Lines) {
        let mut objects = Objects::new();
        let mut origin: BTreeMap<&str, &str> = BTreeMap::new();
        let mut notes = self.notes.clone();
        for (name, contents) in &self.contents {
            for (key, json) in contents {
                match origin.get(key.as_str()) {
                    Some(first) => {
                        let note = format!("{key} stands in {first} as well, and that one counts");
                        notes.entry(name.clone()).or_default().push(note);
                    }
                    None => {
                        origin.insert(key, name);
                        objects.insert(key.clone(), Arc::clone(json));
                    }
                }
            }
        }
        notes.retain(|_, lines| !lines.is_empty());
        (objects, notes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::Object;
    use crate::{Problem, Snapshot};

    fn good(objects: &[(&str, u8)]) -> Reading {
        Reading::Good(manifest(objects))
    }

    fn manifest(objects: &[(&str, u8)]) -> Manifest {
        let object = |(key, value): &(&str, u8)| Object { key: (*key).into(), json: vec![*value] };
        Manifest { objects: objects.iter().map(object).collect(), ..Manifest::default() }
    }

    fn bad(reason: &str) -> Reading {
        Reading::Bad(reason.into(), Words::default())
    }

    fn readings<const N: usize>(files: [(&str, Reading); N]) -> Readings {
        files.into_iter().map(|(name, reading)| (name.into(), reading)).collect()
    }

    /// Events as short text.
    fn short(events: Vec<Event>) -> Vec<String> {
        let short = |event| match event {
            Event::Reset => "reset".into(),
            Event::Commit => "commit".into(),
            Event::Complete => "complete".into(),
            Event::Put { key, value, .. } => format!("{key}={value:?}"),
            Event::Delete { key, .. } => format!("-{key}"),
            Event::Invalid { source, reason, .. } => format!("!{source} {reason}"),
            Event::Valid { source } => format!("ok {source}"),
            Event::Notes { source, notes } => format!("{source}: {}", notes.join(", ")),
            other => format!("{other:?}"),
        };
        events.into_iter().map(short).collect()
    }

    #[test]
    fn a_file_that_breaks_keeps_its_last_good_objects() {
        let mut files = Files::default();
        let first = files.listing(readings([("a", good(&[("x", 1)])), ("b", good(&[("y", 1)]))]));
        assert_eq!(short(first), ["reset", "x=[1]", "y=[1]", "complete"]);
        assert_eq!(
            short(files.changes(readings([("a", bad("torn")), ("b", good(&[("y", 2)]))]))),
            ["y=[2]", "!a torn", "commit"]
        );
        assert!(files.changes(readings([("a", Reading::Same), ("b", Reading::Same)])).is_empty());
        let mended = files.changes(readings([("a", good(&[("x", 3)])), ("b", Reading::Same)]));
        assert_eq!(short(mended), ["x=[3]", "ok a", "commit"]);
    }

    #[test]
    fn a_file_that_was_cut_off_keeps_its_objects_and_a_new_one_may_be_empty() {
        let mut files = Files::default();
        let first = files.listing(readings([("a", good(&[("x", 1)])), ("b", Reading::Empty)]));
        assert_eq!(short(first), ["reset", "x=[1]", "complete"]);
        let cut = short(files.changes(readings([("a", Reading::Empty), ("b", Reading::Same)])));
        assert!(cut.len() == 1 && cut[0].starts_with("!a is empty"), "{cut:?}");
        let mended = files.changes(readings([("a", good(&[])), ("b", Reading::Same)]));
        assert_eq!(short(mended), ["-x", "ok a", "commit"]);
    }

    #[test]
    fn a_removed_file_takes_its_objects_and_its_complaint_along() {
        let mut files = Files::default();
        files.listing(readings([("a", good(&[("x", 1)])), ("b", bad("torn"))]));
        assert_eq!(short(files.changes(readings([]))), ["-x", "ok b", "commit"]);
    }

    #[test]
    fn an_object_in_two_files_is_the_first_files_and_moves_on_when_that_goes() {
        let mut files = Files::default();
        let first = files.listing(readings([("b", good(&[("x", 2), ("y", 2)])), ("a", good(&[("x", 1)]))]));
        let note = "b: x stands in a as well, and that one counts";
        assert_eq!(short(first), ["reset", "x=[1]", "y=[2]", note, "complete"]);
        assert_eq!(short(files.changes(readings([("b", Reading::Same)]))), ["x=[2]", "b: ", "commit"]);
    }

    #[test]
    fn an_object_that_moves_between_files_is_never_deleted() {
        let mut files = Files::default();
        files.listing(readings([("a", good(&[("x", 1)]))]));
        assert!(files.changes(readings([("a", good(&[])), ("b", good(&[("x", 1)]))])).is_empty());
    }

    #[test]
    fn a_bad_element_keeps_what_its_file_said_and_takes_no_neighbour() {
        let mut files = Files::default();
        files.listing(readings([("a", good(&[("x", 1), ("y", 1), ("z", 1)]))]));
        let problems = vec![Problem::new("document 2: kind", "missing", "a kind"), Problem::new("b", "c", "d")];
        let broken = Reading::Good(Manifest { problems, ..manifest(&[("x", 2), ("z", 1)]) });
        let reason = "!a document 2: kind: missing; accepted: a kind (and 1 more)";
        assert_eq!(short(files.changes(readings([("a", broken)]))), ["x=[2]", reason, "commit"]);
        let mended = good(&[("x", 2), ("z", 1)]);
        assert_eq!(short(files.changes(readings([("a", mended)]))), ["-y", "ok a", "commit"]);
    }

    #[test]
    fn what_is_not_used_is_noted_once_and_is_no_fault() {
        let mut files = Files::default();
        let unused = |names: &[&str]| {
            let unused = names.iter().map(|name| (*name).to_owned()).collect();
            Reading::Good(Manifest { unused, ..manifest(&[("x", 1)]) })
        };
        let first = files.listing(readings([("a", unused(&["ClusterRole system:coredns"]))]));
        let note = "a: ClusterRole system:coredns is not used";
        assert_eq!(short(first), ["reset", "x=[1]", note, "complete"]);
        assert!(files.changes(readings([("a", unused(&["ClusterRole system:coredns"]))])).is_empty());
        let many = files.changes(readings([("a", unused(&["Role"; 50]))]));
        assert_eq!(many.len(), 1);
        assert!(short(many)[0].ends_with("Role is not used, 30 more objects are not used"));
        assert_eq!(short(files.changes(readings([("a", unused(&[]))]))), ["a: "]);
    }

    #[test]
    fn what_was_found_in_one_go_ends_with_one_commit() {
        let mut files = Files::default();
        files.listing(readings([("a", good(&[("service", 1)])), ("b", good(&[("slice", 1)]))]));
        let renamed = files.changes(readings([("a", good(&[("service", 2)])), ("b", good(&[("slice", 2)]))]));
        assert_eq!(short(renamed), ["service=[2]", "slice=[2]", "commit"]);
    }

    #[test]
    fn a_second_listing_reports_everything_again() {
        let mut files = Files::default();
        files.listing(readings([("a", good(&[("x", 1)])), ("b", good(&[("y", 1)]))]));
        let again = files.listing(readings([("a", bad("torn"))]));
        assert_eq!(short(again), ["reset", "x=[1]", "!a torn", "complete"]);
    }

    fn reading() -> impl Strategy<Value = Reading> {
        prop_oneof![
            (proptest::collection::btree_map("[x-z]", 0..3_u8, 0..3), 0..3_usize, any::<bool>()).prop_map(
                |(objects, unused, broken)| Reading::Good(Manifest {
                    objects: objects.into_iter().map(|(key, value)| Object { key, json: vec![value] }).collect(),
                    problems: broken.then(|| Problem::new("kind", "missing", "a kind")).into_iter().collect(),
                    duplicates: Vec::new(),
                    words: Words::default(),
                    unused: vec!["Role".to_owned(); unused],
                })
            ),
            Just(Reading::Bad("torn".into(), Words::default())),
            Just(Reading::Same),
        ]
    }

    proptest! {
        /// The consumer's snapshot always equals the union of the last good files, whichever way it was reported.
        #[test]
        fn the_consumer_knows_what_the_files_say(
            steps in proptest::collection::vec((any::<bool>(), proptest::collection::btree_map("[a-c]", reading(), 0..4)), 1..12),
        ) {
            let mut files = Files::default();
            let mut snapshot = Snapshot::new();
            for (index, (whole, readings)) in steps.into_iter().enumerate() {
                let events = if whole || index == 0 { files.listing(readings) } else { files.changes(readings) };
                for event in events {
                    snapshot.apply(event);
                }
                let (objects, notes) = files.union();
                let objects: BTreeMap<String, Vec<u8>> =
                    objects.into_iter().map(|(key, json)| (key, json.to_vec())).collect();
                prop_assert_eq!(snapshot.entries(), &objects);
                let reasons = files.unreadable.iter().map(|(file, (reason, _))| (file.clone(), reason.clone()));
                prop_assert_eq!(snapshot.invalid(), &reasons.collect());
                prop_assert_eq!(snapshot.notes(), &notes);
            }
        }
    }
}
