//! A file as a row: its path, what it holds, who may use it, and what can go wrong with it.
//!
//! Invariant: a row never holds content, only its digest, so no message can print a key.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use reconcile::{Classify, RetryClass};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::manifest::{Digest, FileEntry, FileOwner};

/// The path of a file on its host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FilePath(PathBuf);

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// A file, by the digest of its content.
    Sha256(Digest),
    /// A symbolic link, by where it leads.
    Link(PathBuf),
    /// Neither.
    #[serde(skip)]
    Other(String),
}

/// A row: what stands at a path, and who may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// What it holds.
    pub content: Content,
    /// Its permissions.
    pub mode: u32,
    /// Who owns it.
    pub owner: FileOwner,
}

/// A file could not be read or written.
#[derive(Debug, Error)]
#[error("{operation} {}: {cause}{}", path.display(), advice(cause))]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    cause: io::Error,
    is_consequence: bool,
}

impl FilePath {
    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl From<&Path> for FilePath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl File {
    /// What was found at a path.
    pub(super) fn found(content: Content, mode: u32, owner: &str) -> Self {
        let named = FileOwner::try_from(owner.to_owned());
        // A link's own mode says nothing.
        let mode = if matches!(content, Content::Link(_)) { 0o777 } else { mode };
        match named {
            Ok(owner) => Self { content, mode, owner },
            // A name of another form can be nobody's that a manifest names.
            Err(_) => Self { content, mode, owner: FileOwner::named("?") },
        }
    }
}

impl From<&FileEntry> for File {
    fn from(entry: &FileEntry) -> Self {
        let content = Content::Sha256(entry.sha256.clone());
        Self { content, mode: entry.mode.bits(), owner: entry.owner.clone() }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Sha256(digest) => {
                let begin: String = digest.as_str().chars().take(12).collect();
                write!(f, "{:04o} {} sha256 {begin}", self.mode, self.owner)
            }
            Content::Link(to) => write!(f, "link to {}", to.display()),
            Content::Other(kind) => f.write_str(kind),
        }
    }
}

impl FileError {
    pub(super) fn at(operation: &'static str, path: &Path, cause: io::Error) -> Self {
        Self { operation, path: path.to_owned(), cause, is_consequence: false }
    }

    /// Nothing was done because another file failed.
    pub(super) fn kept_back(path: &Path, by: &Self) -> Self {
        let cause = io::Error::other(format!("another failed: {by}"));
        Self { operation: "leave", path: path.to_owned(), cause, is_consequence: true }
    }

    /// Whether nothing was done only because another file of the batch failed.
    #[must_use]
    pub const fn is_consequence(&self) -> bool {
        self.is_consequence
    }
}

impl Classify for FileError {
    fn class(&self) -> RetryClass {
        match self.cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::Interrupted => RetryClass::Retry,
            io::ErrorKind::NotFound => RetryClass::Wait,
            _ => RetryClass::Refuse,
        }
    }

    fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }
}

/// What to do about it, where that is not what the system's own words say.
fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull => "; make room (df, du) and run it again",
        io::ErrorKind::PermissionDenied => "; run it as root",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is mounted for reading only",
        _ => "",
    }
}
