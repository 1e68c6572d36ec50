//! Reading the manifests of a directory, only those that may have changed.
//!
//! Blocking; runs on tokio's blocking threads. Invariant: nothing but regular files (symbolic links followed)
//! is opened, and none beyond [`MANIFEST`] is read, so a pipe or a huge file in the directory stops nobody; of a directory with more than
//! [`MAX_ENTRIES`] nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::{Reading, Readings};
use crate::Words;
use crate::manifest::{self, Form, Kind};
use bounded::MANIFEST;

/// The most that may be in a directory, manifests or not: twelve times the files that 10,000 Services are.
const MAX_ENTRIES: usize = 1 << 17;

/// What distinguishes one version of a file from the next: device, inode, size, modification and change time.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// The reader of one directory.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: PathBuf,
    kinds: &'static [Kind],
    stamps: BTreeMap<String, Stamp>,
    most: usize,
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
        Self { dir: dir.to_path_buf(), kinds, stamps: BTreeMap::new(), most: MAX_ENTRIES }
    }

    /// Reads the directory.
    ///
    /// # Errors
    /// When the directory itself cannot be read, or has too many entries; a file that cannot is a [`Reading::Bad`].
    pub(super) fn scan(&mut self, hints: &Hints) -> io::Result<Readings> {
        let mut readings = Readings::new();
        for (count, entry) in fs::read_dir(&self.dir)?.enumerate() {
            if count >= self.most {
                let text = format!(
                    "it has more than {} entries, which is the limit: split it, or put more objects into a file",
                    self.most
                );
                return Err(io::Error::other(text));
            }
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
        if metadata.len() > MANIFEST {
            return Some(self.bad(name, format!("has {} bytes; accepted: up to {MANIFEST}", metadata.len())));
        }
        let reading = match bounded::read(path, MANIFEST) {
            Ok(text) if text.is_empty() => Reading::Empty,
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

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 1] = [Kind { group: "", versions: &["v1"], name: "Service", namespaced: true }];

    #[test]
    fn a_directory_with_too_many_entries_is_refused_whole_until_it_has_fewer() {
        let dir = tempfile::tempdir().unwrap();
        let mut scanner = Scanner::new(dir.path(), &KINDS);
        assert_eq!(scanner.most, 131_072);
        scanner.most = 3;
        for name in ["a.yaml", "b.json", "README", "c.yaml"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let error = scanner.scan(&Hints::default()).unwrap_err().to_string();
        assert!(error.contains("more than 3 entries"), "{error}");
        fs::remove_file(dir.path().join("README")).unwrap();
        assert_eq!(scanner.scan(&Hints::default()).unwrap().len(), 3);
    }

    #[test]
    fn a_manifest_of_more_than_16_mib_is_refused_with_what_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("a.yaml")).unwrap();
        file.set_len(MANIFEST + 1).unwrap();
        let readings = Scanner::new(dir.path(), &KINDS).scan(&Hints::default()).unwrap();
        let Some(Reading::Bad(reason, _)) = readings.get("a.yaml") else { panic!("{readings:?}") };
        assert_eq!(reason, "has 16777217 bytes; accepted: up to 16777216");
    }
}
