//! A pass over several tables in order of dependency.
//!
//! Invariant: creates run from the first table to the last, removals from the last to the first, so that a route never
//! points at a neighbour that is not there, and a neighbour never outlives the route that needs it.

use std::time::Duration;

use crate::gate::Gate;
use crate::status::Status;

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// Tables that were listed.
    pub observed: usize,
    /// Rows created or changed.
    pub upserted: usize,
    /// Rows removed.
    pub removed: usize,
    /// Steps and listings that failed.
    pub failed: usize,
    /// Their errors, as `table: what failed`.
    pub errors: Vec<String>,
}

impl Pass {
    /// True when the pass changed nothing and nothing failed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.upserted == 0 && self.removed == 0 && self.failed == 0
    }

    fn add(&mut self, other: Self) {
        self.observed += other.observed;
        self.upserted += other.upserted;
        self.removed += other.removed;
        self.failed += other.failed;
        self.errors.extend(other.errors);
    }
}

/// A table whatever its row types.
pub trait Stage {
    /// The table's name in status and logs.
    fn name(&self) -> &'static str;
    /// Lists the table if needed and carries out creates and changes that are due.
    fn upsert(&mut self, now: Duration) -> Pass;
    /// Carries out removals that are due.
    fn remove(&mut self, now: Duration) -> Pass;
    /// Forgets what the kernel held: the next pass lists the table again.
    fn invalidate(&mut self);
    /// When the next failed row is due again, on the caller's clock.
    fn next_try(&self) -> Option<Duration>;
    /// Where the table stands.
    fn status(&self) -> Status;
}

/// Runs one pass over `stages`, which stand in order of dependency: what the others need comes first. Creates and
/// changes run forward, then, when `gate` is open, removals backward.
pub fn pass(stages: &mut [&mut dyn Stage], gate: &Gate, now: Duration) -> Pass {
    let mut pass = Pass::default();
    for stage in stages.iter_mut() {
        pass.add(stage.upsert(now));
    }
    if gate.is_open() {
        for stage in stages.iter_mut().rev() {
            pass.add(stage.remove(now));
        }
    }
    pass
}
