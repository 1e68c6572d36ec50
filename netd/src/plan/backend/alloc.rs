//! The `alloc` backend: a lease and nothing else. Somebody else carries the packets.
//!
//! Invariant: no device, no route; leases of any backend are fine.

pub(super) const NAME: &str = "alloc";

/// The member `BackendType` of flannel's leases without a data path.
pub(super) const LEASE_TYPE: &str = "";
