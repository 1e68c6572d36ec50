//! `Flowtable`: forwarded flows that take a short way through the kernel, and the links whose packets are looked up in it
//! (Documentation/networking/nf_flowtable.rst).
//!
//! Invariant: the links are in order of their names, as the nft tool lists them.

use std::collections::BTreeSet;

use crate::IfName;

/// A flowtable; it is filled by rules ([`super::Statement::Offload`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Flowtable {
    /// Order among what sees packets as they arrive on a link, lowest first.
    pub priority: i32,
    /// Links on which packets of its flows arrive. The kernel refuses those that are not there, and takes out those that go.
    pub devices: BTreeSet<IfName>,
}

impl Flowtable {
    /// On `devices`, at the priority that everybody uses.
    #[must_use]
    pub const fn on(devices: BTreeSet<IfName>) -> Self {
        Self { priority: 0, devices }
    }
}
