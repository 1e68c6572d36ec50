//! `FakeTable`: a kernel table in memory, with errors on demand, for tests of what stands above this crate.
//!
//! It keeps the real tables' rules: a create of an equal row and a removal of an absent one succeed, a failed step
//! changes nothing, and every accepted step is written down in order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::error::{Cause, KernelError, Nack};

/// What the table holds and which steps it accepted.
#[derive(Debug)]
pub struct Contents<K, V> {
    /// The rows.
    pub rows: BTreeMap<K, Observed<V>>,
    /// Error numbers for the operations to come, in order; `None` lets one succeed.
    pub errors: VecDeque<Option<i32>>,
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
        let contents = Contents { rows: BTreeMap::new(), errors: VecDeque::new(), log: Vec::new(), observed: 0 };
        Self { contents: Arc::new(Mutex::new(contents)) }
    }
}

impl<K: Ord + Clone + fmt::Display, V: Clone + PartialEq> FakeTable<K, V> {
    /// The contents, to look at or to change as somebody else would.
    pub fn contents(&self) -> MutexGuard<'_, Contents<K, V>> {
        self.contents.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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

impl<K: Ord + Clone + fmt::Display + 'static, V: Clone + PartialEq + fmt::Debug + 'static> Target for FakeTable<K, V> {
    type Key = K;
    type Value = V;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<K, V>, KernelError> {
        let mut contents = self.contents();
        contents.observed += 1;
        contents.fail("list", "all")?;
        Ok(contents.rows.clone())
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
