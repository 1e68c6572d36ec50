//! The pool: networks of one subnet draw from the same addresses, whatever their names.
//!
//! host-local counts addresses by the network's name, and so do its files and its lock. On a node several networks may share
//! one subnet: the node's lease is one, and multus attaches to as many networks of it as it likes. Invariant: who claims an
//! address makes its own file first and examines those of the other networks afterwards. Of two that claim one address at
//! once at least one sees the other's file, and goes on to the next address; no lock of a second network is ever waited for.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// Directories of the other networks' reservations beside `own`.
pub(crate) fn others(own: &Path) -> impl Iterator<Item = PathBuf> {
    let is_alone = |top: &Path| {
        let links = fs::metadata(top).map_or(0, |meta| meta.nlink());
        let has_grants = || fs::symlink_metadata(top.join(".owners")).is_ok_and(|meta| meta.is_dir());
        links == LINKS_WITH_ONE_BELOW || (links == LINKS_WITH_ONE_BELOW + 1 && has_grants())
    };
    let entries = own.parent().filter(|top| !is_alone(top)).and_then(|top| fs::read_dir(top).ok());
    let own = own.file_name().map(OsStr::to_owned);
    entries.into_iter().flatten().flatten().filter_map(move |entry| {
        let name = entry.file_name();
        let is_network = !name.as_encoded_bytes().starts_with(b".") && own.as_ref() != Some(&name);
        (is_network && entry.file_type().is_ok_and(|kind| kind.is_dir())).then(|| entry.path())
    })
}

/// The name of another network that has `addr`. A reservation that is just being made, or that a crash emptied, counts.
pub(crate) fn holder(own: &Path, addr: IpAddr) -> Option<String> {
    let name = addr.to_string();
    let dir = others(own).find(|dir| fs::symlink_metadata(dir.join(&name)).is_ok())?;
    dir.file_name().map(|network| network.to_string_lossy().into_owned())
}
