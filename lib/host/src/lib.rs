//! What a host of a cluster gets: files and units, as a manifest lists them.
//!
//! Invariant: nothing here knows what the files are for; that is in the manifest, or nowhere.

#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
pub mod manifest;

#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
pub use manifest::{FileEntry, Manifest, Ready, UnitEntry};
