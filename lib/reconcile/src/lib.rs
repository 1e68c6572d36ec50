//! The loop that makes a kernel table equal to a value, once for every table of the product.
//!
//! The contract, in the order things happen:
//!
//! 1. **Observe.** A [`Target`] lists the rows of its table, each marked ours or foreign. The list becomes the
//!    *mirror*: what we believe the kernel holds.
//! 2. **Diff.** The desired rows are compared with the mirror. A desired row that is missing is created; one
//!    that differs is changed; a row of ours that nobody desires is removed. A foreign row that nobody desires does
//!    not exist for us. Rows that are equal cost nothing, so adopting a running system is not a special case.
//! 3. **Apply.** Creates and changes of all tables run in order of dependency, removals in the opposite order
//!    ([`Stack`]). Every step's result is recorded as true state, in the mirror and in the row's [`TableStatus`].
//! 4. **Retry.** A row that failed is tried again after its own back-off ([`retry`]); it blocks no other row.
//! 5. **Gate.** Nothing is removed before every kind of desired state has been listed whole ([`Gate`]), but for a row whose place a
//!    desired row with another key has taken ([`Target::successor`]): it goes as soon as that one is there.
//! 6. **Wake.** A kernel notification or the slow audit invalidates the mirror, and the next pass observes again.
//!
//! Nothing here performs IO: the clock is an argument, the kernel is a trait. What a pass did is a value ([`Pass`]), and so
//! is where a table stands ([`TableStatus`], [`Counts`], [`Line`]).

mod chain;
mod diff;
mod gate;
mod held;
mod layer;
mod pass;
mod reconciler;
pub mod retry;
mod stack;
mod stage;
mod status;
mod target;
mod walk;

pub use chain::Chain;
pub use gate::Gate;
pub use layer::Layer;
pub use pass::{Done, Failure, Pass, Written};
pub use reconciler::Reconciler;
pub use stack::{Handle, Stack, Table};
pub use stage::{Audited, Stage};
pub use status::{CONTESTED, Counts, Line, Row, SHOWN, State, TableStatus};
pub use target::{Classify, Observed, Owner, Parts, PartsOf, RetryClass, Rows, Step, Target};
