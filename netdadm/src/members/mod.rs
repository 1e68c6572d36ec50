//! The members of etcd: who they are, how each is, and how one is added, removed or replaced.
//!
//! Invariant: every question has an end; what was found is a value, from which everything follows that is done.

mod session;
mod view;

pub(crate) use session::Session;
pub(crate) use view::{Member, View};
