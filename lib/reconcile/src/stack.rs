//! `Stack`: several tables in order of dependency.
//!
//! Invariants: creates run from the first table to the last, removals from the last to the first, so that a route never
//! points at a neighbour that is not there, and a neighbour never outlives the route that needs it. A table that waits for
//! a condition creates nothing before it holds. After a table that takes others along has made a row, those that follow
//! are listed again: with a link that is made anew everything on it is gone, and nobody says so.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use crate::pass::Pass;
use crate::reconciler::Reconciler;
use crate::stage::{Audited, Stage};
use crate::status::{Counts, TableStatus};
use crate::target::{Rows, Target};

/// Says whether a table may create its rows, by where the tables before it stand.
type Condition = Box<dyn Fn(&Stack) -> bool + Send>;

struct Level {
    stage: Box<dyn Stage + Send>,
    takes_along: bool,
    ready: Option<Condition>,
    rests: bool,
}

/// Tables in order of dependency: what the others need comes first.
#[derive(Default)]
pub struct Stack {
    levels: Vec<Level>,
    /// The table that is being audited, or comes next; `None` when no audit is under way.
    audited: Option<usize>,
}

/// A table's place in the [`Stack`] that gave it out, with the table's type.
pub struct Handle<S> {
    index: usize,
    stage: PhantomData<fn() -> S>,
}

/// The place of a [`Reconciler`] over the target `T`.
pub type Table<T> = Handle<Reconciler<T>>;

impl<S> Clone for Handle<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Handle<S> {}

impl<S> fmt::Debug for Handle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.index)
    }
}

impl Stack {
    /// No tables.
    #[must_use]
    pub const fn new() -> Self {
        Self { levels: Vec::new(), audited: None }
    }

    /// Adds a table that needs those before it.
    pub fn push<S: Stage + Send>(&mut self, stage: S) -> Handle<S> {
        self.add(stage, false, None)
    }

    /// Adds a table whose rows, when they are made, take along what later tables have on them.
    pub fn push_base<S: Stage + Send>(&mut self, stage: S) -> Handle<S> {
        self.add(stage, true, None)
    }

    /// Adds a table that creates and changes nothing while `ready` does not hold of the stack.
    pub fn push_when<S: Stage + Send>(
        &mut self,
        stage: S,
        ready: impl Fn(&Self) -> bool + Send + 'static,
    ) -> Handle<S> {
        self.add(stage, false, Some(Box::new(ready)))
    }

    fn add<S: Stage + Send>(&mut self, stage: S, takes_along: bool, ready: Option<Condition>) -> Handle<S> {
        let index = self.levels.len();
        self.levels.push(Level { stage: Box::new(stage), takes_along, ready, rests: false });
        Handle { index, stage: PhantomData }
    }

    /// Lets a table rest, or wakes it. One that rests is neither read nor written, and counts nowhere.
    pub fn rest<S: Stage>(&mut self, handle: Handle<S>, rests: bool) {
        if let Some(level) = self.levels.get_mut(handle.index) {
            level.rests = rests;
        }
    }

    /// The table; `None` for a handle of another stack.
    #[must_use]
    pub fn get<S: Stage>(&self, handle: Handle<S>) -> Option<&S> {
        let stage: &dyn Any = &*self.levels.get(handle.index)?.stage;
        stage.downcast_ref()
    }

    /// The table, to be changed; `None` for a handle of another stack.
    pub fn get_mut<S: Stage>(&mut self, handle: Handle<S>) -> Option<&mut S> {
        let stage: &mut dyn Any = &mut *self.levels.get_mut(handle.index)?.stage;
        stage.downcast_mut()
    }

    /// As [`Reconciler::want`].
    pub fn want<T: Target>(&mut self, table: Table<T>, key: T::Key, value: Option<T::Value>) {
        let table = self.get_mut(table);
        debug_assert!(table.is_some(), "the handle is of another stack");
        if let Some(table) = table {
            table.want(key, value);
        }
    }

    /// As [`Reconciler::want_all`].
    pub fn want_all<T: Target>(&mut self, table: Table<T>, desired: BTreeMap<T::Key, T::Value>) {
        let table = self.get_mut(table);
        debug_assert!(table.is_some(), "the handle is of another stack");
        if let Some(table) = table {
            table.want_all(desired);
        }
    }

    /// As [`Reconciler::mirror`].
    #[must_use]
    pub fn mirror<T: Target>(&self, table: Table<T>) -> Option<&Rows<T::Key, T::Value>> {
        self.get(table)?.mirror()
    }

    /// True when the table has been listed and holds the row `key` as it is desired.
    #[must_use]
    pub fn holds<T: Target>(&self, table: Table<T>, key: &T::Key) -> bool {
        self.get(table).is_some_and(|table| table.holds(key))
    }

    /// Forgets what the kernel held in the table.
    pub fn invalidate<S: Stage>(&mut self, handle: Handle<S>) {
        if let Some(stage) = self.get_mut(handle) {
            stage.invalidate();
        }
    }

    /// Rows that wait for something, in whichever table, are due at once.
    pub fn retry(&mut self) {
        self.levels.iter_mut().for_each(|level| level.stage.retry());
    }

    /// Has passes say which rows they wrote, or not.
    pub fn keep_written(&mut self, keep: bool) {
        self.levels.iter_mut().for_each(|level| level.stage.keep_written(keep));
    }

    /// Forgets what the kernel held in every table.
    pub fn invalidate_all(&mut self) {
        self.levels.iter_mut().for_each(|level| level.stage.invalidate());
    }

    /// Begins an audit: every table is compared with what it is known to hold, one after the other.
    pub const fn begin_audit(&mut self) {
        self.audited = Some(0);
    }

    /// Takes the next step of the audit; `None` when every table has been compared. Passes may come between two steps, and
    /// one has to come after each that says that a table is due.
    pub fn audit(&mut self) -> Option<Audited> {
        let index = self.audited?;
        let Some(level) = self.levels.get_mut(index) else {
            self.audited = None;
            return None;
        };
        let audited = level.stage.audit();
        if audited != Audited::More {
            self.audited = Some(index + 1);
        }
        Some(audited)
    }

    /// Creates and changes, first table to last.
    pub fn upsert(&mut self, now: Duration) -> Pass {
        let mut pass = Pass::default();
        for index in 0..self.levels.len() {
            let ready = self.levels.get(index).and_then(|level| level.ready.as_ref()).is_none_or(|ready| ready(self));
            let Some((level, later)) = self.levels.get_mut(index..).and_then(<[Level]>::split_first_mut) else { break };
            if !ready || level.rests {
                continue;
            }
            let done = level.stage.upsert(now);
            if level.takes_along && done.upserted > 0 {
                later.iter_mut().for_each(|level| level.stage.invalidate());
            }
            pass += done;
        }
        pass
    }

    /// Removals, last table to first.
    pub fn remove(&mut self, now: Duration) -> Pass {
        self.backward(|stage| stage.remove(now))
    }

    /// Removals of rows whose place a desired row has taken, last table to first.
    fn remove_replaced(&mut self, now: Duration) -> Pass {
        self.backward(|stage| stage.remove_replaced(now))
    }

    fn backward(&mut self, remove: impl Fn(&mut dyn Stage) -> Pass) -> Pass {
        let mut pass = Pass::default();
        for level in self.levels.iter_mut().rev().filter(|level| !level.rests) {
            pass += remove(&mut *level.stage);
        }
        pass
    }

    /// Creates and changes, and removals: all of them when `may_remove`, because every source of desired state is complete;
    /// before that only of rows whose place a desired row has taken.
    pub fn pass(&mut self, may_remove: bool, now: Duration) -> Pass {
        let mut pass = self.upsert(now);
        pass += if may_remove { self.remove(now) } else { self.remove_replaced(now) };
        pass
    }

    /// The tables that do not rest, in order.
    pub fn stages(&self) -> impl DoubleEndedIterator<Item = &(dyn Stage + Send)> {
        self.levels.iter().filter(|level| !level.rests).map(|level| &*level.stage)
    }

    /// The table of that name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&(dyn Stage + Send)> {
        self.stages().find(|stage| stage.name() == name)
    }

    /// When the next failed row is due again.
    #[must_use]
    pub fn next_try(&self) -> Option<Duration> {
        self.stages().filter_map(|stage| stage.next_try()).min()
    }

    /// Where each table stands, in order.
    #[must_use]
    pub fn status(&self) -> Vec<(&'static str, TableStatus)> {
        self.stages().map(|stage| (stage.name(), stage.status())).collect()
    }

    /// Where each table stands in numbers, in order.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, Counts)> {
        self.stages().map(|stage| (stage.name(), stage.counts())).collect()
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.stages().map(|stage| stage.name())).finish()
    }
}
