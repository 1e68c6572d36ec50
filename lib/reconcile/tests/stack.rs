//! A stack of tables: its order, its conditions, and what a table takes along when it is made anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod never;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use never::Never;
use proptest::prelude::*;
use reconcile::{Observed, Owner, Reconciler, Rows, Stack, Stage, Step, Table, Target};

type Log = Arc<Mutex<Vec<String>>>;
type Contents = Arc<Mutex<BTreeMap<u8, u8>>>;

/// A table in memory, all of whose rows are ours, and a log that all tables of a test share.
struct Memory(&'static str, Log, Contents);

impl Target for Memory {
    type Key = u8;
    type Value = u8;
    type Error = Never;

    fn observe(&mut self) -> Result<Rows<u8, u8>, Never> {
        self.1.lock().unwrap().push(format!("{} list", self.0));
        let ours = |(key, value): (&u8, &u8)| (*key, Observed { value: *value, owner: Owner::Ours });
        Ok(self.2.lock().unwrap().iter().map(ours).collect())
    }

    fn apply(&mut self, steps: &[Step<u8, u8>]) -> Vec<Result<(), Never>> {
        for step in steps {
            let verb = match step {
                Step::Create(key, value) | Step::Change(key, _, value) => {
                    self.2.lock().unwrap().insert(*key, *value);
                    "make"
                }
                Step::Remove(key, _) => {
                    self.2.lock().unwrap().remove(key);
                    "remove"
                }
            };
            self.1.lock().unwrap().push(format!("{} {verb} {}", self.0, step.key()));
        }
        steps.iter().map(|_| Ok(())).collect()
    }
}

#[derive(Default)]
struct Lab {
    log: Log,
    contents: BTreeMap<&'static str, Contents>,
}

impl Lab {
    fn table(&mut self, name: &'static str, rows: &[u8]) -> Reconciler<Memory> {
        let contents: Contents = Arc::new(Mutex::new(rows.iter().map(|key| (*key, 1)).collect()));
        self.contents.insert(name, Arc::clone(&contents));
        Reconciler::new(name, Memory(name, Arc::clone(&self.log), contents))
    }

    /// What was done since the last call, listings apart.
    fn done(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap()).into_iter().filter(|line| !line.ends_with("list")).collect()
    }
}

#[test]
fn a_table_that_rests_is_neither_read_nor_written_and_goes_on_when_it_wakes() {
    let (mut lab, mut stack) = (Lab::default(), Stack::new());
    let links = stack.push(lab.table("link", &[1]));
    let routes = stack.push(lab.table("route", &[1]));
    stack.want(routes, 2, Some(1));
    stack.rest(routes, true);
    stack.rest(links, true);
    stack.pass(true, Duration::ZERO);
    assert!(lab.log.lock().unwrap().is_empty(), "nobody listed anything");
    assert_eq!(stack.counts().len(), 0);
    stack.rest(routes, false);
    stack.pass(true, Duration::ZERO);
    assert_eq!(lab.done(), ["route make 2", "route remove 1"]);
}

#[test]
fn creates_run_forward_and_removals_backward() {
    let (mut lab, mut stack) = (Lab::default(), Stack::new());
    let neighbours = stack.push(lab.table("neighbour", &[1]));
    let routes = stack.push(lab.table("route", &[1]));
    stack.want(routes, 2, Some(1));
    stack.want(neighbours, 2, Some(1));
    stack.pass(false, Duration::ZERO);
    assert_eq!(lab.done(), ["neighbour make 2", "route make 2"]);
    stack.pass(true, Duration::ZERO);
    assert_eq!(lab.done(), ["route remove 1", "neighbour remove 1"]);
}

#[test]
fn a_table_that_waits_creates_nothing_and_still_removes() {
    let (mut lab, mut stack) = (Lab::default(), Stack::new());
    let nft = stack.push(lab.table("nft", &[]));
    let addresses = stack.push_when(lab.table("address", &[]), move |stack| stack.holds(nft, &1));
    stack.want(addresses, 7, Some(1));
    stack.pass(true, Duration::ZERO);
    assert_eq!(lab.done(), Vec::<String>::new(), "nobody desires the row that the addresses wait for");
    stack.want(nft, 1, Some(1));
    stack.pass(true, Duration::ZERO);
    assert_eq!(lab.done(), ["nft make 1", "address make 7"]);
    lab.contents["nft"].lock().unwrap().clear();
    stack.invalidate(nft);
    stack.want(nft, 1, None);
    stack.want(addresses, 8, Some(1));
    stack.want(addresses, 7, None);
    stack.pass(true, Duration::ZERO);
    assert_eq!(lab.done(), ["address remove 7"]);
    assert!(!stack.stage("address").unwrap().status().is_done());
}

#[test]
fn tables_that_follow_a_new_link_are_listed_again() {
    let (mut lab, mut stack) = (Lab::default(), Stack::new());
    let links = stack.push_base(lab.table("link", &[]));
    let routes = stack.push(lab.table("route", &[]));
    stack.want(links, 1, Some(1));
    stack.want(routes, 1, Some(1));
    stack.pass(true, Duration::ZERO);
    lab.done();
    // The link goes and takes the route along; only the link is reported.
    lab.contents.values().for_each(|rows| rows.lock().unwrap().clear());
    stack.invalidate(links);
    let pass = stack.pass(true, Duration::ZERO);
    assert_eq!(lab.done(), ["link make 1", "route make 1"]);
    assert_eq!((pass.observed, pass.repaired), (2, 2));
    let repaired: Vec<_> = stack.counts().iter().map(|(name, counts)| (*name, counts.repaired)).collect();
    assert_eq!(repaired, [("link", 1), ("route", 1)]);
}

#[test]
fn a_handle_leads_to_its_table_and_to_no_other() {
    let (mut lab, mut stack) = (Lab::default(), Stack::new());
    let first = stack.push(lab.table("first", &[]));
    let second = stack.push(lab.table("second", &[]));
    assert_eq!(stack.get(first).unwrap().name(), "first");
    assert_eq!(stack.get_mut(second).unwrap().name(), "second");
    assert!(Stack::new().get(first).is_none());
    assert_eq!(stack.stages().map(|stage| stage.name()).collect::<Vec<_>>(), ["first", "second"]);
    assert!(stack.stage("third").is_none());
    assert_eq!(stack.mirror(first), None);
    stack.pass(true, Duration::ZERO);
    assert!(stack.mirror(first).unwrap().is_empty());
    stack.invalidate_all();
    assert_eq!(stack.mirror(second), None);
}

proptest! {
    /// Whatever is desired and whatever was there: a row of a later table never stands without its row in an earlier one.
    #[test]
    fn no_row_outlives_what_it_needs(
        turns in prop::collection::vec((prop::collection::btree_set(0_u8..6, 0..6), any::<bool>()), 1..6),
    ) {
        let (mut lab, mut stack) = (Lab::default(), Stack::new());
        let tables: Vec<Table<Memory>> = ["link", "neighbour", "route"].map(|name| stack.push(lab.table(name, &[]))).into();
        for (keys, may_remove) in turns {
            for table in &tables {
                stack.want_all(*table, keys.iter().map(|key| (*key, 1)).collect());
            }
            stack.pass(may_remove, Duration::ZERO);
            let mut standing: BTreeMap<u8, usize> = BTreeMap::new();
            for line in lab.log.lock().unwrap().iter().filter(|line| !line.ends_with("list")) {
                let words: Vec<&str> = line.split(' ').collect();
                let level = ["link", "neighbour", "route"].iter().position(|name| *name == words[0]).unwrap();
                let below = standing.entry(words[2].parse().unwrap()).or_default();
                if words[1] == "make" {
                    prop_assert_eq!(*below, level);
                    *below += 1;
                } else {
                    *below -= 1;
                    prop_assert_eq!(*below, level);
                }
            }
        }
    }
}
