//! The Kubernetes API as a source: lists and watches folded into small values, and single requests.
//!
//! Invariants: an object is never kept whole: its text is read into what the program needs while it arrives; one object that cannot be
//! read is one `Err`, never the end of its listing; a watch never ends by itself, and whatever the server answers (403, 410, 429, 500,
//! nothing) it is tried again and said why; credentials are read again from their files, so that no rotation needs a restart; no program
//! is executed for them.

mod access;
mod client;
mod collection;
mod connector;
pub mod events;
mod fault;
mod follow;
mod kubeconfig;
mod lines;
mod list;
mod material;
pub(crate) mod object;
mod proxy;
mod watch;

pub use access::Access;
pub use client::{Client, Patch};
pub use collection::Collection;
pub use object::metadata_and_spec;
pub use watch::{Form, watch, watch_first, watch_read};
