//! `View`: what the store says about leases, folded from its events.
//!
//! Invariants: nothing is forgotten before the store has finished a listing; an entry that cannot be read is kept by
//! name with its reason and never touches the others. When most of the leases would go at once, in a listing or in a
//! burst of deletions or of unreadable values, none of them goes before a second listing confirms it: a store that was wiped or restored shows
//! the same as a cluster that shrank. Keys that are no leases count for nothing in that.

mod own;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Break, Origin};
use netstate::Prefix;

use super::LeaseEvent;
use crate::format::lease::{StoredLease, SubnetKey};
pub(crate) use own::OwnKey;

/// Deletions within this time are one burst.
const BURST: Duration = Duration::from_secs(10);

/// The leases as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct View {
    leases: BTreeMap<SubnetKey, Arc<StoredLease>>,
    /// Keys that are no leases, with the reason and the revision.
    invalid: BTreeMap<String, (String, i64)>,
    /// What the running listing has shown; `None` outside a listing.
    listed: Option<Listed>,
    complete: bool,
    lost: Option<String>,
    /// The state of the store that was seen last, and the one that the running listing shows.
    origin: Option<Origin>,
    next_origin: Option<Origin>,
    /// How the store showed at the last listing that it is not the one that was listed before.
    broken: Option<Break>,
    own: Option<own::Own>,
    /// Leases that the store does not show any more, and that stay until that is confirmed.
    withheld: BTreeSet<SubnetKey>,
    doubted: bool,
    /// Leases deleted of late, each with its time.
    deleted: VecDeque<(Duration, Arc<StoredLease>)>,
    /// Leases that came of late, each with its time.
    arrived: BTreeMap<SubnetKey, Duration>,
    /// Subnets that the kernel has routes to from an earlier run.
    leftovers: BTreeSet<Prefix>,
}

#[derive(Debug, Default)]
struct Listed {
    /// Keys in the order in which they were shown or, with `false`, gone again; the last word counts.
    leases: Vec<(SubnetKey, bool)>,
    /// Those of them that were not known before, and those of listings that broke off before this one.
    new: Vec<SubnetKey>,
    invalid: BTreeSet<String>,
}

impl Listed {
    /// The keys that are there at the end, in order: of each the last word counts.
    fn shown(&mut self) -> Vec<SubnetKey> {
        let mut leases = std::mem::take(&mut self.leases);
        // Stable, and a listing that is in order already is not sorted again.
        leases.sort_by_key(|(key, _)| *key);
        let mut shown: Vec<(SubnetKey, bool)> = Vec::with_capacity(leases.len());
        for (key, is_there) in leases {
            match shown.last_mut().filter(|(last, _)| *last == key) {
                Some((_, last)) => *last = is_there,
                None => shown.push((key, is_there)),
            }
        }
        shown.into_iter().filter_map(|(key, is_there)| is_there.then_some(key)).collect()
    }
}

/// What an event changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Leases that are there, differ or are gone.
    pub leases: BTreeSet<SubnetKey>,
    /// The store's reachability or the readability of a key differs.
    pub status: bool,
    /// The own key was written or deleted.
    pub own: bool,
    /// A key turned out to be no lease.
    pub invalid: bool,
}

impl View {
    /// A view for a kernel that holds routes of an earlier run to `leftovers`: only these can a first listing take away.
    #[must_use]
    pub(crate) fn new(leftovers: BTreeSet<Prefix>) -> Self {
        Self { leftovers, ..Self::default() }
    }

    /// Takes in one event; `now` is any clock that does not go back.
    pub(crate) fn apply(&mut self, event: LeaseEvent, now: Duration) -> Change {
        // A store that shows an earlier revision later went back.
        if let (None, Some(origin), Some(revision)) = (&self.listed, &mut self.origin, event.revision()) {
            origin.advance(revision);
        }
        match event {
            LeaseEvent::Reset => {
                let new = self.listed.take().map(|broken_off| broken_off.new).unwrap_or_default();
                self.listed = Some(Listed { new, ..Listed::default() });
                Change { status: true, ..Change::default() }
            }
            LeaseEvent::Origin(origin) => {
                self.broken = self.origin.as_ref().and_then(|before| origin.follows(before).err());
                self.next_origin = Some(origin);
                Change { status: true, ..Change::default() }
            }
            LeaseEvent::Put(stored) => self.put(vec![stored], now),
            LeaseEvent::Puts(leases) => self.put(leases, now),
            LeaseEvent::Delete(key, revision) => self.delete(key, revision, now),
            LeaseEvent::Invalid { key, reason, revision } => self.put_invalid(key, reason, revision, now),
            LeaseEvent::Removed(key) => {
                let status = self.invalid.remove(&key).is_some();
                Change { status, ..Change::default() }
            }
            LeaseEvent::Commit => Change::default(),
            LeaseEvent::Complete => self.finish_listing(),
            LeaseEvent::Lost(error) => {
                self.lost = Some(error.to_string());
                Change { status: true, ..Change::default() }
            }
        }
    }

    fn put(&mut self, leases: Vec<Arc<StoredLease>>, now: Duration) -> Change {
        let mut change = Change::default();
        let mut differing = Vec::with_capacity(leases.len());
        for stored in leases {
            let key = stored.lease.key;
            if self.put_one(stored, now) {
                differing.push(key);
            }
            change.status |= !self.invalid.is_empty() && self.invalid.remove(&key.to_string()).is_some();
            change.own |= self.own.as_mut().filter(|own| own.lease.key == key).map(|own| own.gone = None).is_some();
        }
        change.leases = differing.into_iter().collect();
        change
    }

    /// Puts a lease in; true when it is another one than was known.
    fn put_one(&mut self, stored: Arc<StoredLease>, now: Duration) -> bool {
        let key = stored.lease.key;
        let (differs, is_new) = match self.leases.entry(key) {
            Entry::Vacant(place) => {
                place.insert(stored);
                (true, true)
            }
            Entry::Occupied(known) if *known.get() == stored => (false, false),
            Entry::Occupied(mut known) => {
                known.insert(stored);
                (true, false)
            }
        };
        match &mut self.listed {
            Some(listed) => {
                listed.leases.push((key, true));
                listed.new.extend(is_new.then_some(key));
            }
            None if is_new => drop(self.arrived.insert(key, now)),
            None => {}
        }
        self.withheld.remove(&key);
        self.deleted.retain(|(_, deleted)| deleted.lease.key != key);
        differs
    }

    fn put_invalid(&mut self, key: String, reason: String, revision: i64, now: Duration) -> Change {
        let mut change = Change { status: true, invalid: true, ..Change::default() };
        if let Ok(lease) = key.parse::<SubnetKey>() {
            change.own = self.is_own(&lease);
            // The end of a listing decides about what it does not show.
            match &mut self.listed {
                Some(listed) => listed.leases.push((lease, false)),
                None => self.lose(lease, now, &mut change),
            }
        }
        if let Some(listed) = &mut self.listed {
            listed.invalid.insert(key.clone());
        }
        self.invalid.insert(key, (reason, revision));
        change
    }

    fn delete(&mut self, key: SubnetKey, revision: i64, now: Duration) -> Change {
        if let Some(listed) = &mut self.listed {
            listed.leases.push((key, false));
        }
        let own = self.is_own(&key);
        if let Some(own) = self.own.as_mut().filter(|own| own.lease.key == key) {
            own.gone = Some(Some(revision));
        }
        let status = self.invalid.remove(&key.to_string()).is_some();
        let mut change = Change { own, status, ..Change::default() };
        self.lose(key, now, &mut change);
        change
    }

    /// Forgets a lease that the store does not show any more, unless most of the others' go in this burst.
    fn lose(&mut self, key: SubnetKey, now: Duration, change: &mut Change) {
        if self.doubted && self.leases.contains_key(&key) {
            self.withheld.insert(key);
            return;
        }
        let Some(stored) = self.leases.remove(&key) else { return };
        change.leases.insert(key);
        while self.deleted.front().is_some_and(|(then, _)| now.saturating_sub(*then) > BURST) {
            self.deleted.pop_front();
        }
        self.arrived.retain(|_, then| now.saturating_sub(*then) <= BURST);
        self.deleted.push_back((now, stored));
        let others = |key: &SubnetKey| !self.is_own(key);
        let lost = self.deleted.iter().filter(|(_, stored)| others(&stored.lease.key)).count();
        // What came instead makes the loss no smaller. Counted by what is not, because the others are many.
        let own = usize::from(self.own.as_ref().is_some_and(|own| self.leases.contains_key(&own.lease.key)));
        let arrived = self.arrived.keys().filter(|key| others(key) && self.leases.contains_key(key)).count();
        let left = self.leases.len().saturating_sub(own + arrived);
        if lost > 1 && is_most(lost, lost + left) {
            for (_, stored) in std::mem::take(&mut self.deleted) {
                let key = stored.lease.key;
                self.withheld.insert(key);
                self.leases.insert(key, stored);
                change.leases.insert(key);
            }
            self.doubted = true;
            change.status = true;
        }
    }

    fn finish_listing(&mut self) -> Change {
        let Some(mut listed) = self.listed.take() else { return Change::default() };
        self.origin = self.next_origin.take().or(self.origin);
        let shown = listed.shown();
        let mut change = Change { status: true, own: true, ..Change::default() };
        self.lost = None;
        pack(&mut self.leases);
        self.invalid.retain(|key, _| listed.invalid.contains(key));
        if let Some(own) = self.own.as_mut().filter(|own| shown.binary_search(&own.lease.key).is_err()) {
            own.gone.get_or_insert(None);
        }
        let others = |key: &&SubnetKey| !self.is_own(key);
        // Both in order.
        let mut there = shown.iter().peekable();
        let is_gone = |key: &&SubnetKey| {
            while there.next_if(|shown| shown < key).is_some() {}
            there.next_if_eq(key).is_none()
        };
        let gone: Vec<SubnetKey> = self.leases.keys().filter(is_gone).copied().collect();
        let lost = gone.iter().filter(others).count();
        // What came instead makes the loss no smaller.
        let new: BTreeSet<SubnetKey> = listed.new.into_iter().filter(|_| lost > 0).collect();
        let known = self.leases.keys().filter(|_| lost > 0).filter(others).filter(|key| !new.contains(key)).count();
        let leftovers = if self.complete { 0 } else { self.lost_leftovers() };
        // A store that went back lacks what came since, and nodes that live write that again.
        let went_back = self.broken.is_some() && lost > 0;
        if went_back || is_most(lost, known) || is_most(leftovers, self.leftovers.len()) {
            self.withheld.extend(gone);
            self.doubted = true;
            return change;
        }
        self.forget(gone, &mut change);
        change
    }

    /// Takes the store's word: what it does not show is gone.
    fn forget(&mut self, gone: Vec<SubnetKey>, change: &mut Change) {
        for key in gone {
            self.leases.remove(&key);
            change.leases.insert(key);
        }
        self.withheld.clear();
        self.deleted.clear();
        self.doubted = false;
        self.complete = true;
    }

    /// Subnets that the kernel has routes to and no lease names.
    fn lost_leftovers(&self) -> usize {
        if self.leftovers.is_empty() {
            return 0;
        }
        let named: BTreeSet<Prefix> = self.leases.keys().flat_map(SubnetKey::prefixes).collect();
        self.leftovers.difference(&named).count()
    }

    /// True while most of the leases are gone from the store and [`View::confirm`] is waited for.
    #[must_use]
    pub(crate) const fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Takes a second, later listing as the truth, whatever it shows. Events of the source that are older than it repeat
    /// what it has seen, so nothing is lost by taking them in afterwards.
    pub(crate) fn confirm(&mut self, second: Vec<LeaseEvent>) -> Change {
        if !self.doubted {
            return Change::default();
        }
        let running = self.listed.take();
        let mut change = Change { status: true, own: true, ..Change::default() };
        let mut shown = BTreeSet::new();
        for event in second {
            match event {
                LeaseEvent::Put(stored) => {
                    shown.insert(stored.lease.key);
                    change.leases.extend(self.put(vec![stored], Duration::ZERO).leases);
                }
                LeaseEvent::Invalid { key, reason, revision } => {
                    change.invalid = true;
                    // Most are in doubt, so nothing goes before the end.
                    change.leases.extend(self.put_invalid(key, reason, revision, Duration::ZERO).leases);
                }
                _ => {}
            }
        }
        let gone = self.leases.keys().filter(|key| !shown.contains(key)).copied().collect();
        self.forget(gone, &mut change);
        self.listed = running;
        change
    }

    fn is_own(&self, key: &SubnetKey) -> bool {
        self.own.as_ref().is_some_and(|own| own.lease.key == *key)
    }

    /// True when the store has listed everything once and none of it is in doubt: the gate for removals.
    #[must_use]
    pub(crate) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// True while a listing runs; what is known may be half of it.
    #[must_use]
    pub(crate) const fn is_listing(&self) -> bool {
        self.listed.is_some()
    }

    /// True while the first listing runs: of what is known already, something may be out of date.
    #[must_use]
    pub(crate) const fn is_partial(&self) -> bool {
        self.is_listing() && !self.complete && !self.doubted
    }

    /// The leases by key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = SubnetKey> {
        self.leases.keys().copied()
    }

    /// The lease under `key`, if there is one that can be read.
    #[must_use]
    pub(crate) fn get(&self, key: &SubnetKey) -> Option<&Arc<StoredLease>> {
        self.leases.get(key)
    }

    /// Leases that can be read.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.leases.len()
    }

    /// Keys that cannot be read, with the reason.
    pub(crate) fn invalid(&self) -> impl Iterator<Item = (&str, &str)> {
        self.invalid.iter().map(|(key, (reason, _))| (key.as_str(), reason.as_str()))
    }

    /// How many keys cannot be read.
    #[must_use]
    pub(crate) fn invalid_count(&self) -> usize {
        self.invalid.len()
    }

    /// Why the store is out of reach at the moment, if so.
    #[must_use]
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Why the last listing cannot be a later state of the store that was listed before, if so.
    #[must_use]
    pub(crate) const fn broken(&self) -> Option<Break> {
        self.broken
    }
}

/// Builds `map` anew with full nodes: filled in the order of its keys, it has them half empty.
fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// More than half, and of a single one all of it.
const fn is_most(part: usize, whole: usize) -> bool {
    part > 0 && part * 2 > whole
}

#[cfg(test)]
mod tests;
