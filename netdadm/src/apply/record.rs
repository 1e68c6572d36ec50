//! What earlier calls wrote on a host, and what the last one was doing when it was cut off.
//!
//! Invariant: the record is written whole by a rename, before what it announces begins and after what it reports is on the disk: whatever
//! moment a call ends at, the next one knows every file that it may have touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cluster::problem::elided;
use host::manifest::{Digest, Manifest};
use host::{File, FilePath, Files};
use serde::{Deserialize, Serialize};

/// Where the record stands on its host.
const APPLIED: &str = "/var/lib/netdadm/applied.json";
/// Held by the call that is at work.
const LOCK: &str = "/var/lib/netdadm/lock";
/// Below it, what the calls replaced, by their numbers.
const KEPT: &str = "/var/lib/netdadm/kept";
/// The form of records that this program writes and reads.
const FORMAT: u32 = 1;

/// The state of a host in the eyes of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) format: u32,
    /// Of which host of which cluster the files are.
    pub(super) of: Option<Whose>,
    /// Every file that stands as we wrote it.
    pub(super) files: BTreeMap<FilePath, File>,
    /// The folders that we made, an outer one before what is in it.
    pub(super) folders: Vec<PathBuf>,
    /// The units that we started, in the order in which they start.
    pub(super) units: Vec<String>,
    /// Units that may run with other files than those that stand there.
    pub(super) stale: Vec<String>,
    /// How many calls have changed something.
    pub(super) calls: u64,
    /// What was begun and has not ended.
    pub(super) underway: Option<Underway>,
    /// Files beside which something may lie still that was replaced.
    pub(super) replaced: Vec<FilePath>,
}

/// In which form a record is.
#[derive(Debug, Deserialize)]
struct Form {
    format: u32,
}

/// A host of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    pub(super) cluster: String,
    pub(super) authority: Digest,
    pub(super) host: String,
}

/// What a call is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Underway {
    pub(super) changes: Vec<Change>,
    /// The folders that it has to make.
    pub(super) folders: Vec<PathBuf>,
}

/// A file before and after; `None` where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) path: FilePath,
    pub(super) before: Option<Before>,
    pub(super) after: Option<File>,
}

/// What stood at a path, as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Before(pub(super) String);

impl Whose {
    /// The host that a manifest is for.
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self { cluster: manifest.cluster.clone(), authority: manifest.authority.clone(), host: manifest.host.clone() }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self {
            format: FORMAT,
            of: None,
            files: BTreeMap::new(),
            folders: Vec::new(),
            units: Vec::new(),
            stale: Vec::new(),
            calls: 0,
            underway: None,
            replaced: Vec::new(),
        }
    }
}

impl Record {
    /// Reads the record of a host; an empty one where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not of our making.
    pub(super) fn read(files: &Files) -> Result<Self, String> {
        let Some(bytes) = files.read(Path::new(APPLIED)).map_err(|error| error.to_string())? else {
            return Ok(Self::default());
        };
        let refused = |cause: String| {
            format!(
                "{APPLIED}: {cause}; it says which files netdadm wrote here. Without it, moved away, no file counts as ours"
            )
        };
        // First of all, because fields of another form are others.
        match serde_json::from_slice::<Form>(&bytes) {
            Ok(Form { format }) if format != FORMAT => {
                Err(refused(format!("its format is {format}, which another version of netdadm wrote")))
            }
            _ => serde_json::from_slice(&bytes).map_err(|cause| refused(elided(cause.to_string()))),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written; the one before stays.
    pub(super) fn write(&self, files: &Files) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(self).map_err(|cause| format!("print the record: {cause}"))?;
        files.write(Path::new(APPLIED), &text).map_err(|error| error.to_string())
    }

    /// Refuses a folder of another cluster or another host than was applied before.
    ///
    /// # Errors
    /// In which they differ.
    pub(super) fn check(&self, manifest: &Manifest) -> Result<(), String> {
        let Some(of) = &self.of else { return Ok(()) };
        let (differs, was, is) = if of.host != manifest.host {
            ("host", of.host.as_str(), manifest.host.as_str())
        } else if of.cluster != manifest.cluster {
            ("cluster", of.cluster.as_str(), manifest.cluster.as_str())
        } else if of.authority != manifest.authority {
            ("authority (SHA-256 of the cluster's CA)", of.authority.as_str(), manifest.authority.as_str())
        } else {
            return Ok(());
        };
        Err(format!(
            "this host was applied from a folder of another {differs}: {was}, the folder's is {is}. If it is to change over, say --adopt"
        ))
    }

    /// Whether the last call to its end was one for this host of this cluster.
    pub(super) fn is_of(&self, manifest: &Manifest) -> bool {
        self.of.as_ref() == Some(&Whose::of(manifest)) && self.stale.is_empty()
    }

    /// The copy of `path` that the call `number` keeps.
    pub(super) fn kept(number: u64, path: &FilePath) -> PathBuf {
        let inside = path.as_path().strip_prefix("/").unwrap_or(path.as_path());
        Path::new(KEPT).join(number.to_string()).join(inside)
    }

    /// Where all copies of the call `number` lie.
    pub(super) fn kept_folder(number: u64) -> PathBuf {
        Path::new(KEPT).join(number.to_string())
    }

    /// Makes sure that this is the only call at work, for as long as the result lives.
    ///
    /// # Errors
    /// When another one is.
    pub(super) fn lock(files: &Files) -> Result<impl Sized + use<>, String> {
        let lock = files.lock(Path::new(LOCK)).map_err(|error| error.to_string())?;
        lock.ok_or_else(|| {
            format!("another `netdadm apply` is at work on this host (it holds {LOCK}); wait for its end")
        })
    }
}
