//! A step that fails after a part of its work: what there is then is known, and the next step begins there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use proptest::prelude::*;
use reconcile::{Classify, Observed, Owner, Reconciler, RetryClass, Rows, Stage, Step, Target};

/// The numbers of a row.
#[derive(Debug, Clone, Default, PartialEq)]
struct Numbers(BTreeSet<u8>);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl Classify for Refused {
    fn class(&self) -> RetryClass {
        RetryClass::Retry
    }
}

/// Rows of numbers, of which some are refused while the others are taken.
#[derive(Default)]
struct Memory {
    rows: BTreeMap<u8, Numbers>,
    refused: BTreeSet<u8>,
    written: Vec<u8>,
}

impl Memory {
    fn write(&mut self, key: u8, have: &Numbers, want: &Numbers) -> Result<(), Refused> {
        assert_eq!(self.rows.get(&key).cloned().unwrap_or_default(), *have, "the step begins at what there is");
        let row = self.rows.entry(key).or_default();
        row.0.retain(|number| want.0.contains(number));
        let new: Vec<u8> = want.0.difference(&have.0).copied().collect();
        let (refused, taken): (Vec<_>, Vec<_>) = new.into_iter().partition(|number| self.refused.contains(number));
        row.0.extend(&taken);
        self.written.extend(taken);
        if refused.is_empty() { Ok(()) } else { Err(Refused) }
    }
}

impl Target for Memory {
    type Key = u8;
    type Value = Numbers;
    type Error = Refused;

    fn observe(&mut self) -> Result<Rows<u8, Numbers>, Refused> {
        let ours = |(key, value): (&u8, &Numbers)| (*key, Observed { value: value.clone(), owner: Owner::Ours });
        Ok(self.rows.iter().map(ours).collect())
    }

    fn left(&mut self, key: &u8, _: Option<Observed<Numbers>>) -> Option<Observed<Numbers>> {
        self.rows.get(key).map(|value| Observed { value: value.clone(), owner: Owner::Ours })
    }

    fn apply(&mut self, steps: &[Step<u8, Numbers>]) -> Vec<Result<(), Refused>> {
        let step = |step: &Step<u8, Numbers>| match step {
            Step::Create(key, want) => self.write(*key, &Numbers::default(), want),
            Step::Change(key, have, want) => self.write(*key, have, want),
            Step::Remove(key, _) => {
                self.rows.remove(key);
                Ok(())
            }
        };
        steps.iter().map(step).collect()
    }
}

proptest! {
    #[test]
    fn what_is_known_is_what_there_is_whatever_is_refused_and_each_part_is_written_once(
        wanted in prop::collection::btree_map(0..6u8, prop::collection::btree_set(0..8u8, 1..6), 1..6),
        later in prop::collection::btree_map(0..6u8, prop::collection::btree_set(0..8u8, 1..6), 1..6),
        refused in prop::collection::btree_set(0..8u8, 0..5),
    ) {
        let mut table = Reconciler::new("numbers", Memory { refused, ..Memory::default() });
        let rows = |wanted: &BTreeMap<u8, BTreeSet<u8>>| {
            wanted.iter().map(|(key, numbers)| (*key, Numbers(numbers.clone()))).collect::<BTreeMap<_, _>>()
        };
        for (round, wanted) in [&wanted, &later].into_iter().enumerate() {
            table.want_all(rows(wanted));
            for second in 0..3 {
                let now = Duration::from_secs(u64::try_from(round).unwrap() * 1000 + second * 300);
                table.upsert(now);
                table.remove(now);
                let known: BTreeMap<_, _> =
                    table.mirror().unwrap().iter().map(|(key, row)| (*key, row.value.clone())).collect();
                prop_assert_eq!(&known, &table.target_mut().rows);
            }
        }
        table.target_mut().refused.clear();
        table.target_mut().written.clear();
        let before = table.target_mut().rows.clone();
        table.upsert(Duration::from_secs(10_000));
        prop_assert_eq!(&table.target_mut().rows, &rows(&later));
        let missing: usize = later.iter().map(|(key, numbers)| numbers.len() - before[key].0.len()).sum();
        prop_assert_eq!(table.target_mut().written.len(), missing);
    }
}
