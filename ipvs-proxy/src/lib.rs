//! Keeps IPVS virtual servers equal to Services and EndpointSlices.
//!
//! What a change goes through: a source tells an object ([`source`]); it becomes a small value ([`service`], [`endpoint`]);
//! equal values stop there. The Service it belongs to is planned ([`plan`]), the rows that changed are handed to the
//! reconcilers of the kernel's tables, and one pass brings them in order: nft, servers, address on the way in, the other
//! way round on the way out ([`run`]).
//!
//! Invariants: `plan` is pure; one changed endpoint costs the steps of that endpoint; nothing is removed before Services
//! and EndpointSlices have both been listed once; a malformed object leaves what was served before it.

pub mod args;
pub mod commands;
pub mod config;
pub mod duration;
pub mod endpoint;
pub mod frontend;
pub mod key;
pub mod networks;
pub mod object;
pub mod plan;
pub mod run;
pub mod select;
pub mod service;
pub mod source;
pub mod view;
