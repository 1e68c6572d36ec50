//! `Folder`: a folder that belongs to one cluster, and how it becomes what is wanted.
//!
//! Invariant: only files that the folder's record names are ever replaced or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use cluster::problem::elided;
use host::Manifest;
use host::manifest::Digest;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::assemble::{IDENTITY, Wanted};
use super::pending::{self, NEW, Pending};
use crate::render::File;

/// What the program has written, with the digest of each.
const RECORD: &str = ".record.json";

/// Folders that hold keys below; who may pass here reads those of mode 0644 as well.
const PRIVATE: u32 = 0o700;

/// A folder that belongs to one cluster.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    identity: Option<Identity>,
    record: BTreeMap<PathBuf, Digest>,
    /// Held while nobody else may write; none for a folder that is yet to be made.
    lock: Option<fs::File>,
}

/// Whose folder it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    cluster: String,
    authority: Digest,
}

/// What became of the folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// Files that were not there.
    pub(crate) new: BTreeSet<PathBuf>,
    /// Files that had another content or mode.
    pub(crate) changed: BTreeSet<PathBuf>,
    /// Files that are not wanted any more.
    pub(crate) removed: BTreeSet<PathBuf>,
    /// Files that are not wanted any more, and that somebody has changed: they stay.
    pub(crate) kept: BTreeSet<PathBuf>,
    /// How many were as they should be.
    pub(crate) same: usize,
}

impl Folder {
    /// The folder at `path` for the cluster `cluster`; what an earlier render began is finished first.
    ///
    /// # Errors
    /// When it is another cluster's, or is somebody else's.
    pub(crate) fn open(path: &Path, cluster: &str) -> Result<Self, String> {
        let mut folder = Self { path: path.to_path_buf(), identity: None, record: BTreeMap::new(), lock: None };
        let shown = path.display();
        if !path.try_exists().map_err(|cause| format!("read {shown}: {cause}"))? {
            return Ok(folder);
        }
        folder.lock = Some(locked(path)?);
        let names = names(path)?;
        if names.is_empty() {
            return Ok(folder);
        }
        // What is not ours is not touched, not even to recover.
        let has = |name: &str| names.contains(OsStr::new(name));
        let begun = has(NEW) && (has(pending::FILE) || names.len() == 1);
        if !has(IDENTITY) && !has(RECORD) && !begun {
            return Err(format!("{shown} is not empty, and no `netdadm render` made it; name another folder"));
        }
        pending::recover(path)?;
        folder.record = optional(&path.join(RECORD), parse_record)?.unwrap_or_default();
        folder.identity = optional(&path.join(IDENTITY), parse_identity)?;
        match &folder.identity {
            Some(found) if found.cluster != cluster => Err(format!(
                "{shown} belongs to the cluster {}, not to {cluster}; name another folder, or remove it",
                found.cluster
            )),
            _ => Ok(folder),
        }
    }

    /// Where certificates of an earlier render lie.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The manifests of an earlier render by the names of their hosts. One that cannot be read counts as none.
    pub(crate) fn manifests(&self) -> BTreeMap<String, Manifest> {
        let of = |path: &PathBuf| -> Option<(String, Manifest)> {
            path.ends_with("manifest.json").then_some(())?;
            let manifest = Manifest::parse(&bounded::read(&self.path.join(path), bounded::MANIFEST).ok()?).ok()?;
            Some((manifest.host.clone(), manifest))
        };
        self.record.keys().filter_map(of).collect()
    }

    /// Makes the folder hold what is wanted.
    ///
    /// # Errors
    /// When it belongs to another CA, a foreign file is in the way, or the system refuses: then it is as before.
    pub(crate) fn write(&mut self, wanted: &Wanted) -> Result<Outcome, String> {
        self.found()?;
        self.same_authority(wanted)?;
        self.keeps_authorities(wanted)?;
        let mut outcome = Outcome::default();
        for (path, file) in &wanted.files {
            self.compare(path, file, &mut outcome)?;
        }
        self.unwanted(wanted, &mut outcome)?;
        let digest = |file: &File| Digest::of(file.text.as_bytes());
        let mut record: BTreeMap<PathBuf, Digest> =
            wanted.files.iter().map(|(path, file)| (path.clone(), digest(file))).collect();
        // What somebody has changed was ours, and is his from now on.
        if outcome.new.is_empty() && outcome.changed.is_empty() && record == self.record {
            return Ok(outcome);
        }
        let staged = self.stage(wanted, &outcome, &record);
        if let Err(cause) = staged {
            pending::discard(&self.path)?;
            return Err(format!("{cause}; {} is as it was", self.path.display()));
        }
        let moved = outcome.new.iter().chain(&outcome.changed).cloned().chain([RECORD.into()]).collect();
        let steps = Pending { moved, removed: outcome.removed.iter().cloned().collect() };
        if let Err(cause) = steps.write(&self.path) {
            pending::discard(&self.path)?;
            return Err(format!("{cause}; {} is as it was", self.path.display()));
        }
        steps.carry(&self.path).map_err(|cause| format!("{cause}; render again, which goes on from here"))?;
        std::mem::swap(&mut self.record, &mut record);
        Ok(outcome)
    }

    fn same_authority(&self, wanted: &Wanted) -> Result<(), String> {
        match (&self.identity, &wanted.authority) {
            (Some(found), Some(authority)) if found.authority != *authority => Err(format!(
                "{} belongs to another cluster {}: its CA has the SHA-256 {}, this one {authority}; name another folder, \
                 or put the CA with its key where it was",
                self.path.display(),
                found.cluster,
                found.authority
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a new authority, or a new key of the service accounts, where an earlier render wrote one: hosts that have the
    /// one would not believe those that have the other.
    fn keeps_authorities(&self, wanted: &Wanted) -> Result<(), String> {
        let before = |made: &String| {
            let ends = [format!("pki/{made}.crt"), format!("pki/{made}.pub")];
            let earlier = self.record.keys().find(|path| ends.iter().any(|end| path.ends_with(end)))?;
            Some((self.path.join("pki").join(made), self.path.join(earlier)))
        };
        wanted.made.iter().find_map(before).map_or(Ok(()), |(lost, earlier)| {
            Err(format!(
                "{}.key is gone, to which {} belongs; put both halves back from the backup of this folder, or render into \
                 another one",
                lost.display(),
                earlier.display()
            ))
        })
    }

    /// Makes and locks a folder that was not there before.
    fn found(&mut self) -> Result<(), String> {
        if self.lock.is_some() {
            return Ok(());
        }
        let shown = self.path.display();
        make(&self.path, &self.path).map_err(|cause| format!("make {shown}: {cause}"))?;
        self.lock = Some(locked(&self.path)?);
        match names(&self.path)?.is_empty() {
            true => Ok(()),
            false => Err(format!("{shown} was written by another `netdadm` meanwhile; run it again")),
        }
    }

    fn compare(&self, path: &Path, file: &File, outcome: &mut Outcome) -> Result<(), String> {
        let place = self.path.join(path);
        let mut above =
            path.ancestors().skip(1).map(|folder| self.path.join(folder)).take_while(|one| *one != self.path);
        if let Some(link) = above.find(|folder| folder.is_symlink()) {
            return Err(format!("{} is a link, and files are to be written below it; move it away", link.display()));
        }
        let found = match fs::symlink_metadata(&place) {
            Ok(found) => found,
            Err(cause) if cause.kind() == ErrorKind::NotFound => {
                outcome.new.insert(path.to_path_buf());
                return Ok(());
            }
            Err(cause) => return Err(format!("read {}: {cause}", place.display())),
        };
        if !self.record.contains_key(path) || !found.is_file() {
            return Err(format!("{} is there, and no `netdadm render` wrote it; move it away", place.display()));
        }
        let content =
            bounded::read(&place, bounded::MANIFEST).map_err(|cause| format!("read {}: {cause}", place.display()))?;
        if content == file.text.as_bytes() && found.permissions().mode() & 0o7777 == file.mode.bits() {
            outcome.same = outcome.same.saturating_add(1);
        } else {
            outcome.changed.insert(path.to_path_buf());
        }
        Ok(())
    }

    fn unwanted(&self, wanted: &Wanted, outcome: &mut Outcome) -> Result<(), String> {
        for (path, digest) in self.record.iter().filter(|(path, _)| !wanted.files.contains_key(*path)) {
            let place = self.path.join(path);
            match bounded::read(&place, bounded::MANIFEST) {
                Ok(content) if Digest::of(&content) == *digest => drop(outcome.removed.insert(path.clone())),
                Ok(_) => drop(outcome.kept.insert(path.clone())),
                Err(cause) if cause.kind() == ErrorKind::FileTooLarge => drop(outcome.kept.insert(path.clone())),
                Err(cause) if cause.kind() == ErrorKind::NotFound => {}
                Err(cause) => return Err(format!("read {}: {cause}", place.display())),
            }
        }
        Ok(())
    }

    /// Puts everything that is new or changed beside the state.
    fn stage(&self, wanted: &Wanted, outcome: &Outcome, record: &BTreeMap<PathBuf, Digest>) -> Result<(), String> {
        let new = self.path.join(NEW);
        make(&self.path, &new).map_err(|cause| format!("make {}: {cause}", new.display()))?;
        let put = |path: &Path, bytes: &[u8], mode: u32| {
            let place = new.join(path);
            let folder = place.parent().map_or(Ok(()), |folder| make(&self.path, folder));
            let written = folder.and_then(|()| put(&place, bytes, mode));
            written.map_err(|cause| format!("write {}: {cause}", self.path.join(path).display()))
        };
        for (path, file) in
            wanted.files.iter().filter(|(path, _)| outcome.new.contains(*path) || outcome.changed.contains(*path))
        {
            put(path, file.text.as_bytes(), file.mode.bits())?;
        }
        // Maps of texts are always written.
        put(Path::new(RECORD), &serde_json::to_vec_pretty(record).unwrap_or_default(), 0o600)
    }
}

/// The folder `path`, which no other call writes as long as the result lives.
fn locked(path: &Path) -> Result<fs::File, String> {
    let shown = path.display();
    // A pipe would have its writer waited for.
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(path);
    let folder = opened.map_err(|cause| format!("read {shown}: {cause}"))?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(format!("another `netdadm render` or `netdadm certs renew` is at work in {shown}; wait for its end"))
        }
        // A file system without locks has no more than one caller's care.
        Err(TryLockError::Error(cause)) if cause.kind() != ErrorKind::Unsupported => {
            Err(format!("lock {shown}: {cause}"))
        }
        _ => Ok(folder),
    }
}

/// What lies in a folder.
fn names(folder: &Path) -> Result<BTreeSet<OsString>, String> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    entries.map_err(|cause| format!("read {}: {cause}", folder.display()))
}

fn parse_record(bytes: &[u8]) -> Result<BTreeMap<PathBuf, Digest>, String> {
    let record: BTreeMap<PathBuf, Digest> = serde_json::from_slice(bytes).map_err(unreadable)?;
    match record.keys().find(|path| !pending::is_inside(path)) {
        Some(path) => Err(elided(format!("{} is no path in the folder", path.display()))),
        None => Ok(record),
    }
}

fn parse_identity(bytes: &[u8]) -> Result<Identity, String> {
    let identity: Identity = serde_json::from_slice(bytes).map_err(unreadable)?;
    if identity.format == host::manifest::FORMAT {
        Ok(identity)
    } else {
        Err(format!("its format is {}, which another version of netdadm wrote", identity.format))
    }
}

/// Why serde does not read something, which may repeat all of it.
pub(super) fn unreadable(cause: serde_json::Error) -> String {
    elided(cause.to_string())
}

/// Why `bytes` are no record and no identity.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn refusals(bytes: &[u8]) -> Vec<String> {
    parse_record(bytes).err().into_iter().chain(parse_identity(bytes).err()).collect()
}

/// What `parse` reads in `file`, if it is there.
fn optional<T>(file: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> Result<Option<T>, String> {
    match bounded::read(file, bounded::MANIFEST) {
        Ok(bytes) => parse(&bytes).map(Some).map_err(|cause| {
            format!(
                "{} cannot be used: {cause}; put it back from the backup of this folder, or render into another one with \
                 the CAs in {} as the field pki",
                file.display(),
                file.with_file_name("pki").display()
            )
        }),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(format!("read {}: {cause}", file.display())),
    }
}

/// Writes a new file to the disk.
///
/// # Errors
/// What the system says.
pub(super) fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    // Not as the mask of the caller has it.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Makes what is missing of the folders down to `path`; what leads to keys is its owner's, what is copied to `/` everybody's.
///
/// # Errors
/// What the system says.
pub(super) fn make(top: &Path, path: &Path) -> io::Result<()> {
    // What a relative path begins in has no name.
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make(top, parent)?;
    }
    let below = path.strip_prefix(top).unwrap_or(Path::new(""));
    let below = below.strip_prefix(NEW).unwrap_or(below);
    let copied = below.components().any(|step| step.as_os_str() == "root") || below.starts_with("manifests");
    let mode = if copied { 0o755 } else { PRIVATE };
    match DirBuilder::new().mode(mode).create(path) {
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => Ok(()),
        // Not as the mask of the caller has it.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        other => other,
    }
}

/// Has the names in a folder on the disk.
///
/// # Errors
/// What the system says.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
