//! Files that somebody else writes, read up to a limit.
//!
//! Invariant: one that is longer is refused whole, by its length and what is accepted; no more than the limit is in memory, also where a file
//! grows while it is read, or has no end, as a device.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest configuration, certificate, key or token: what is longer is another file.
pub const SETTINGS: u64 = 1 << 20;

/// Reads the file at `path`, which has `most` bytes at most.
///
/// # Errors
/// What the system says; `FileTooLarge` for one that is longer.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
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
    String::from_utf8(read(path, most)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
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
}
