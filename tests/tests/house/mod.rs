//! The gates of the house: what a program can check of the rules in ARCHITECTURE.md and CONTRIBUTING.md, from the sources.
//!
//! Invariant: the sources are read as text. Nothing is guessed about formatting that rustfmt does not guarantee.

pub(crate) mod deny;
pub(crate) mod dependencies;
pub(crate) mod nouns;
pub(crate) mod parsers;
pub(crate) mod reads;
pub(crate) mod rooms;
pub(crate) mod size;
mod source;
pub(crate) mod words;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

pub(crate) use source::{Source, every_file, sources};

/// The programs, by folder and package name.
pub(crate) const PROGRAMS: [&str; 4] = ["netd", "cni-plugin", "ipvs-proxy", "netdadm"];
/// The shared crates.
pub(crate) const LIBRARIES: [&str; 7] = ["bounded", "netstate", "reconcile", "kernel", "cluster", "daemon", "host"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Folders of what is shipped, and of the lab.
pub(crate) fn product() -> Vec<String> {
    let programs = PROGRAMS.iter().map(|program| format!("{program}/src"));
    let libraries = LIBRARIES.iter().map(|library| format!("lib/{library}/src"));
    programs.chain(libraries).collect()
}

/// Fails with all of `wrong`, one a line.
pub(crate) fn none_of(gate: &str, wrong: &[String]) -> Result<()> {
    ensure!(wrong.is_empty(), "{gate}: {} against the rule:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
