//! The objects that are used: their names, and Services, EndpointSlices and the own Node as small values. Pure.
//!
//! Invariant: two values that compare equal need the same kernel state.

pub(crate) mod affinity_prefix;
pub(crate) mod few;
pub(crate) mod field;
pub(crate) mod key;
mod name;
pub(crate) mod node;
mod pairs;
pub(crate) mod service;
pub(crate) mod service_cidr;
mod service_port;
pub(crate) mod slice;
#[cfg(test)]
mod tests;
pub(crate) mod topology;
pub(crate) mod trigger;
pub(crate) mod weights;

use name::LONGEST_LABEL;
pub(crate) use name::{ObjectName, cluster_name, object_name};
