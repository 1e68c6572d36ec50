//! Address management inside the plugin: what host-local does, without executing it.
//!
//! [`range`] is pure: which addresses a network has and in which order they are tried. [`store`] and
//! [`reservations`] keep what is taken in host-local's file layout under host-local's lock, so that a node changes over, and back, with Pods running.

pub mod owners;
pub mod range;
#[cfg(test)]
mod reference;
pub mod reservations;
pub mod resolver;
pub mod store;

pub use range::{Range, RangeSet};
pub use reservations::Locked;
pub use store::{Reservation, Store, StoreError};
