//! `FakeTable`: a kernel table in memory, with errors on demand, for tests of what stands above this crate.
//!
//! It keeps the real tables' rules: a create of an equal row and a removal of an absent one succeed, a failed step
//! changes nothing, and every accepted step is written down in order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use reconcile::{Observed, Owner, Parts, Rows, Step, Target};

use crate::error::{Cause, KernelError, Nack};

/// Rows of one part of a listing, about as many as fit into a datagram of the kernel's.
const PART: usize = 256;

/// What the table holds and which steps it accepted.
#[derive(Debug)]
pub struct Contents<K, V> {
    /// The rows.
    pub rows: BTreeMap<K, Observed<V>>,
    /// Error numbers for the operations to come, in order; `None` lets one succeed.
    pub errors: VecDeque<Option<i32>>,
    /// Error numbers of rows that no step may touch.
    refused: BTreeMap<K, i32>,
    /// Who is notified of what others change.
    listeners: Vec<Sender<()>>,
    /// The accepted steps, as `create KEY`, `change KEY`, `remove KEY`.
    pub log: Vec<String>,
    /// Number of listings.
    pub observed: usize,
}

/// A kernel table in memory; clones share their contents.
#[derive(Debug)]
pub struct FakeTable<K, V> {
    contents: Arc<Mutex<Contents<K, V>>>,
}

impl<K, V> Clone for FakeTable<K, V> {
    fn clone(&self) -> Self {
        Self { contents: Arc::clone(&self.contents) }
    }
}

impl<K, V> Default for FakeTable<K, V> {
    fn default() -> Self {
        let contents = Contents {
            rows: BTreeMap::new(),
            errors: VecDeque::new(),
            refused: BTreeMap::new(),
            listeners: Vec::new(),
            log: Vec::new(),
            observed: 0,
        };
        Self { contents: Arc::new(Mutex::new(contents)) }
    }
}

impl<K: Ord + Clone + fmt::Display, V: Clone + PartialEq> FakeTable<K, V> {
    /// The contents, to look at or to change as somebody else would.
    pub fn contents(&self) -> MutexGuard<'_, Contents<K, V>> {
        self.contents.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Refuses every step on the row `key` with `errno`, as the kernel does with a bad one.
    pub fn refuse(&self, key: K, errno: i32) {
        self.contents().refused.insert(key, errno);
    }

    /// Takes steps on the row `key` again.
    pub fn allow(&self, key: &K) {
        self.contents().refused.remove(key);
    }

    /// Notifications of what others change; our own steps make none, as in the kernel's monitors.
    #[must_use]
    pub fn notifications(&self) -> Receiver<()> {
        let (sender, receiver) = channel();
        self.contents().listeners.push(sender);
        receiver
    }

    /// Changes rows as another program would, and notifies.
    pub fn by_another(&self, change: impl FnOnce(&mut BTreeMap<K, Observed<V>>)) {
        let mut contents = self.contents();
        change(&mut contents.rows);
        contents.listeners.retain(|listener| listener.send(()).is_ok());
    }
}

impl<K: Ord, V> Contents<K, V> {
    fn fail(&mut self, op: &'static str, object: impl fmt::Display) -> Result<(), KernelError> {
        match self.errors.pop_front().flatten() {
            Some(errno) => Err(KernelError::new(op, object, Cause::Nack(Nack { errno, text: None }))),
            None => Ok(()),
        }
    }
}

impl<K: Ord + Clone + fmt::Display + Send + 'static, V: Clone + PartialEq + fmt::Display + Send + 'static> Target
    for FakeTable<K, V>
{
    type Key = K;
    type Value = V;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<K, V>, KernelError> {
        let mut contents = self.contents();
        contents.observed += 1;
        contents.fail("list", "all")?;
        Ok(contents.rows.clone())
    }

    fn parts(&mut self) -> Result<Option<Parts<K, V, KernelError>>, KernelError> {
        let (table, mut last) = (self.clone(), None);
        Ok(Some(Box::new(std::iter::from_fn(move || {
            let mut contents = table.contents();
            let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let rows = contents.rows.range((after, Bound::Unbounded)).take(PART);
            let rows: Vec<_> = rows.map(|(key, row)| (key.clone(), row.clone())).collect();
            last = Some(rows.last()?.0.clone());
            Some(contents.fail("list", "all").map(|()| rows))
        }))))
    }

    fn apply(&mut self, steps: &[Step<K, V>]) -> Vec<Result<(), KernelError>> {
        let mut contents = self.contents();
        let mut step = |step: &Step<K, V>| {
            let key = step.key();
            let verb = match step {
                Step::Create(..) => "create",
                Step::Change(..) => "change",
                Step::Remove(..) => "remove",
            };
            contents.fail(verb, key)?;
            if let Some(errno) = contents.refused.get(key) {
                return Err(KernelError::new(verb, key, Nack { errno: *errno, text: None }));
            }
            contents.log.push(format!("{verb} {key}"));
            match step {
                Step::Create(_, value) | Step::Change(_, _, value) => {
                    contents.rows.insert(key.clone(), Observed { value: value.clone(), owner: Owner::Ours });
                }
                Step::Remove(..) => {
                    contents.rows.remove(key);
                }
            }
            Ok(())
        };
        steps.iter().map(&mut step).collect()
    }
}

#[cfg(test)]
mod tests {
    use reconcile::{Reconciler, Stage};

    use super::*;
    use std::time::Duration;

    fn table(rows: &[(u8, u8)]) -> (FakeTable<u8, u8>, Reconciler<FakeTable<u8, u8>>) {
        let fake = FakeTable::default();
        let mut table = Reconciler::new("fake", fake.clone());
        for (key, value) in rows {
            table.want(*key, Some(*value));
        }
        (fake, table)
    }

    #[test]
    fn accepted_steps_are_rows_and_lines_of_the_log() {
        let (fake, mut table) = table(&[(1, 10), (2, 20)]);
        assert_eq!(table.upsert(Duration::ZERO).upserted, 2);
        assert_eq!(fake.contents().log, ["create 1", "create 2"]);
        table.want(2, Some(21));
        table.want(1, None);
        table.upsert(Duration::ZERO);
        table.remove(Duration::ZERO);
        let contents = fake.contents();
        assert_eq!(contents.log[2..], ["change 2", "remove 1"]);
        assert_eq!(contents.rows.keys().collect::<Vec<_>>(), [&2]);
    }

    #[test]
    fn errors_come_in_order_and_by_row() {
        let (fake, mut table) = table(&[(1, 10), (2, 20), (3, 30)]);
        fake.contents().errors.extend([None, Some(libc::ENOBUFS)]);
        fake.refuse(3, libc::EINVAL);
        let pass = table.upsert(Duration::ZERO);
        assert_eq!((pass.upserted, pass.failed), (1, 2), "{pass:?}");
        let errnos: Vec<_> = pass.errors.iter().map(|failure| failure.errno).collect();
        assert_eq!(errnos, [Some(libc::ENOBUFS), Some(libc::EINVAL)]);
        // Until it is allowed again.
        let later = Duration::from_secs(600);
        assert_eq!(table.upsert(later).failed, 1);
        fake.allow(&3);
        assert_eq!(table.upsert(later * 2).upserted, 1);
    }

    #[test]
    fn change_by_another_is_notified_and_an_own_one_is_not() {
        let (fake, mut table) = table(&[(1, 10)]);
        let notified = fake.notifications();
        table.upsert(Duration::ZERO);
        assert_eq!(notified.try_iter().count(), 0);
        fake.by_another(|rows| {
            rows.clear();
        });
        assert_eq!(notified.try_iter().count(), 1);
        table.invalidate();
        assert_eq!(table.upsert(Duration::ZERO).upserted, 1);
        assert_eq!(fake.contents().observed, 2);
    }
}
