//! Reservations on disk, laid out as host-local does (plugins/ipam/host-local/backend/disk).
//!
//! ```text
//! <dataDir>/<network>/lock                    target of flock(2), shared with host-local
//! <dataDir>/<network>/172.7.21.5              "<container>\r\n<interface>", no newline at the end
//! <dataDir>/<network>/last_reserved_ip.<n>    the address last given out of range set n
//! ```
//! Invariants: an address belongs to at most one owner, because its file comes into being with its content by
//! link(2), which fails when the name exists; nothing is read or written through a symbolic link; a process killed at
//! any instruction leaves at most its two drafts (`.reserving`, `.last_reserved`), which the next release removes. There is no
//! fsync: after a power cut no Pod is alive, and a file that lost its content counts as free.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::range::RangeSet;
use crate::attachment::Attachment;

/// host-local's default for `ipam.dataDir`.
pub const DEFAULT_DIR: &str = "/var/lib/cni/networks";

/// An address that belongs to an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub addr: IpAddr,
    /// Prefix length of its subnet.
    pub len: u8,
    /// The subnet's gateway.
    pub gateway: IpAddr,
}

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
    /// A requested address cannot be had.
    #[error("requested IP address {addr} {why}")]
    Requested {
        /// The address.
        addr: IpAddr,
        /// Why not.
        why: String,
    },
}

/// The directory of one network.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The directory of `network` below `data_dir`. Touches nothing. `network` is an identifier, hence one safe
    /// path segment.
    #[must_use]
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { dir: data_dir.join(network) }
    }

    /// Takes the network's lock, making the directory when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Busy`] after `wait`; [`StoreError::Io`] otherwise.
    pub fn lock(&self, wait: Duration) -> Result<Locked, StoreError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir).map_err(|e| failed("create", &self.dir, e))?;
        self.lock_in_place(wait)
    }

    /// Takes the network's lock if the directory exists: without it there is nothing to find or release.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_existing(&self, wait: Duration) -> Result<Option<Locked>, StoreError> {
        match fs::symlink_metadata(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("examine", &self.dir, e)),
            Ok(_) => self.lock_in_place(wait).map(Some),
        }
    }

    fn lock_in_place(&self, wait: Duration) -> Result<Locked, StoreError> {
        let meta = fs::symlink_metadata(&self.dir).map_err(|e| failed("examine", &self.dir, e))?;
        if !meta.is_dir() {
            return Err(failed("use as directory", &self.dir, io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let path = self.dir.join("lock");
        let file = open_options().create(true).open(&path).map_err(|e| failed("open", &path, e))?;
        let file = lock_within(file, wait).map_err(|e| match e {
            TryLockError::WouldBlock => StoreError::Busy { path: path.display().to_string(), seconds: wait.as_secs() },
            TryLockError::Error(e) => failed("lock", &path, e),
        })?;
        Ok(Locked { dir: self.dir.clone(), _lock: file })
    }
}

/// Read-write, mode 0600, never through a symbolic link.
fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC);
    options
}

/// flock(2) that gives up after `wait`. A contended lock is waited for on a thread of its own, so that the wait ends
/// at the moment of release and not at the next poll.
pub(crate) fn lock_within(file: File, wait: Duration) -> Result<File, TryLockError> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {}
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

fn failed(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.display().to_string(), source }
}

/// The directory of one network, under its lock until dropped.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    _lock: File,
}

impl Locked {
    /// Reserves one address per set for `owner`, in the order of `sets`. A set that contains a requested address
    /// gives exactly that one. On failure nothing stays reserved that was not before.
    ///
    /// # Errors
    /// [`StoreError::Exhausted`], [`StoreError::Requested`], [`StoreError::Io`].
    pub fn reserve(
        &self,
        owner: &Attachment,
        sets: &[RangeSet],
        requested: &[IpAddr],
    ) -> Result<Vec<Reservation>, StoreError> {
        let mut reserved = Vec::new();
        let outcome = self.reserve_each(owner, sets, requested, &mut reserved);
        self.remove_draft();
        match outcome {
            Ok(()) => Ok(reserved),
            Err(error) => {
                for reservation in &reserved {
                    // The first cause is reported; what could not be removed is found again by its owner.
                    let _ = self.discard(reservation.addr);
                }
                Err(error)
            }
        }
    }

    fn reserve_each(
        &self,
        owner: &Attachment,
        sets: &[RangeSet],
        requested: &[IpAddr],
        reserved: &mut Vec<Reservation>,
    ) -> Result<(), StoreError> {
        if let Some(addr) = requested.iter().find(|addr| !sets.iter().any(|set| set.range_of(**addr).is_some())) {
            return Err(StoreError::Requested { addr: *addr, why: "is in no range set of the network".to_owned() });
        }
        self.write_draft(owner)?;
        for (index, set) in sets.iter().enumerate() {
            let wanted = requested.iter().find(|addr| set.range_of(**addr).is_some());
            let (addr, len) = match wanted {
                Some(addr) => self.take_requested(*addr, set)?,
                None => self.take_next(index, set)?,
            };
            let gateway = set.range_of(addr).map_or(addr, |range| range.gateway());
            reserved.push(Reservation { addr, len, gateway });
            self.remember_last(index, addr)?;
        }
        Ok(())
    }

    fn take_requested(&self, addr: IpAddr, set: &RangeSet) -> Result<(IpAddr, u8), StoreError> {
        let refused = |why: &str| StoreError::Requested { addr, why: format!("{why} {set}") };
        if set.is_gateway(addr) {
            return Err(refused("is a gateway of range set"));
        }
        let range = set.range_of(addr).ok_or_else(|| refused("is outside range set"))?;
        if self.claim(addr)? { Ok((addr, range.subnet().len())) } else { Err(refused("is not available in range set")) }
    }

    fn take_next(&self, index: usize, set: &RangeSet) -> Result<(IpAddr, u8), StoreError> {
        for (addr, len) in set.candidates(self.last_reserved(index)) {
            if self.claim(addr)? {
                return Ok((addr, len));
            }
        }
        Err(StoreError::Exhausted { index, set: set.to_string() })
    }

    /// Gives the draft the address's name; `false` when the address is taken.
    fn claim(&self, addr: IpAddr) -> Result<bool, StoreError> {
        let path = self.dir.join(addr.to_string());
        match fs::hard_link(self.draft(), &path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.replace_empty(&path),
            Err(e) => Err(failed("reserve", &path, e)),
        }
    }

    /// A reservation without content names no owner: host-local or the file system lost it in a crash. It is
    /// taken over.
    fn replace_empty(&self, path: &Path) -> Result<bool, StoreError> {
        let meta = fs::symlink_metadata(path).map_err(|e| failed("examine", path, e))?;
        if !meta.is_file() || meta.len() > 0 {
            return Ok(false);
        }
        fs::remove_file(path).map_err(|e| failed("remove empty", path, e))?;
        fs::hard_link(self.draft(), path).map(|()| true).map_err(|e| failed("reserve", path, e))
    }

    fn draft(&self) -> PathBuf {
        self.dir.join(".reserving")
    }

    fn write_draft(&self, owner: &Attachment) -> Result<(), StoreError> {
        // A draft left by a killed process may be another name of a valid reservation: unlink, never truncate.
        self.remove_draft();
        let path = self.draft();
        let mut file = open_options().create_new(true).open(&path).map_err(|e| failed("create", &path, e))?;
        file.write_all(content(owner).as_bytes()).map_err(|e| failed("write", &path, e))
    }

    fn remove_draft(&self) {
        // Absent is what is wanted; another failure shows when the draft is created.
        let _ = fs::remove_file(self.draft());
    }

    fn last_draft(&self) -> PathBuf {
        self.dir.join(".last_reserved")
    }

    fn last_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{index}"))
    }

    fn last_reserved(&self, index: usize) -> Option<IpAddr> {
        read_small(&self.last_path(index))?.trim().parse().ok()
    }

    fn remember_last(&self, index: usize, addr: IpAddr) -> Result<(), StoreError> {
        let (path, draft) = (self.last_path(index), self.last_draft());
        let write = || -> io::Result<()> {
            let mut file = open_options().create(true).truncate(true).open(&draft)?;
            file.write_all(addr.to_string().as_bytes())?;
            fs::rename(&draft, &path)
        };
        write().map_err(|e| failed("write", &path, e))
    }

    /// Releases `addr`, whoever owns it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file exists and cannot be removed.
    pub fn discard(&self, addr: IpAddr) -> Result<(), StoreError> {
        let path = self.dir.join(addr.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("release", &path, e)),
            _ => Ok(()),
        }
    }

    /// Every reservation with its owner's text, `<container>\r\n<interface>` or, from before host-local 0.7, the
    /// container alone. Files whose names are no addresses are passed over.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<(IpAddr, String)>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(|e| failed("list", &self.dir, e))?;
        let mut list = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed("list", &self.dir, e))?;
            let Some(addr) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(text) = read_small(&entry.path()) {
                list.push((addr, text.trim().to_owned()));
            }
        }
        list.sort();
        Ok(list)
    }

    /// The addresses of `owner`, in order.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read.
    pub fn find(&self, owner: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let list = self.list()?;
        let of = |wanted: &str| -> Vec<IpAddr> {
            list.iter().filter(|(_, text)| text == wanted).map(|(addr, _)| *addr).collect()
        };
        let exact = of(&content(owner));
        Ok(if exact.is_empty() { of(owner.container.as_str()) } else { exact })
    }

    /// True when `addr` belongs to `owner`.
    #[must_use]
    pub fn is_owned(&self, owner: &Attachment, addr: IpAddr) -> bool {
        let text = read_small(&self.dir.join(addr.to_string())).unwrap_or_default();
        text.trim() == content(owner) || text.trim() == owner.container.as_str()
    }

    /// Releases those of `addresses` that belong to `owner`; others may have a new owner by now and stay.
    ///
    /// # Errors
    /// [`StoreError::Io`] when a file that exists cannot be removed.
    pub fn free(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<(), StoreError> {
        // What a killed process left behind.
        self.remove_draft();
        let _ = fs::remove_file(self.last_draft());
        addresses.iter().filter(|addr| self.is_owned(owner, **addr)).try_for_each(|addr| self.discard(*addr))
    }
}

fn content(owner: &Attachment) -> String {
    format!("{}\r\n{}", owner.container, owner.ifname)
}

/// The first KiB of a regular file as text; `None` when it is not readable as such.
fn read_small(path: &Path) -> Option<String> {
    let file =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path).ok()?;
    let mut text = String::new();
    file.take(1024).read_to_string(&mut text).ok()?;
    Some(text)
}
