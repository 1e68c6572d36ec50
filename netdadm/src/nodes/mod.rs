//! Nodes: what runs on one and may go, the lease of its Pod subnet, and whether it is there.
//!
//! Invariant: what was found is a value, from which everything follows that is done; every question has an end.

mod api;
mod leases;
mod pods;

pub(crate) use api::Api;
pub(crate) use leases::{Leases, answers};
pub(crate) use pods::{Drain, Pod};
