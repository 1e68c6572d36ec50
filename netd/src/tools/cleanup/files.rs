//! Files that the daemon leaves.
//!
//! Invariant: only files of names that it writes are removed, and folders only when that leaves them empty.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use daemon::http::SOCKET;
use daemon::status::FILE;
use netstate::calls;

use crate::doctor::kept;
use crate::run::records::FILES;

/// The file that is locked while a daemon lives.
const ALIVE: &str = "alive";

/// Below the folder of run-time files: what the backend `extension` says of this node.
const NODE: &str = "extension/node.env";

/// Below the folder of run-time files: what the backend `extension` says of the other nodes.
const EVENTS: &str = "extension/subnets";

/// Those that are there: in the `folder` of run-time files, and `others` by path.
#[must_use]
pub(super) fn present(folder: &Path, others: &[&str]) -> Vec<PathBuf> {
    let names =
        FILES.into_iter().chain([FILE, ALIVE, SOCKET, kept::FILE, NODE, calls::NAME]).map(|name| folder.join(name));
    let events = fs::read_dir(folder.join(EVENTS)).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = names.chain(events).chain(others.iter().map(PathBuf::from));
    files.filter(|file| file.symlink_metadata().is_ok_and(|found| !found.is_dir())).collect()
}

/// Removes them.
///
/// # Errors
/// When one cannot be removed; those before it are gone.
pub(super) fn remove(files: &[PathBuf], folder: &Path) -> Result<()> {
    for file in files {
        fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
    }
    if !files.is_empty() {
        // One that holds something else stays.
        for empty in [folder.join(EVENTS), folder.join("extension"), folder.to_owned()] {
            let _ = fs::remove_dir(empty);
        }
    }
    Ok(())
}
