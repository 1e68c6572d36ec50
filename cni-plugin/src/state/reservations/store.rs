//! Reservations on disk, laid out as host-local does (plugins/ipam/host-local/backend/disk).
//!
//! ```text
//! <dataDir>/<network>/lock                    target of flock(2), shared with host-local
//! <dataDir>/<network>/172.7.21.5              "<container>\r\n<interface>", no newline at the end
//! <dataDir>/<network>/last_reserved_ip.<n>    the address last given out of range set n
//! ```
//! Invariants: an address belongs to at most one owner, because its file is made with `O_EXCL`, under the lock; nothing is
//! read or written through a symbolic link; a process killed at any instruction leaves at most one file without content,
//! which counts as free. There is no fsync: after a power cut no Pod is alive, and a file that lost its content
//! counts as free, too.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::locked::Locked;
use super::pool::Pools;
use crate::protocol::error::{CniError, Code};

/// Why a reservation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else held the lock for the whole time.
    #[error("lock {path} was held by another process for {seconds} s")]
    Busy {
        /// The lock file.
        path: String,
        /// How long this process waited.
        seconds: u64,
    },
    /// Every address of a set is taken.
    #[error("failed to allocate for range {index}: no IP addresses available in range set: {set}")]
    Exhausted {
        /// Index of the set.
        index: usize,
        /// Its ranges.
        set: String,
    },
    /// Requested addresses that lie in no set, or in a set that gives another one.
    #[error("failed to allocate all requested IPs: {}", .0.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","))]
    Unused(Vec<IpAddr>),
    /// A requested address cannot be had.
    #[error("requested IP address {addr} {why}")]
    Requested {
        /// The address.
        addr: IpAddr,
        /// Why not.
        why: String,
    },
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        let (code, advice) = match error {
            StoreError::Busy { .. } => (Code::TryAgainLater, "try again later"),
            StoreError::Exhausted { .. } => {
                (Code::TryAgainLater, "every address belongs to a container; try again when one is gone")
            }
            StoreError::Requested { .. } => (Code::InvalidConfig, "ask for another address"),
            StoreError::Unused(_) => (Code::InvalidConfig, "ask for at most one address of each range set"),
            StoreError::Io { .. } => return Self::new(Code::Io, error.to_string()),
        };
        Self::new(code, error.to_string()).details(advice)
    }
}

/// The directory of one network.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    pools: Pools,
}

impl Store {
    /// The directory of `network` below `data_dir`. Touches nothing. `network` is an identifier, hence one safe
    /// path segment.
    #[must_use]
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { dir: data_dir.join(network), pools: Pools::default() }
    }

    /// The same, with `pools` for what other networks have.
    #[must_use]
    pub fn among(self, pools: Pools) -> Self {
        Self { pools, ..self }
    }

    /// The directory of the network's reservations.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the network's lock, making the directory when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Busy`] after `wait`; [`StoreError::Io`] otherwise.
    pub fn lock(&self, wait: Duration) -> Result<Locked, StoreError> {
        if let Some(locked) = self.lock_existing(wait)? {
            return Ok(locked);
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir).map_err(|e| failed("create", &self.dir, e))?;
        let gone = || failed("use", &self.dir, io::Error::from(io::ErrorKind::NotFound));
        self.lock_existing(wait)?.ok_or_else(gone)
    }

    /// Takes the network's lock if the directory exists: without it there is nothing to find or release.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_existing(&self, wait: Duration) -> Result<Option<Locked>, StoreError> {
        match fs::symlink_metadata(&self.dir) {
            Err(e) if is_absence(&e) => return Ok(None),
            Err(e) => return Err(failed("examine", &self.dir, e)),
            Ok(meta) if meta.is_dir() => {}
            // In an ordinary file there can be no reservation.
            Ok(meta) if meta.is_file() => return Ok(None),
            Ok(_) => {
                return Err(failed("use as directory", &self.dir, io::Error::from(io::ErrorKind::NotADirectory)));
            }
        }
        let path = self.dir.join("lock");
        let file = open_options().create(true).open(&path).map_err(|e| failed("open", &path, e))?;
        let file = lock_within(file, wait).map_err(|e| match e {
            TryLockError::WouldBlock => StoreError::Busy { path: path.display().to_string(), seconds: wait.as_secs() },
            TryLockError::Error(e) => failed("lock", &path, e),
        })?;
        Ok(Some(Locked::new(self.dir.clone(), self.pools.clone(), file)))
    }
}

/// True when looking for a file failed because there is none, or none can have such a name: what a configuration or a state
/// file says may be anything.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename | InvalidInput)
}

/// Read-write, mode 0600, never through a symbolic link.
pub(super) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    options
}

/// flock(2) that gives up after `wait`. A contended lock is waited for on a thread of its own, so that the wait ends
/// at the moment of release and not at the next poll.
pub(crate) fn lock_within(file: File, wait: Duration) -> Result<File, TryLockError> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) if !wait.is_zero() => {}
        other => return other.map(|()| file),
    }
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody listens any more when the time was up; the lock goes with the file.
        let _ = sender.send(locked);
    });
    match receiver.recv_timeout(wait) {
        Ok(locked) => {
            // The thread has sent and ends; the process must be single-threaded again before it enters a namespace.
            let _ = waiter.join();
            locked.map_err(TryLockError::Error)
        }
        Err(_) => Err(TryLockError::WouldBlock),
    }
}

pub(super) fn failed(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_held_lock_is_waited_for_to_the_moment_and_not_longer_than_asked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "cbr0");
        let held = store.lock(Duration::from_millis(50)).unwrap();
        let error = store.lock(Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, StoreError::Busy { .. }), "{error}");
        let start = Instant::now();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| store.lock(Duration::from_secs(30)).map(drop));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_network_without_a_directory_has_nothing_to_lock() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "cbr0");
        assert!(store.lock_existing(Duration::ZERO).unwrap().is_none());
        assert!(!dir.path().join("cbr0").exists());
        fs::write(dir.path().join("cbr0"), "a file").unwrap();
        assert!(store.lock(Duration::ZERO).is_err());
    }
}
