//! The folder that `render` writes: for each host a tree and its manifest, what operators keep, and objects to apply.
//!
//! Invariants: a file that is as it should be is not touched; everything new is on the disk before anything old is replaced,
//! so that a full disk changes nothing and a kill is made good by the next start; what others have put there stays.

mod assemble;
mod changes;
mod folder;
mod pending;
#[cfg(test)]
mod tests;

pub(crate) use assemble::assemble;
pub(crate) use changes::{Changes, HostChanges};
pub(crate) use folder::{Folder, Outcome};

/// Why `bytes` are none of the files that the folder has for itself, for fuzzing.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn refusals(bytes: &[u8]) -> Vec<String> {
    let pending = pending::Pending::read(bytes).err();
    folder::refusals(bytes).into_iter().chain(pending).collect()
}
