//! `Files`: the files of a host as a table.
//!
//! Invariant: a step is done whole or not at all. All content of a batch is on the disk beside its places before the first place changes,
//! each changes by one rename, and until [`Files::settle`] what was there before can be put back without any room on the disk. A file is ours
//! while it is what we wrote; what somebody has changed since is foreign again.

pub(crate) mod accounts;
mod place;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::manifest::Digest;
use accounts::Accounts;
use place::{Place, Rights};
pub use value::{Content, File, FileError, FilePath};

/// The files below one root.
#[derive(Debug)]
pub struct Files {
    root: OwnedFd,
    accounts: Accounts,
    written: BTreeMap<FilePath, File>,
    contents: BTreeMap<FilePath, Vec<u8>>,
    watched: BTreeSet<FilePath>,
}

impl Files {
    /// The files below `root`, with the users and groups that its own `/etc` names.
    ///
    /// # Errors
    /// When the root is not there or cannot be opened.
    pub fn open(root: &Path) -> Result<Self, FileError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = open(root, flags, Mode::empty());
        let root = opened.map_err(|errno| FileError::at("open the root", root, errno.into()))?;
        let mut files = Self {
            root,
            accounts: Accounts::default(),
            written: BTreeMap::new(),
            contents: BTreeMap::new(),
            watched: BTreeSet::new(),
        };
        let text = |path: &str| match files.read(Path::new(path)) {
            Ok(bytes) => Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()),
            Err(error) => Err(error),
        };
        files.accounts = Accounts::parse(&text("/etc/passwd")?, &text("/etc/group")?);
        Ok(files)
    }

    /// What we wrote here before: it is ours for as long as nobody changes it.
    pub fn recall(&mut self, written: impl IntoIterator<Item = (FilePath, File)>) {
        self.written.extend(written);
        self.watched.extend(self.written.keys().cloned());
    }

    /// The content that a desired file shall have; its path is read by the next listing.
    pub fn offer(&mut self, path: FilePath, content: Vec<u8>) {
        self.watched.insert(path.clone());
        self.contents.insert(path, content);
    }

    /// Whether this host has the user and the group of `file`.
    ///
    /// # Errors
    /// Which of them is missing, and what makes it.
    pub fn check_owner(&self, file: &File) -> Result<(), String> {
        self.accounts.numbers(&file.owner).map(drop)
    }

    /// The content of the file at `path`; `None` for nothing.
    ///
    /// # Errors
    /// When it is no file or cannot be read.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        let failed = |cause| FileError::at("read", path, cause);
        let Some(place) = Place::find(&self.root, path).map_err(failed)? else { return Ok(None) };
        match place.read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed(cause)),
        }
    }

    /// Writes a file of our own whole, for nobody but root: a state that stands there before or after, never in between.
    ///
    /// # Errors
    /// When it cannot be written; what was there stays.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<(), FileError> {
        let written = || {
            let place = Place::make(&self.root, path, place::PUBLIC)?;
            let private = Rights { mode: 0o600, user: 0, group: 0 };
            let written = place.write_draft(content, private).and_then(|()| place.publish());
            if written.is_err() {
                // What is left of a draft would be in the way of nothing but the disk's space.
                let _ = place.remove_draft();
            }
            written
        };
        written().map_err(|cause| FileError::at("write", path, cause))
    }

    /// Copies what stands at `path` to `copy`, with its owner and its rights, into folders that root alone passes: a key that
    /// was readable for others is not so once more.
    ///
    /// # Errors
    /// When one of them cannot be read or written.
    pub fn copy(&self, path: &FilePath, copy: &Path) -> Result<(), FileError> {
        let copied = || {
            let Some(from) = Place::find(&self.root, path.as_path())? else { return Ok(()) };
            let Some(status) = from.status()? else { return Ok(()) };
            let to = Place::make(&self.root, copy, place::PRIVATE)?;
            let rights = Rights { mode: status.st_mode & 0o7777, user: status.st_uid, group: status.st_gid };
            let drafted = match place::kind(&status) {
                Err("link") => to.link_draft(&from.link()?),
                _ => to.write_draft(&from.read()?, rights),
            };
            drafted.and_then(|()| to.publish()).inspect_err(|_| drop(to.remove_draft()))
        };
        copied().map_err(|cause| FileError::at("keep a copy of", path.as_path(), cause))
    }

    /// The folders above `path` that are not there, the outermost first.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn missing_folders(&self, path: &FilePath) -> Result<Vec<PathBuf>, FileError> {
        let mut missing = Vec::new();
        for folder in path.as_path().ancestors().skip(1).filter(|folder| folder.file_name().is_some()) {
            let found =
                Place::find(&self.root, folder).and_then(|place| place.map_or(Ok(None), |place| place.status()));
            if found.map_err(|cause| FileError::at("read", folder, cause))?.is_some() {
                break;
            }
            missing.insert(0, folder.to_owned());
        }
        Ok(missing)
    }

    /// Removes a copy that [`Files::copy`] made.
    ///
    /// # Errors
    /// When the file system refuses; a copy that is gone is no error.
    pub fn discard(&self, copy: &Path) -> Result<(), FileError> {
        let removed = Place::find(&self.root, copy).and_then(|place| match place {
            Some(place) => place.remove_draft().and_then(|()| place.remove()),
            None => Ok(()),
        });
        removed.map_err(|cause| FileError::at("remove the copy", copy, cause))
    }

    /// Locks the file at `path` for as long as the result lives; `None` when somebody else has it locked.
    ///
    /// # Errors
    /// When it cannot be made or locked.
    pub fn lock(&self, path: &Path) -> Result<Option<impl Sized + use<>>, FileError> {
        let locked = Place::make(&self.root, path, place::PUBLIC).and_then(|place| place.lock());
        locked.map_err(|cause| FileError::at("lock", path, cause))
    }

    /// Puts back what stood at `path` before the batch: what was replaced or removed, or nothing, where the file that stands there now is
    /// `made` by that batch. What was put back already stays.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn undo(&self, path: &FilePath, was_there: bool, made: Option<&File>) -> Result<(), FileError> {
        let undone = || {
            let Some(place) = Place::find(&self.root, path.as_path())? else { return Ok(()) };
            place.remove_draft()?;
            if place.restore()? || was_there {
                return Ok(());
            }
            let found = self.look(&place)?;
            if found.is_some() && found.as_ref() == made { place.remove() } else { Ok(()) }
        };
        undone().map_err(|cause| FileError::at("put back", path.as_path(), cause))
    }

    /// Gives up what [`Files::undo`] would put back: what stands at `path` now stays.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn settle(&self, path: &FilePath) -> Result<(), FileError> {
        let settled = || match Place::find(&self.root, path.as_path())? {
            Some(place) => place.remove_draft().and_then(|()| place.remove_earlier()),
            None => Ok(()),
        };
        settled().map_err(|cause| FileError::at("clean up beside", path.as_path(), cause))
    }

    /// Removes folders in which nothing is, the last first.
    ///
    /// # Errors
    /// When the file system refuses for another reason than that something is in one.
    pub fn remove_folders(&self, folders: &[PathBuf]) -> Result<(), FileError> {
        for folder in folders.iter().rev() {
            let removed = match Place::find(&self.root, folder) {
                Ok(Some(place)) => place.remove_empty_folder(),
                Ok(None) => Ok(()),
                Err(cause) => Err(cause),
            };
            removed.map_err(|cause| FileError::at("remove the folder", folder, cause))?;
        }
        Ok(())
    }

    /// What stands at a place.
    fn look(&self, place: &Place) -> io::Result<Option<File>> {
        let Some(status) = place.status()? else { return Ok(None) };
        let content = match place::kind(&status) {
            Ok(()) => Content::Sha256(Digest::of(&place.read()?)),
            Err("link") => Content::Link(place.link()?),
            Err(other) => Content::Other(other.to_owned()),
        };
        let owner = self.accounts.names(status.st_uid, status.st_gid);
        Ok(Some(File::found(content, status.st_mode & 0o7777, &owner)))
    }

    /// Brings what a step needs to the disk, beside its place.
    fn stage(&self, step: &Step<FilePath, File>) -> Result<(), FileError> {
        let (path, file) = match step {
            Step::Create(path, file) | Step::Change(path, _, file) => (path, file),
            Step::Remove(..) => return Ok(()),
        };
        let failed = |cause| FileError::at("write", path.as_path(), cause);
        let content = self.contents.get(path).filter(|content| file.content == Content::Sha256(Digest::of(content)));
        let content = content.ok_or_else(|| failed(io::Error::other("its content is not at hand")))?;
        let owner = self.accounts.numbers(&file.owner);
        let (user, group) = owner.map_err(|unknown| failed(io::Error::other(unknown)))?;
        let rights = Rights { mode: file.mode, user, group };
        let place = Place::make(&self.root, path.as_path(), place::PUBLIC).map_err(failed)?;
        place.write_draft(content, rights).map_err(failed)
    }

    /// Makes a step true, by one rename.
    fn publish(&self, step: &Step<FilePath, File>) -> Result<(), FileError> {
        let path = step.key();
        let published = || {
            let Some(place) = Place::find(&self.root, path.as_path())? else { return Ok(()) };
            let is_there = place.status()?.is_some();
            match step {
                Step::Remove(..) if is_there => place.set_aside(),
                Step::Remove(..) => Ok(()),
                Step::Create(..) | Step::Change(..) => {
                    if is_there {
                        place.hold_earlier()?;
                    } else {
                        // What was left there would come back in the place of nothing.
                        place.remove_earlier()?;
                    }
                    place.publish()
                }
            }
        };
        published().map_err(|cause| FileError::at("replace", path.as_path(), cause))
    }

    /// Every step failed with `failure`, or because of it.
    fn all_failed(steps: &[Step<FilePath, File>], at: usize, failure: FileError) -> Vec<Result<(), FileError>> {
        let consequence = |step: &Step<FilePath, File>| FileError::kept_back(step.key().as_path(), &failure);
        let mut results: Vec<_> = steps.iter().map(|step| Err(consequence(step))).collect();
        if let Some(result) = results.get_mut(at) {
            *result = Err(failure);
        }
        results
    }
}

impl Target for Files {
    type Key = FilePath;
    type Value = File;
    type Error = FileError;

    fn observe(&mut self) -> Result<Rows<FilePath, File>, FileError> {
        let mut rows = Rows::new();
        for path in &self.watched {
            let failed = |cause| FileError::at("read", path.as_path(), cause);
            let Some(place) = Place::find(&self.root, path.as_path()).map_err(failed)? else { continue };
            if let Some(value) = self.look(&place).map_err(failed)? {
                let owner = if self.written.get(path) == Some(&value) { Owner::Ours } else { Owner::Foreign };
                rows.insert(path.clone(), Observed { value, owner });
            }
        }
        Ok(rows)
    }

    /// All steps or none: none begins before the content of all is on the disk.
    fn apply(&mut self, steps: &[Step<FilePath, File>]) -> Vec<Result<(), FileError>> {
        for (index, step) in steps.iter().enumerate() {
            if let Err(failure) = self.stage(step) {
                for step in steps {
                    // A draft that stays is overwritten by the next one.
                    let _ = self.settle(step.key());
                }
                return Self::all_failed(steps, index, failure);
            }
        }
        for (index, step) in steps.iter().enumerate() {
            if let Err(failure) = self.publish(step) {
                return Self::all_failed(steps, index, failure);
            }
        }
        steps.iter().map(|_| Ok(())).collect()
    }
}

#[cfg(test)]
mod tests;
