//! What the kernel holds as it is desired is kept once, as far as copies share memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod never;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use never::Never;
use reconcile::{Observed, Owner, Reconciler, Stage, Step, Target};

const ROWS: usize = 40;

/// A table of texts that are made anew by each listing.
struct Texts(BTreeMap<String, String>);

impl Target for Texts {
    type Key = Arc<str>;
    type Value = Arc<str>;
    type Error = Never;

    fn observe(&mut self) -> Result<BTreeMap<Arc<str>, Observed<Arc<str>>>, Never> {
        let row = |(key, value): (&String, &String)| {
            (key.as_str().into(), Observed { value: value.as_str().into(), owner: Owner::Ours })
        };
        Ok(self.0.iter().map(row).collect())
    }

    fn apply(&mut self, steps: &[Step<Arc<str>, Arc<str>>]) -> Vec<Result<(), Never>> {
        for step in steps {
            match step {
                Step::Create(key, value) | Step::Change(key, _, value) => {
                    self.0.insert(key.to_string(), value.to_string());
                }
                Step::Remove(key, _) => drop(self.0.remove(&**key)),
            }
        }
        steps.iter().map(|_| Ok(())).collect()
    }
}

fn rows() -> BTreeMap<Arc<str>, Arc<str>> {
    (0..ROWS).map(|row| (format!("key {row:02}").into(), format!("value {row}").into())).collect()
}

fn table() -> Reconciler<Texts> {
    Reconciler::new("texts", Texts(rows().iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()))
}

/// Fails unless every row is in place, and desired and listed as the same memory.
fn assert_kept_once(table: &Reconciler<Texts>) {
    assert_eq!((table.desired(), table.status().is_done()), (&rows(), true));
    for (desired, listed) in table.desired().iter().zip(table.mirror().unwrap()) {
        assert!(Arc::ptr_eq(desired.0, listed.0) && Arc::ptr_eq(desired.1, &listed.1.value), "{desired:?}");
    }
}

#[test]
fn rows_that_were_listed_are_kept_once_when_they_are_desired_and_need_no_step() {
    let mut one = table();
    one.list(Duration::ZERO);
    rows().into_iter().for_each(|(key, value)| one.want(key, Some(value)));
    assert_kept_once(&one);
    let mut all = table();
    all.list(Duration::ZERO);
    all.want_each(rows().into_iter().map(|(key, value)| (key, Some(value))).collect());
    assert_kept_once(&all);
    for table in [&mut one, &mut all] {
        assert!(table.upsert(Duration::ZERO).is_idle() && table.remove(Duration::ZERO).is_idle());
    }
}

#[test]
fn rows_that_were_desired_are_kept_once_when_they_are_listed_and_when_they_are_made() {
    let mut table = table();
    table.want_all(rows());
    table.upsert(Duration::ZERO);
    assert_kept_once(&table);
    table.invalidate();
    table.list(Duration::ZERO);
    assert_kept_once(&table);
    let mut made = Reconciler::new("texts", Texts(BTreeMap::new()));
    made.want_all(rows());
    made.upsert(Duration::ZERO);
    assert_kept_once(&made);
}

#[test]
fn a_row_that_was_desired_otherwise_for_a_moment_needs_no_step() {
    let mut table = table();
    table.want_all(rows());
    table.upsert(Duration::ZERO);
    let key: Arc<str> = "key 07".into();
    for value in [Some("another".into()), None, rows().get(&key).cloned()] {
        table.want(key.clone(), value);
    }
    assert!(table.upsert(Duration::ZERO).is_idle() && table.remove(Duration::ZERO).is_idle());
    assert_kept_once(&table);
}
