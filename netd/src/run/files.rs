//! Files that other programs read while they are written.
//!
//! Invariant: a reader sees the old file or the new one, whole; a file whose content would be the same is not touched.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Makes `path` hold `content`, with mode 0644 and the folders above it. Returns whether it had to be written.
///
/// # Errors
/// When the folder or the file cannot be written.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<bool> {
    if bounded::holds(path, content) {
        return Ok(false);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn file_is_replaced_as_a_whole_and_only_when_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flannel/subnet.env");
        assert!(replace(&path, b"FLANNEL_MTU=1450\n").unwrap());
        let before = fs::metadata(&path).unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o644);
        assert!(!replace(&path, b"FLANNEL_MTU=1450\n").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
        assert!(replace(&path, b"FLANNEL_MTU=1500\n").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"FLANNEL_MTU=1500\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }
}
