//! `Stage`: a table whatever the types of its rows, as a stack of tables, a status page and a metric see it.

use std::any::Any;
use std::time::Duration;

use crate::pass::Pass;
use crate::status::{Counts, Line, Row, TableStatus};

/// What one step of an audit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audited {
    /// As far as the table was read, it holds what it is known to hold; there is more to read.
    More,
    /// The table holds what it is known to hold.
    Same,
    /// The next pass lists the table whole: something differs, or it cannot be read in parts.
    Due,
}

/// A table whatever its row types.
pub trait Stage: Any {
    /// The table's name in status and logs.
    fn name(&self) -> &'static str;
    /// Lists the table if needed and carries out creates and changes that are due.
    fn upsert(&mut self, now: Duration) -> Pass;
    /// Carries out removals that are due.
    fn remove(&mut self, now: Duration) -> Pass;
    /// Carries out removals of rows whose place a desired row has taken, which wait for nothing else.
    fn remove_replaced(&mut self, now: Duration) -> Pass {
        let _ = now;
        Pass::default()
    }
    /// Forgets what the kernel held: the next pass lists the table again.
    fn invalidate(&mut self);
    /// Compares the next part of the table with what it is known to hold. Rows may be written between two steps.
    fn audit(&mut self) -> Audited {
        self.invalidate();
        Audited::Due
    }
    /// Something has changed that rows may wait for: they are due at once. Nothing is listed for it.
    fn retry(&mut self) {}
    /// Has passes say which rows they wrote, or not: their texts cost more than many a write.
    fn keep_written(&mut self, keep: bool) {
        let _ = keep;
    }
    /// When the next failed row is due again, on the caller's clock.
    fn next_try(&self) -> Option<Duration>;
    /// Where the table stands, with the first of the rows that are not in place. Costs a walk over these, and the texts of those that it has.
    fn status(&self) -> TableStatus;
    /// The rows whose last try failed, in key order.
    fn failed(&self) -> Vec<Row>;
    /// Where the table stands, in numbers only.
    fn counts(&self) -> Counts;
    /// Every row that is desired or observed, in key order.
    fn lines(&self) -> Vec<Line>;

    /// Creates and changes, and removals: when `may_remove` all that are due, else those of replaced rows.
    fn pass(&mut self, may_remove: bool, now: Duration) -> Pass {
        let mut pass = self.upsert(now);
        pass += if may_remove { self.remove(now) } else { self.remove_replaced(now) };
        pass
    }
}
