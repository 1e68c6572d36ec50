//! Room in file systems.
//!
//! Invariant: a folder that is not there yet is measured by the one that it will be in.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::preflight::{Disk, PLACES};

/// Those of the folders that can be measured.
pub(super) fn all(root: &Path) -> Vec<Disk> {
    PLACES.into_iter().filter_map(|(folder, _)| disk(root, folder)).collect()
}

fn disk(root: &Path, folder: &str) -> Option<Disk> {
    let path = root.join(folder.trim_start_matches('/'));
    let there = path.ancestors().find(|path| path.exists())?;
    let found = statvfs(there).ok()?;
    // What is left to everybody, without root's reserve: etcd runs as a user.
    let (free, size) = (
        found.blocks_available().saturating_mul(found.fragment_size()),
        found.blocks().saturating_mul(found.fragment_size()),
    );
    Some(Disk { folder: folder.to_owned(), free, size, free_files: found.files_available(), files: found.files() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_measured_by_the_one_above_it() {
        let root = tempfile::tempdir().unwrap();
        let found = all(root.path());
        assert_eq!(found.len(), PLACES.len());
        assert!(found.iter().all(|disk| disk.size > 0 && disk.free <= disk.size), "{found:?}");
    }
}
