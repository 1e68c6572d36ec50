//! `Reconciler`: one table's desired rows, its mirror of the kernel and the way between them.
//!
//! Invariant: the mirror holds what the kernel answered, never what we hoped for. A step that fails leaves the row
//! dirty, and in the mirror what there is of it. A pass touches dirty rows only, so one changed endpoint among thousands costs one step.
//! A row that was in place and is found otherwise, though nobody desired anything new, was changed by somebody else:
//! putting it back counts as a repair.

mod audit;
mod contest;
mod stage;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use audit::Audit;
use contest::{Contest, contested};

use crate::chain::Chain;
use crate::diff::{differing, step};
use crate::held::{held, sharing};
use crate::pass::{Failure, Pass};
use crate::retry;
use crate::status::{Row, State};
use crate::target::{Classify, Observed, Owner, RetryClass, Rows, Target};
use crate::walk::Walk;

/// Failures of one row, with the time of the next try.
#[derive(Debug, Clone)]
struct RowFailure {
    class: RetryClass,
    reason: String,
    times: u32,
    since: Duration,
    next: Duration,
}

/// A failed listing, with the time of the next try.
#[derive(Debug, Clone)]
struct ObserveFailure {
    reason: String,
    times: u32,
    next: Duration,
}

/// One kernel table under control.
pub struct Reconciler<T: Target> {
    name: &'static str,
    target: T,
    desired: BTreeMap<T::Key, T::Value>,
    mirror: Option<Rows<T::Key, T::Value>>,
    /// The table was listed; before that every desired row is dirty.
    listed: bool,
    /// How many rows of the mirror are ours: counted as they change, because whoever asks asks after every pass.
    ours: usize,
    /// Desired rows that may not be in place.
    dirty: BTreeSet<T::Key>,
    /// Rows that nobody desires and that may be there: kept apart, for at a start these are all that the kernel holds, pass by pass.
    surplus: BTreeSet<T::Key>,
    /// Dirty rows that were in place and that somebody else changed.
    taken: BTreeSet<T::Key>,
    failures: BTreeMap<T::Key, RowFailure>,
    contests: BTreeMap<T::Key, Contest>,
    observe_failure: Option<ObserveFailure>,
    /// The audit that is under way.
    audit: Option<Audit<T>>,
    totals: Totals,
    /// Passes say which rows they wrote.
    keeps_written: bool,
}

/// What was done since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    listings: u64,
    upserted: u64,
    repaired: u64,
    removed: u64,
    failures: u64,
}

impl<T: Target> Reconciler<T> {
    /// A table with no desired rows that has not been read yet. `name` is the table's name in status and logs.
    pub const fn new(name: &'static str, target: T) -> Self {
        Self {
            name,
            target,
            desired: BTreeMap::new(),
            mirror: None,
            listed: false,
            ours: 0,
            dirty: BTreeSet::new(),
            surplus: BTreeSet::new(),
            taken: BTreeSet::new(),
            failures: BTreeMap::new(),
            contests: BTreeMap::new(),
            observe_failure: None,
            audit: None,
            totals: Totals { listings: 0, upserted: 0, repaired: 0, removed: 0, failures: 0 },
            keeps_written: false,
        }
    }

    /// Desires `value` for the row `key`, or with `None` that the row be gone.
    pub fn want(&mut self, key: T::Key, value: Option<T::Value>) {
        if self.desired.get(&key) == value.as_ref() {
            return;
        }
        self.failures.remove(&key);
        self.taken.remove(&key);
        let Some(value) = value else {
            self.desired.remove(&key);
            self.dirty.remove(&key);
            self.surplus.insert(key);
            return;
        };
        self.surplus.remove(&key);
        let mirror = self.mirror.as_ref();
        if let Some((key, value)) = mirror.and_then(|mirror| held(&mut Walk::along(mirror, 1), &key, &value)) {
            self.dirty.remove(&key);
            self.desired.insert(key, value);
            return;
        }
        self.dirty.insert(key.clone());
        self.desired.insert(key, value);
    }

    /// As [`Reconciler::want`] for many rows at once.
    pub fn want_each(&mut self, changes: BTreeMap<T::Key, Option<T::Value>>) {
        if !Walk::<T::Key, ()>::pays(changes.len(), self.desired.len()) {
            for (key, value) in changes {
                self.want(key, value);
            }
            return;
        }
        // Many rows are new, as at a start: built from sorted lists, the tables have full nodes.
        let (new, rest): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|(key, value)| value.is_some() && !self.desired.contains_key(key));
        let mut mirror = self.mirror.as_ref().map(|mirror| Walk::along(mirror, new.len()));
        let (mut desired, mut dirty) = (Vec::with_capacity(new.len()), Vec::with_capacity(new.len()));
        for (key, value) in new.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            self.failures.remove(&key);
            self.taken.remove(&key);
            if mirror.as_mut().and_then(|mirror| held(mirror, &key, &value)).is_none() {
                dirty.push(key.clone());
            }
            desired.push((key, value));
        }
        let held = desired.len().saturating_sub(dirty.len());
        take_out(&mut self.surplus, desired.iter().map(|(key, _)| key));
        self.dirty.append(&mut dirty.into_iter().collect());
        self.desired.append(&mut desired.into_iter().collect());
        if held > 0 && Walk::<T::Key, ()>::pays(held, self.mirror.as_ref().map_or(0, BTreeMap::len)) {
            // What was listed stands together in memory, and goes whole.
            self.mirror = self.mirror.take().map(|mirror| sharing(mirror, &self.desired));
        }
        for (key, value) in rest {
            self.want(key, value);
        }
    }

    /// Replaces all desired rows; only rows that differ become dirty.
    pub fn want_all(&mut self, desired: BTreeMap<T::Key, T::Value>) {
        let gone: Vec<_> = self.desired.keys().filter(|key| !desired.contains_key(key)).cloned().collect();
        for key in gone {
            self.want(key, None);
        }
        for (key, value) in desired {
            self.want(key, Some(value));
        }
    }

    /// The desired rows.
    pub const fn desired(&self) -> &BTreeMap<T::Key, T::Value> {
        &self.desired
    }

    /// The rows the kernel holds as far as we know; `None` before the first listing.
    pub const fn mirror(&self) -> Option<&Rows<T::Key, T::Value>> {
        self.mirror.as_ref()
    }

    /// True when the table has been listed and holds the row `key` as it is desired.
    pub fn holds(&self, key: &T::Key) -> bool {
        let have = self.mirror.as_ref().and_then(|mirror| mirror.get(key));
        have.zip(self.desired.get(key)).is_some_and(|(have, want)| self.target.satisfies(&have.value, want))
    }

    /// How often the table was listed.
    pub const fn listings(&self) -> u64 {
        self.totals.listings
    }

    /// The table itself, for what is no row.
    pub const fn target_mut(&mut self) -> &mut T {
        &mut self.target
    }

    /// Compares the table itself with the rows it holds as far as we know; `None` before the first listing.
    pub fn compare<R>(&mut self, compare: impl FnOnce(&mut T, &Rows<T::Key, T::Value>) -> R) -> Option<R> {
        self.mirror.as_ref().map(|mirror| compare(&mut self.target, mirror))
    }

    /// Takes in that the kernel holds `have` for the row `key`, or nothing: what a query of single rows found, or an error
    /// that says that a row is not what it was believed to be. A row that differs is due at once; nothing else is listed.
    pub fn correct(&mut self, key: T::Key, have: Option<Observed<T::Value>>) {
        if self.mirror.is_none() {
            return;
        }
        self.touch(&key);
        self.mirror_row(&key, have);
        let actual = self.mirror.as_ref().and_then(|mirror| mirror.get(&key));
        let differs = step(&key, self.desired.get(&key), actual, |have, want| self.target.satisfies(have, want));
        if differs.is_none() {
            return;
        }
        self.failures.remove(&key);
        if !self.desired.contains_key(&key) {
            self.surplus.insert(key);
        } else if self.dirty.insert(key.clone()) {
            self.taken.insert(key);
        }
    }

    /// Notes in a valid mirror what the kernel holds for the row `key`.
    fn mirror_row(&mut self, key: &T::Key, have: Option<Observed<T::Value>>) {
        let Some(mirror) = &mut self.mirror else { return };
        let ours_now = have.as_ref().is_some_and(is_ours);
        let before = match have {
            Some(have) => mirror.insert(key.clone(), have),
            None => mirror.remove(key),
        };
        let ours_before = before.as_ref().is_some_and(is_ours);
        self.ours = (self.ours + usize::from(ours_now)).saturating_sub(usize::from(ours_before));
    }

    /// Lists the table if it is not known what the kernel holds; nothing is written.
    pub fn list(&mut self, now: Duration) -> Pass {
        let mut pass = Pass::default();
        self.observe(now, &mut pass);
        pass
    }

    /// Lists the table when the mirror is not valid, and marks what differs. Returns whether the mirror is valid.
    fn observe(&mut self, now: Duration, pass: &mut Pass) -> bool {
        if self.mirror.is_some() {
            return true;
        }
        if self.observe_failure.as_ref().is_some_and(|failure| failure.next > now) {
            return false;
        }
        pass.observed += 1;
        self.totals.listings += 1;
        match self.target.observe() {
            Ok(observed) => {
                self.observe_failure = None;
                let mirror = sharing(observed, &self.desired);
                // Everything is dirty, and an empty table satisfies nothing.
                if std::mem::replace(&mut self.listed, true) || !mirror.is_empty() {
                    self.mark(&mirror);
                }
                self.ours = mirror.values().filter(|row| is_ours(row)).count();
                self.mirror = Some(mirror);
                true
            }
            Err(error) => {
                let times = self.observe_failure.as_ref().map_or(0, |failure| failure.times) + 1;
                let next = now + retry::delay(times, error.class());
                self.observe_failure = Some(ObserveFailure { reason: Chain(&error).to_string(), times, next });
                self.totals.failures += 1;
                pass.fail(Failure::new(self.name, &error));
                false
            }
        }
    }

    /// Marks the rows that differ from what is desired.
    fn mark(&mut self, mirror: &Rows<T::Key, T::Value>) {
        let (upserts, removals) = differing(&self.desired, mirror, |have, want| self.target.satisfies(have, want));
        // What was not dirty was in place.
        let changed = upserts.iter().filter(|key| !self.dirty.contains(*key));
        self.taken.extend(changed.map(|key| (*key).clone()));
        self.dirty = upserts.into_iter().cloned().collect();
        self.surplus = removals.into_iter().cloned().collect();
        self.taken.retain(|key| self.dirty.contains(key));
        self.failures.retain(|key, _| self.dirty.contains(key) || self.surplus.contains(key));
    }

    fn due(&self, key: &T::Key, now: Duration) -> bool {
        let failed = self.failures.get(key).map(|failure| failure.next);
        let contested = self.contest(key).map(Contest::next);
        failed.max(contested).is_none_or(|next| next <= now)
    }

    /// The contest about a row that somebody else has changed.
    fn contest(&self, key: &T::Key) -> Option<Contest> {
        self.taken.get(key).and_then(|key| self.contests.get(key)).copied()
    }

    /// Notes that a row was put back; a contested one is reported each time, and each time it waits longer.
    fn repaired(&mut self, key: &T::Key, now: Duration, pass: &mut Pass) {
        pass.repaired += 1;
        self.totals.repaired += 1;
        let contest = self.contests.entry(key.clone()).or_insert(Contest { times: 0, last: now });
        *contest = Contest { times: contest.times.saturating_add(1), last: now };
        if contest.pause() > Duration::ZERO {
            let reason = format!("{key}: {}", contested(*contest, self.target.rival(key)));
            pass.fail(Failure { table: self.name, class: RetryClass::Retry, errno: None, times: 1, reason });
        }
    }

    /// The desired rows that are not in place, as far as known, in key order. Costs what is open, not what is desired.
    fn open(&self) -> Box<dyn Iterator<Item = &T::Key> + '_> {
        if self.mirror.is_none() {
            return Box::new(self.desired.keys());
        }
        Box::new(self.dirty.iter())
    }

    /// True for a row that is not in place, as far as known.
    fn is_open(&self, key: &T::Key) -> bool {
        self.mirror.is_none() || self.dirty.contains(key) || self.surplus.contains(key)
    }

    fn done(&self) -> usize {
        if self.mirror.is_some() { self.desired.len().saturating_sub(self.dirty.len()) } else { 0 }
    }

    /// The rows that are not as they should be: desired and not in place, and those that should be gone.
    fn not_in_place(&self) -> impl Iterator<Item = &T::Key> {
        self.open().chain(&self.surplus)
    }

    /// True when the last try of the row failed, or somebody fights about it.
    fn has_failed(&self, key: &T::Key) -> bool {
        let is_contested = || self.contest(key).is_some_and(|contest| contest.pause() > Duration::ZERO);
        self.failures.contains_key(key) || is_contested()
    }

    fn row(&self, key: &T::Key) -> Row {
        Row { key: key.to_string(), state: self.state(key) }
    }

    fn state(&self, key: &T::Key) -> State {
        match self.failures.get(key) {
            Some(f) => {
                State::Failed { class: f.class, reason: f.reason.clone(), times: f.times, since: f.since, next: f.next }
            }
            None => match self.contest(key).filter(|contest| contest.pause() > Duration::ZERO) {
                Some(contest) => State::Failed {
                    class: RetryClass::Retry,
                    reason: contested(contest, self.target.rival(key)),
                    times: contest.times,
                    since: contest.last,
                    next: contest.next(),
                },
                None => State::Pending,
            },
        }
    }
}

/// Takes `keys`, which are in order, out of a set.
fn take_out<'a, K: Ord + 'a>(set: &mut BTreeSet<K>, keys: impl ExactSizeIterator<Item = &'a K>) {
    if !Walk::<K, ()>::pays(keys.len(), set.len()) {
        for key in keys {
            set.remove(key);
        }
        return;
    }
    let mut keys = keys.peekable();
    set.retain(|key| {
        while keys.next_if(|other| *other < key).is_some() {}
        keys.next_if(|other| *other == key).is_none()
    });
}

fn is_ours<V>(row: &Observed<V>) -> bool {
    row.owner == Owner::Ours
}
