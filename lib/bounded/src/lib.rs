//! Files and streams that somebody else writes, read up to a limit.
//!
//! Invariants: one that is longer is refused whole, by its length and what is accepted; no more than the limit is in memory, also where a file
//! grows while it is read, or has no end, as a device. A pipe in the place of a file keeps nobody waiting for its writer.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The longest configuration, certificate, key or token: what is longer is another file.
pub const SETTINGS: u64 = 1 << 20;

/// The longest manifest. etcd and the Kubernetes API refuse objects above 1.5 MiB; a file may hold many.
pub const MANIFEST: u64 = 16 << 20;

/// The longest status of a daemon: it names every node.
pub const STATUS: u64 = 64 << 20;

/// Reads the file at `path`, which has `most` bytes at most.
///
/// # Errors
/// What the system says; `FileTooLarge` for one that is longer; `InvalidInput` for a pipe, at once.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        let text = "it is a pipe, which would be waited for: put a file in its place";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    from(file, most)
}

/// Reads `input`, standard input for one, to its end, which comes after `most` bytes at most.
///
/// # Errors
/// As [`read`].
pub fn from(input: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        let text = format!("it has more than {most} bytes, which is no file of this kind: name the right one");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// The same of a text.
///
/// # Errors
/// As [`read`]; `InvalidData` for what is no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    text(read(path, most)?)
}

/// The same of a pipe too, and of standard input where `path` is `-`, as commands name them.
///
/// # Errors
/// As [`from`]; `InvalidData` for what is no UTF-8.
pub fn read_argument(path: &Path, most: u64) -> io::Result<String> {
    text(read_argument_bytes(path, most)?)
}

/// The same in bytes.
///
/// # Errors
/// As [`from`].
pub fn read_argument_bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if path == Path::new("-") { from(io::stdin().lock(), most) } else { from(File::open(path)?, most) }
}

/// Whether the file at `path` holds exactly `content`; one that cannot be read does not. No more than that is read of it.
#[must_use]
pub fn holds(path: &Path, content: &[u8]) -> bool {
    let most = u64::try_from(content.len()).unwrap_or(u64::MAX);
    read(path, most).is_ok_and(|found| found == content)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_long_or_has_no_end_is_refused_with_what_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conf");
        std::fs::write(&path, "x".repeat(10)).unwrap();
        assert_eq!(read_text(&path, 10).unwrap().len(), 10);
        for (path, most) in [(path.as_path(), 9), (Path::new("/dev/zero"), SETTINGS)] {
            let error = read(path, most).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert!(error.to_string().contains(&format!("more than {most} bytes")), "{error}");
        }
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_refused_at_once_and_read_as_an_argument() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conf");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opening it waits for a writer, which never comes.
        for error in [read(&path, 10).unwrap_err(), read_text(&path, 10).unwrap_err()] {
            assert!(error.to_string().contains("it is a pipe"), "{error}");
        }
        assert!(!holds(&path, b""));
        std::thread::scope(|scope| {
            scope.spawn(|| std::fs::write(&path, "text").unwrap());
            assert_eq!(read_argument(&path, 10).unwrap(), "text");
        });
    }

    #[test]
    fn a_stream_without_end_is_refused_as_a_file_is() {
        let error = from(io::repeat(b'x'), 1000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(from(&b"text"[..], 4).unwrap(), b"text");
    }

    #[test]
    fn a_file_holds_a_content_that_is_equal_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conf");
        assert!(!holds(&path, b""));
        std::fs::write(&path, "text").unwrap();
        assert!(holds(&path, b"text") && !holds(&path, b"tex") && !holds(&path, b"texts"));
        assert!(!holds(Path::new("/dev/zero"), &[0; 64]));
    }
}
