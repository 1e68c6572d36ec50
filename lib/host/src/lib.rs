//! What a host of a cluster gets: files and units, as a manifest lists them, as its file system holds them and as its systemd runs them.
//!
//! Invariant: nothing here knows what the files are for; that is in the manifest, or nowhere.

mod files;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
pub mod manifest;
mod units;

pub use files::{Content, File, FileError, FilePath, Files};
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
pub use manifest::{FileEntry, Manifest, Ready, UnitEntry};
pub use units::{Job, Refused, Service, UnitError, UnitState, Units};
