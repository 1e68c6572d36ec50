//! The beginning of a file that somebody else wrote, and symbolic links that somebody planted.
//!
//! Invariants: no more than the asked length is read; opening never waits for a writer, as it would on a pipe; the text of
//! the file never becomes part of an error.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// Whether a symbolic link in the place of the file is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// A file of the operator's, wherever he keeps it.
    Followed,
    /// A file of ours: a link there was planted.
    Refused,
}

/// The first `max` bytes of the file at `path`, as text; the rest of a longer one is not examined.
///
/// # Errors
/// What the system said; `InvalidData` for what is no UTF-8.
pub(crate) fn read(path: &Path, max: u64, links: Links) -> io::Result<String> {
    let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
    String::from_utf8(read_bytes(path, max, links)?).map_err(no_text)
}

/// The first `max` bytes of the file at `path`.
///
/// # Errors
/// What the system said.
pub(crate) fn read_bytes(path: &Path, max: u64, links: Links) -> io::Result<Vec<u8>> {
    let no_follow = if links == Links::Refused { libc::O_NOFOLLOW } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | no_follow).open(path)?;
    // Files of this kind are a few short lines: room for them saves system calls.
    let mut bytes = Vec::with_capacity(1024);
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The longest list of plugins that an operator names to a command.
pub(crate) const LIST_MAX: u64 = 4 * 1024 * 1024;

/// Refuses a symbolic link in the place of the directory `path`. One that is missing, or cannot be examined, is none.
///
/// # Errors
/// When it is a link, with what to do.
pub(crate) fn refuse_link(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            Err(io::Error::other("it is a symbolic link, behind which nothing is kept: configure where it leads to"))
        }
        _ => Ok(()),
    }
}

/// True for a directory that is there and no symbolic link.
#[must_use]
pub(crate) fn is_own_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;

    #[test]
    fn only_the_beginning_is_read_and_links_only_where_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&path, "abcdef").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&path, 3, Links::Refused).unwrap(), "abc");
        assert_eq!(read(&link, 100, Links::Followed).unwrap(), "abcdef");
        assert_eq!(read(&link, 100, Links::Refused).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read(&path, 3, Links::Refused).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_list_that_is_too_long_or_has_no_end_is_refused_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::fs::write(&path, "abcdef").unwrap();
        assert_eq!(bounded::read(&path, 6).unwrap(), b"abcdef");
        for (path, max) in [(path.as_path(), 5), (Path::new("/dev/zero"), LIST_MAX)] {
            let error = bounded::read(path, max).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert!(error.to_string().contains(&format!("more than {max} bytes")), "{error}");
        }
    }

    #[test]
    fn a_pipe_without_a_writer_is_empty_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path, 3, Links::Refused).unwrap(), "");
    }
}
