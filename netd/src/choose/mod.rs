//! Choices: the interface towards the other nodes ([`interface`]) and this node's subnet ([`subnet`]).
//!
//! Invariant: facts in, a choice or its refusal out; the same facts give the same choice.

pub(crate) mod interface;
pub(crate) mod subnet;
