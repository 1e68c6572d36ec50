//! What must hold, as functions of what was observed.
//!
//! Invariant: pure. An observation that breaks an invariant gives a sentence that names the object and both sides.

pub(crate) mod addresses;
pub(crate) mod logs;
pub(crate) mod resources;
pub(crate) mod services;
pub(crate) mod tables;
