//! The built programs as they are packed: without what only a debugger reads, which would fill disks.
//!
//! Invariant: a program here is a copy of the one that is built now; two test binaries at once make the same file, each whole.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod state;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::bin;

/// Each has a package of its own.
pub(crate) const PROGRAMS: [&str; 4] = ["netd", "netd-cni", "ipvs-proxy", "netdadm"];

/// The root of the tree.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of the programs, stripped.
pub(crate) fn programs() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stripped");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for name in PROGRAMS {
        let (built, stripped) = (bin(name)?, folder.join(name));
        let is_of_now = match (fs::metadata(&built)?.modified(), fs::metadata(&stripped).and_then(|of| of.modified())) {
            (Ok(built), Ok(stripped)) => stripped > built,
            _ => false,
        };
        if !is_of_now {
            let scratch = tempfile::tempdir_in(&folder)?;
            let draft = scratch.path().join(name);
            words(Command::new("strip").arg("-o").arg(&draft).arg(&built))?;
            fs::rename(&draft, &stripped)?;
        }
    }
    Ok(folder)
}

/// A script of packaging/, with the stripped programs.
pub(crate) fn packaging(script: &str) -> Result<Command> {
    let mut command = Command::new(root().join("packaging").join(script));
    command.env("PROGRAMS", programs()?).env("COMPRESSION", "none");
    Ok(command)
}

/// Runs a command to its end and requires success; its standard output.
pub(crate) fn words(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {out}{errors}");
    Ok(out.into_owned())
}
