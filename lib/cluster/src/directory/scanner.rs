//! Reading the manifests of a directory, only those that may have changed.
//!
//! Blocking; runs on tokio's blocking threads. Invariant: nothing but regular files (symbolic links followed)
//! is opened, and none beyond [`MAX_FILE`] is read, so a pipe or a huge file in the directory stops nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::{Reading, Readings};
use crate::Words;
use crate::manifest::{self, Form, Kind};

/// Largest manifest, in bytes. etcd and the Kubernetes API refuse objects above 1.5 MiB; a file may hold many.
pub(super) const MAX_FILE: u64 = 16 << 20;

/// What distinguishes one version of a file from the next: device, inode, size, modification and change time.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// The reader of one directory.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: PathBuf,
    kinds: &'static [Kind],
    stamps: BTreeMap<String, Stamp>,
}

/// Which files get special treatment in a scan.
#[derive(Debug, Clone, Default)]
pub(super) struct Hints {
    /// Known to have changed: read even when the stamp is the same (time stamps are coarse).
    pub(super) changed: BTreeSet<String>,
    /// Being written just now: left alone until closed.
    pub(super) writing: BTreeSet<String>,
    /// Put aside just now: as they were.
    pub(super) aside: BTreeSet<String>,
}

impl Scanner {
    pub(super) fn new(dir: &Path, kinds: &'static [Kind]) -> Self {
        Self { dir: dir.to_path_buf(), kinds, stamps: BTreeMap::new() }
    }

    /// Reads the directory.
    ///
    /// # Errors
    /// When the directory itself cannot be read; a file that cannot is a [`Reading::Bad`].
    pub(super) fn scan(&mut self, hints: &Hints) -> io::Result<Readings> {
        let mut readings = Readings::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(form) = Form::of(&name) else { continue };
            if let Some(reading) = self.read(&entry.path(), &name, form, hints) {
                readings.insert(name, reading);
            }
        }
        for name in hints.aside.iter().filter(|name| Form::of(name).is_some()) {
            readings.entry(name.clone()).or_insert(Reading::Same);
        }
        self.stamps.retain(|name, _| readings.contains_key(name));
        Ok(readings)
    }

    /// `None` for a directory, and for a file that vanished meanwhile.
    fn read(&mut self, path: &Path, name: &str, form: Form, hints: &Hints) -> Option<Reading> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return None,
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                return None;
            }
            Err(error) => return Some(self.bad(name, format!("cannot be read: {error}"))),
        };
        if hints.writing.contains(name) || hints.aside.contains(name) {
            return Some(Reading::Same);
        }
        let stamp = stamp(&metadata);
        if self.stamps.get(name) == Some(&stamp) && !hints.changed.contains(name) {
            return Some(Reading::Same);
        }
        if !metadata.is_file() {
            return Some(self.bad(name, "is not a regular file".into()));
        }
        if metadata.len() > MAX_FILE {
            return Some(self.bad(name, format!("has {} bytes; accepted: up to {MAX_FILE}", metadata.len())));
        }
        let reading = match fs::read(path) {
            Ok(text) => match manifest::parse(form, &text, self.kinds) {
                Ok(manifest) => Reading::Good(manifest),
                Err(error) => Reading::Bad(error.to_string(), Words::of(&text)),
            },
            Err(error) => return Some(self.bad(name, format!("cannot be read: {error}"))),
        };
        self.stamps.insert(name.to_owned(), stamp);
        Some(reading)
    }

    /// A file whose text was not seen is read again in the next scan.
    fn bad(&mut self, name: &str, reason: String) -> Reading {
        self.stamps.remove(name);
        Reading::Bad(reason, Words::default())
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    (metadata.dev(), metadata.ino(), metadata.len(), modified, changed)
}
