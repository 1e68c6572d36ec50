//! `Pending`: what a render that has everything new on the disk is about to do; it is done again after a kill.
//!
//! Invariant: while the file of it is there, every step may be taken any number of times with the same end; without it
//! nothing of the folder has been touched.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use cluster::problem::elided;
use serde::{Deserialize, Serialize};

/// Where new files lie until all of them are there.
pub(super) const NEW: &str = ".new";

/// The file of it.
pub(super) const FILE: &str = ".pending.json";

/// Steps to take.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    /// Files that move from [`NEW`] to their place.
    pub(super) moved: Vec<PathBuf>,
    /// Files that go.
    pub(super) removed: Vec<PathBuf>,
}

/// Finishes what was begun in `folder`, or takes away what was not: the state before.
///
/// # Errors
/// When the system refuses; the step is in the message.
pub(super) fn recover(folder: &Path) -> Result<(), String> {
    let file = folder.join(FILE);
    match bounded::read(&file, bounded::MANIFEST) {
        Ok(bytes) => {
            let read = Pending::read(&bytes);
            read.map_err(|cause| format!("read {}: {cause}; remove it and render again", file.display()))?.carry(folder)
        }
        Err(cause) if cause.kind() == ErrorKind::NotFound => discard(folder),
        Err(cause) => Err(format!("read {}: {cause}", file.display())),
    }
}

/// Takes away new files that have not become the state.
///
/// # Errors
/// When the system refuses.
pub(super) fn discard(folder: &Path) -> Result<(), String> {
    // The file of steps that could not be written down for certain would be believed by the next start.
    let (file, new) = (folder.join(FILE), folder.join(NEW));
    absent_is_fine(fs::remove_file(&file)).map_err(|cause| format!("remove {}: {cause}", file.display()))?;
    absent_is_fine(fs::remove_dir_all(&new)).map_err(|cause| format!("remove {}: {cause}", new.display()))
}

impl Pending {
    /// Reads the file of it.
    ///
    /// # Errors
    /// When it is none, or names what is not in the folder.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let pending: Self = serde_json::from_slice(bytes).map_err(super::folder::unreadable)?;
        let outside = pending.moved.iter().chain(&pending.removed).find(|path| !is_inside(path));
        if let Some(path) = outside {
            return Err(elided(format!("{} is no path in the folder", path.display())));
        }
        Ok(pending)
    }

    /// Writes the steps down; from now on they are taken.
    ///
    /// # Errors
    /// When the system refuses: nothing is touched then.
    pub(super) fn write(&self, folder: &Path) -> Result<(), String> {
        let (file, new) = (folder.join(FILE), folder.join(NEW).join(FILE));
        // Lists of paths are always written.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let written = super::folder::put(&new, &text, 0o600).and_then(|()| fs::rename(&new, &file));
        written.and_then(|()| super::folder::sync(folder)).map_err(|cause| format!("write {}: {cause}", file.display()))
    }

    /// Takes the steps, and forgets them.
    ///
    /// # Errors
    /// When the system refuses; the next start goes on.
    pub(super) fn carry(&self, folder: &Path) -> Result<(), String> {
        for path in &self.moved {
            let (from, to) = (folder.join(NEW).join(path), folder.join(path));
            let place = to.parent().map_or(Ok(()), |place| super::folder::make(folder, place));
            place.map_err(|cause| format!("make the folder of {}: {cause}", to.display()))?;
            absent_is_fine(fs::rename(&from, &to)).map_err(|cause| format!("write {}: {cause}", to.display()))?;
        }
        for path in &self.removed {
            let file = folder.join(path);
            absent_is_fine(fs::remove_file(&file)).map_err(|cause| format!("remove {}: {cause}", file.display()))?;
            // Folders that nobody uses go as well; one with a foreign file in it refuses.
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                let place = folder.join(parent);
                match fs::remove_dir(&place) {
                    Err(cause) if cause.kind() == ErrorKind::DirectoryNotEmpty => break,
                    // It went before a call was killed, and what is above it did not.
                    other => {
                        absent_is_fine(other).map_err(|cause| format!("remove {}: {cause}", place.display()))?;
                    }
                }
            }
        }
        let file = folder.join(FILE);
        let forgotten = super::folder::sync(folder).and_then(|()| absent_is_fine(fs::remove_file(&file)));
        forgotten.map_err(|cause| format!("remove {}: {cause}", file.display()))?;
        discard(folder)
    }
}

/// True for a path of plain steps downwards.
pub(super) fn is_inside(path: &Path) -> bool {
    let plain = |step: std::path::Component<'_>| matches!(step, std::path::Component::Normal(_));
    path.components().next().is_some() && path.components().all(plain)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
