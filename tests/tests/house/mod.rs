//! The gates of the house: what a program can check of the rules in ARCHITECTURE.md and CONTRIBUTING.md, from the sources.
//!
//! Invariant: the sources are read as text. Nothing is guessed about formatting that rustfmt does not guarantee.

pub(crate) mod deny;
pub(crate) mod dependencies;
pub(crate) mod nouns;
pub(crate) mod rooms;
pub(crate) mod size;
mod source;
pub(crate) mod words;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

pub(crate) use source::{Source, every_file, sources};

/// The programs, by folder and package name.
pub(crate) const PROGRAMS: [&str; 3] = ["netd", "cni-plugin", "ipvs-proxy"];
/// The shared crates.
pub(crate) const LIBRARIES: [&str; 5] = ["netstate", "reconcile", "kernel", "cluster", "daemon"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Folders of what is shipped, and of the lab.
pub(crate) fn product() -> Vec<String> {
    let programs = PROGRAMS.iter().map(|program| format!("{program}/src"));
    let libraries = LIBRARIES.iter().map(|library| format!("lib/{library}/src"));
    programs.chain(libraries).collect()
}

/// What is not yet as the gate wants it, by gate and beginning of the path: reported at each run, and taken out when it is mended.
const OPEN: [(&str, &str); 1] = [("nouns", "cni-plugin/")];

/// Fails with all of `wrong` that is not open, one a line.
pub(crate) fn none_of(gate: &str, wrong: &[String]) -> Result<()> {
    let is_open = |line: &&String| OPEN.iter().any(|(of, path)| *of == gate && line.starts_with(path));
    let (open, closed): (Vec<_>, Vec<_>) = wrong.iter().partition(is_open);
    if !open.is_empty() {
        eprintln!("house: {gate}: {} OPEN, not passed", open.len());
    }
    if std::env::var_os("HOUSE_OPEN").is_some() {
        open.iter().for_each(|line| eprintln!("  {line}"));
    }
    let lines: Vec<&str> = closed.into_iter().map(String::as_str).collect();
    ensure!(lines.is_empty(), "{gate}: {} against the rule:\n{}", lines.len(), lines.join("\n"));
    Ok(())
}
