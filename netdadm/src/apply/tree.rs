//! What a rendered folder has for one host: its manifest and every file of it, each held against its digest.
//!
//! Invariant: a tree that was read is whole: nothing of the manifest is missing or different, and nothing stands beside it that the manifest
//! does not name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use host::manifest::Digest;
use host::{FilePath, Manifest};

/// A host's part of a rendered folder.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) manifest: Manifest,
    pub(super) contents: BTreeMap<FilePath, Vec<u8>>,
}

/// Reads `hosts/HOST` of the folder `out`.
///
/// # Errors
/// When there is no such host, its manifest is refused, or a file is missing, different or not named.
pub(super) fn read(out: &Path, host: &str) -> Result<Tree, String> {
    let hosts = out.join("hosts");
    let folder = hosts.join(host);
    let path = folder.join("manifest.json");
    // Neither nothing nor `..` is a name.
    if Path::new(host).file_name() != Some(OsStr::new(host)) || !folder.is_dir() {
        return Err(format!("{} has no host {host:?}; it has {}", out.display(), names(&hosts)));
    }
    let bytes = bounded::read(&path, bounded::MANIFEST).map_err(|cause| format!("read {}: {cause}", path.display()))?;
    let manifest = Manifest::parse(&bytes).map_err(|refusal| format!("{}: {refusal}", path.display()))?;
    if manifest.host != host {
        return Err(format!("{} is of host {}, not of {host}; render the folder again", path.display(), manifest.host));
    }
    let root = folder.join("root");
    let mut contents = BTreeMap::new();
    for (file, entry) in &manifest.files {
        let from = root.join(file.strip_prefix("/").unwrap_or(file));
        let content = plain(&from)?;
        let found = Digest::of(&content);
        if found != entry.sha256 {
            let found = found.as_str();
            return Err(format!(
                "{} has the SHA-256 {found}, its manifest says {}: it was changed or cut off on its way; copy the folder again",
                from.display(),
                entry.sha256
            ));
        }
        contents.insert(FilePath::from(file.as_path()), content);
    }
    let mut found = Vec::new();
    list(&root, &mut found)?;
    let named = |path: &&PathBuf| {
        let inside = path.strip_prefix(&root).map(|inside| Path::new("/").join(inside));
        !inside.is_ok_and(|inside| manifest.files.contains_key(&inside))
    };
    match found.iter().find(named) {
        Some(other) => Err(format!("{} is not in the manifest; render the folder again", other.display())),
        None => Ok(Tree { manifest, contents }),
    }
}

/// The content of a file that is no link: a tree that was copied may not lead elsewhere.
fn plain(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |cause| format!("read {}: {cause}; the folder is not whole, copy it again", path.display());
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{} is no file", path.display()));
    }
    bounded::read(path, bounded::MANIFEST).map_err(failed)
}

/// Every file below `folder`.
fn list(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let failed = |cause| format!("list {}: {cause}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_type().map_err(failed)?.is_dir() {
            true => list(&entry.path(), found)?,
            false => found.push(entry.path()),
        }
    }
    Ok(())
}

/// The hosts of a folder, for a message.
fn names(hosts: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(hosts)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    if names.is_empty() { "none: is it a folder of `netdadm render`?".to_owned() } else { names.join(", ") }
}
