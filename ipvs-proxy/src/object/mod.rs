//! The objects that are served: their names, and Services and EndpointSlices as small values. Pure.
//!
//! Invariant: two values that compare equal need the same kernel state.

pub(crate) mod few;
pub(crate) mod field;
pub(crate) mod key;
mod name;
pub(crate) mod service;
pub(crate) mod slice;
#[cfg(test)]
mod tests;
pub(crate) mod trigger;

pub(crate) use name::{ObjectName, object_name};
