//! The backends: how packets get from node to node, one room each.
//!
//! Invariant: a backend writes rows for leases of its own kind only; another kind is refused by name.

pub(super) mod host_gw;
pub(super) mod vxlan;
