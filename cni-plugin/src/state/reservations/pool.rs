//! The pool: networks of one subnet draw from the same addresses, whatever their names.
//!
//! host-local counts addresses by the network's name, and so do its files and its lock. On a node several networks may share
//! one subnet: the node's lease is one, and multus attaches to as many networks of it as it likes. Each may have an
//! `ipam.dataDir` of its own, or get another one while Pods run: those other than host-local's default are listed in
//! `<stateDir>/.pools`, a file for each with its path.
//!
//! Invariant: who claims an address makes its data directory known and its own file first, and examines those of the other
//! networks afterwards. Of two that claim one address at once at least one sees the other's file, and goes on to the next
//! address; no lock of a second network is ever waited for.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{self, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::store::{StoreError, failed};
use crate::protocol::netconf::ipam::DEFAULT_DATA_DIR;
use crate::state::safe_file::{self, Links};

/// What another network's reservation of an address means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// It is the same address: both networks are one subnet of this host.
    Exclusive,
    /// It may be the same address; whether the networks meet anywhere is not known here. Another one is better.
    Avoided,
}

/// Links of a directory with one directory in it: its name, its `.`, and the `..` of that one. File systems that do not count
/// say 1.
const LINKS_WITH_ONE_BELOW: u64 = 3;

/// Where the reservations of other networks are searched for: beside the own ones, and in the known data directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pools {
    /// The list of them; without one there is nothing but what is beside the own ones.
    list: Option<PathBuf>,
}

/// The longest path that the kernel takes, in bytes.
const PATH_MAX: u64 = 4096;

impl Pools {
    /// Those that networks with this state directory have made known.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { list: Some(state_dir.join(".pools")) }
    }

    fn entry(&self, data_dir: &Path) -> Option<(PathBuf, PathBuf)> {
        let data_dir = path::absolute(data_dir).ok().filter(|dir| dir != Path::new(DEFAULT_DATA_DIR))?;
        let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(data_dir.as_os_str().as_encoded_bytes()).into();
        let entry = self.list.as_ref()?.join(format!("{:08x}", u32::from_be_bytes([a, b, c, d])));
        Some((entry, data_dir))
    }

    /// Makes `data_dir` known to the networks of other data directories.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be written down.
    pub fn make_known(&self, data_dir: &Path) -> Result<(), StoreError> {
        let Some((entry, data_dir)) = self.entry(data_dir) else { return Ok(()) };
        if read(&entry).is_some_and(|known| known == data_dir) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            let list = self.list.as_deref().unwrap_or(Path::new(""));
            safe_file::refuse_link(list)?;
            DirBuilder::new().recursive(true).mode(0o700).create(list)?;
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
            io::Write::write_all(&mut options.open(&entry)?, data_dir.as_os_str().as_encoded_bytes())
        };
        write().map_err(|e| failed("write", &entry, e))
    }

    /// Takes `data_dir` off the list when no network but `network` is in it, and the list away when it is empty.
    pub(crate) fn forget(&self, data_dir: &Path, network: &str) {
        if networks_in(data_dir).any(|dir| dir.file_name() != Some(OsStr::new(network))) {
            return;
        }
        if let Some((entry, _)) = self.entry(data_dir) {
            // A list with directories that are gone does no harm.
            let _ = fs::remove_file(entry);
            let _ = self.list.as_ref().map(fs::remove_dir);
        }
    }

    /// The known data directories but for `own`, by whatever path it is known.
    pub(crate) fn tops(&self, own: &Path) -> Vec<PathBuf> {
        let Some(list) = self.list.as_ref().filter(|list| safe_file::refuse_link(list).is_ok()) else {
            return Vec::new();
        };
        let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let entries = fs::read_dir(list).into_iter().flatten().flatten();
        let mut tops: Vec<PathBuf> = entries.filter_map(|entry| read(&entry.path())).collect();
        tops.push(PathBuf::from(DEFAULT_DATA_DIR));
        tops.retain(|top| top != own && identity(top).is_some_and(|id| Some(id) != identity(own)));
        tops
    }

    /// Directories of the other networks' reservations.
    pub(crate) fn others(&self, own: &Path) -> impl Iterator<Item = PathBuf> {
        let tops = own.parent().map(|top| self.tops(top)).unwrap_or_default();
        beside(own).chain(tops.into_iter().flat_map(|top| networks_in(&top).collect::<Vec<_>>()))
    }

    /// The name of another network that has `addr`. A reservation that is just being made, or that a crash emptied, counts.
    pub(crate) fn holder(&self, own: &Path, addr: IpAddr) -> Option<String> {
        let name = addr.to_string();
        let dir = self.others(own).find(|dir| fs::symlink_metadata(dir.join(&name)).is_ok())?;
        dir.file_name().map(|network| network.to_string_lossy().into_owned())
    }
}

/// What an entry of the list says; one that is just being written names no directory.
fn read(entry: &Path) -> Option<PathBuf> {
    let text = safe_file::read(entry, PATH_MAX, Links::Refused).ok().filter(|text| text.starts_with('/'))?;
    Some(PathBuf::from(text))
}

/// Directories of the other networks' reservations beside `own`.
fn beside(own: &Path) -> impl Iterator<Item = PathBuf> {
    let is_alone = |top: &Path| {
        let links = fs::metadata(top).map_or(0, |meta| meta.nlink());
        let has_grants = || fs::symlink_metadata(top.join(".owners")).is_ok_and(|meta| meta.is_dir());
        links == LINKS_WITH_ONE_BELOW || (links == LINKS_WITH_ONE_BELOW + 1 && has_grants())
    };
    let top = own.parent().filter(|top| !is_alone(top));
    let own = own.file_name().map(OsStr::to_owned);
    top.into_iter().flat_map(networks_in).filter(move |dir| dir.file_name() != own.as_deref())
}

/// The directories of networks in the data directory `top`.
fn networks_in(top: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(top).into_iter().flatten().flatten().filter_map(|entry| {
        let is_network = !entry.file_name().as_encoded_bytes().starts_with(b".");
        (is_network && entry.file_type().is_ok_and(|kind| kind.is_dir())).then(|| entry.path())
    })
}
