//! Keeps IPVS virtual servers equal to Services and EndpointSlices.
//!
//! What a change goes through: a source yields an object ([`source`]); it becomes a small value ([`object`]);
//! equal values stop there. The Service it belongs to is planned ([`plan`]), the rows that changed are handed to the
//! reconcilers of the kernel's tables, and one pass brings them in order: nft, servers, address on the way in, the other
//! way round on the way out ([`run`]).
//!
//! Invariants: `plan` is pure; one changed endpoint costs the steps of that endpoint; nothing is removed before Services
//! and EndpointSlices have both been listed once; a malformed object leaves what was served before it.

// They panic where nobody takes what they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod command;
mod commands;
mod dataplane;
mod doctor;
mod explain;
mod facts;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod object;
mod plan;
mod run;
mod source;

pub use command::main;
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
