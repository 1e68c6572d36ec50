//! Choices: the interface towards the other nodes ([`interface`]), this node's subnet ([`subnet`]), and which changes of the
//! configuration it follows while it runs ([`change`]).
//!
//! Invariant: facts in, a choice or its refusal out; the same facts give the same choice.

pub(crate) mod change;
pub(crate) mod clash;
pub(crate) mod interface;
mod occupied;
pub(crate) mod policy;
pub(crate) mod subnet;
