//! The members of etcd: who they are, how each is, and how one is added, removed or replaced.
//!
//! Invariant: every question has an end; what was found is a value, from which everything follows that is done.

mod carry;
mod plan;
mod session;
mod view;

pub(crate) use carry::carry;
pub(crate) use plan::{Order, Step, plan};
pub(crate) use session::{Session, places};
pub(crate) use view::{Member, Place, View};
