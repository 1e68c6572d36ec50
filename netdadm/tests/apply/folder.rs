//! A rendered folder of one host, made by hand, and the tree that it is applied to.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) const HOST: &str = "hdss7-12";

/// What two clusters of one name differ in.
pub(crate) fn authority(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files by path, with mode and content.
pub(crate) type Contents<'a> = &'a [(&'a str, &'a str, &'a str)];

/// Makes `hosts/HOST` with these files.
pub(crate) fn folder(files: Contents<'_>) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let host = out.path().join("hosts").join(HOST);
    let mut entries = BTreeMap::new();
    for (path, mode, content) in files {
        let to = host.join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(&to, content).unwrap();
        entries.insert(*path, json!({"mode": mode, "owner": "root:root", "sha256": sha256(content.as_bytes())}));
    }
    fs::create_dir_all(host.join("root")).unwrap();
    let manifest = json!({
        "format": 1, "cluster": "reference", "authority": authority(1), "host": HOST, "files": entries, "units": [],
    });
    fs::write(host.join("manifest.json"), manifest.to_string()).unwrap();
    out
}

/// Changes the manifest of a folder.
pub(crate) fn change(out: &TempDir, change: impl FnOnce(&mut Value)) {
    let path = out.path().join("hosts").join(HOST).join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

pub(crate) fn command(out: &Path, root: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netdadm"));
    command.args(["apply", "--host", HOST, "--yes", "--root"]).arg(root).args(more).arg(out);
    command
}

/// What one call printed, and its status.
pub(crate) fn apply(out: &TempDir, root: &TempDir, more: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = command(out.path(), root.path(), more).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

/// Every file and folder below `root` but our own records, with what can be seen of it.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let text = if metadata.is_dir() {
                open.push(path.clone());
                format!("{mode:o} folder")
            } else {
                format!("{mode:o} {} {}", metadata.nlink(), fs::read_to_string(&path).unwrap())
            };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    found.retain(|path, _| !path.starts_with("var/lib/netdadm"));
    for folder in ["var", "var/lib"] {
        found.remove(Path::new(folder));
    }
    found
}
