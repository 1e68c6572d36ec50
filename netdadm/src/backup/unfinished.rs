//! `Unfinished`: a file that has no name until all of it is on the disk.
//!
//! Invariants: it is for its owner alone from its first byte on; a process that is killed leaves none where the file system has files
//! without a name (open(2), `O_TMPFILE`), and elsewhere one that the next call removes; a file that is there is never replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

/// Owner alone.
const MODE: u32 = 0o600;

/// A file on its way.
pub(super) struct Unfinished {
    file: File,
    /// Where it lies for as long as it has another name.
    part: Option<PathBuf>,
    path: PathBuf,
}

impl Unfinished {
    /// A file that will be at `path`.
    ///
    /// # Errors
    /// When something is there already, or nothing can be written there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "it is there already; name another file"));
        }
        let folder = folder(path);
        let nameless = OpenOptions::new().write(true).mode(MODE).custom_flags(OFlag::O_TMPFILE.bits()).open(folder);
        match nameless {
            Ok(file) => Ok(Self { file, part: None, path: path.to_owned() }),
            // EOPNOTSUPP, and EISDIR from file systems that do not know the flag.
            Err(cause) if matches!(cause.kind(), ErrorKind::Unsupported | ErrorKind::IsADirectory) => Self::named(path),
            Err(cause) => Err(cause),
        }
    }

    /// As [`Self::create`], with another name until it is whole.
    fn named(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "it names no file"))?;
        let part = folder(path).join(format!(".{}.part", name.display()));
        // Of a call that was killed.
        match fs::remove_file(&part) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&part)?;
        Ok(Self { file, part: Some(part), path: path.to_owned() })
    }

    /// Brings all of it to the disk, and gives it its name.
    ///
    /// # Errors
    /// When the disk refuses, or something has come there meanwhile; then the name is not there.
    pub(super) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        match &self.part {
            Some(part) => fs::hard_link(part, &self.path)?,
            None => {
                let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(AT_FDCWD, open.as_str(), AT_FDCWD, &self.path, AtFlags::AT_SYMLINK_FOLLOW)?;
            }
        }
        let synced = File::open(folder(&self.path)).and_then(|folder| folder.sync_all());
        if synced.is_err() {
            // A name that the disk may not have is taken back: where this fails there is no file.
            fs::remove_file(&self.path)?;
        }
        synced
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // What cannot be removed is removed by the next call.
            let _ = fs::remove_file(part);
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Both ways to make a file.
    const WAYS: [fn(&Path) -> io::Result<Unfinished>; 2] = [Unfinished::create, Unfinished::named];

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_is_for_its_owner_alone() {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("snapshot.db");
            let mut file = way(&path).unwrap();
            file.write_all(b"half").unwrap();
            assert!(!path.exists());
            file.finish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"half");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(names(folder.path()), ["snapshot.db"]);
        }
    }

    #[test]
    fn what_was_given_up_leaves_nothing_and_what_is_there_stays() {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("snapshot.db");
            drop(way(&path).unwrap());
            assert!(names(folder.path()).is_empty());
            let mut late = way(&path).unwrap();
            late.write_all(b"new").unwrap();
            fs::write(&path, "old").unwrap();
            assert_eq!(late.finish().unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!((fs::read(&path).unwrap(), names(folder.path()).len()), (b"old".to_vec(), 1));
            let refused = Unfinished::create(&path).err().unwrap();
            assert!(refused.to_string().contains("it is there already; name another file"), "{refused}");
        }
    }

    #[test]
    fn the_part_that_a_killed_call_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".snapshot.db.part"), "torn").unwrap();
        let mut file = Unfinished::named(&folder.path().join("snapshot.db")).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(names(folder.path()), ["snapshot.db"]);
        assert_eq!(fs::read(folder.path().join("snapshot.db")).unwrap(), b"new");
    }
}
