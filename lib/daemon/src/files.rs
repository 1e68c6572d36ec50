//! Files that other programs read while they are written.
//!
//! Invariant: a reader sees the old file or the new one, whole; a file whose content would be the same is not touched.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Makes `path` hold `content`, with mode 0644 and the folders above it. Returns whether it had to be written.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<bool> {
    if bounded::holds(path, content) {
        return Ok(false);
    }
    write(path, content, 0o644, None)
}

/// The same for what may have a secret in it: the file is its owner's alone, also where it was everybody's before.
///
/// # Errors
/// As [`replace`].
pub fn replace_secret(path: &Path, content: &[u8]) -> io::Result<bool> {
    if mode(path) == Some(0o600) && bounded::holds(path, content) {
        return Ok(false);
    }
    write(path, content, 0o600, None)
}

/// The same for an operator's own file, which keeps its mode and owner, and its place where a link leads there; what is no file, such as
/// standard output, is written to.
///
/// # Errors
/// As [`replace`].
pub fn replace_kept(path: &Path, content: &[u8]) -> io::Result<bool> {
    let Ok(before) = fs::metadata(path) else { return replace(path, content) };
    if !before.is_file() {
        return fs::write(path, content).map(|()| true);
    }
    if bounded::holds(path, content) {
        return Ok(false);
    }
    write(&fs::canonicalize(path)?, content, before.mode() & 0o777, Some((before.uid(), before.gid())))
}

fn mode(path: &Path) -> Option<u32> {
    fs::symlink_metadata(path).ok().map(|file| file.mode() & 0o777)
}

/// The same for what is worth nothing once the machine has gone down: it is always written, and nobody waits for the disk.
///
/// # Errors
/// As [`replace`].
pub fn replace_volatile(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = draft(path, content)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn write(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<bool> {
    let file = draft(path, content)?;
    // Before it stands in its place: a further call finds its content there and does nothing.
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(file.as_file(), Some(user), Some(group))?;
    }
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(true)
}

/// A file beside `path`, which it is to replace.
fn draft(path: &Path, content: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_secret_is_its_owners_alone_and_an_operators_file_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net-conf.json");
        assert!(replace(&path, b"PSK").unwrap());
        assert!(replace_secret(&path, b"PSK").unwrap(), "it was everybody's");
        assert_eq!(mode(&path), Some(0o600));
        assert!(!replace_secret(&path, b"PSK").unwrap());
        assert!(replace_kept(&path, b"another").unwrap());
        assert_eq!((mode(&path), fs::read(&path).unwrap().as_slice()), (Some(0o600), b"another".as_slice()));
    }

    #[test]
    fn a_file_keeps_its_mode_and_its_place_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::write(&file, "the former one").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        replace_kept(&link, b"another").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "another");
        assert_eq!(mode(&file), Some(0o640));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        replace_kept(Path::new("/dev/null"), b"nothing").unwrap();
    }
}
