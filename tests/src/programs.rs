//! Where the programs under test lie.
//!
//! Invariant: a test runs the program of its own build profile, or the one the caller names; it never takes one from PATH.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Environment variable that names the folder of the built programs.
pub(crate) const BIN_DIR_VARIABLE: &str = "NETD_BIN_DIR";

/// The built program `name`: in the folder `NETD_BIN_DIR`, else beside this test binary (`target/<profile>/`).
///
/// # Errors
/// When it has not been built, with the path and the command that builds it.
pub fn bin(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    if !path.is_file() {
        bail!(
            "program {} is not built: run `make build` (or `cargo build --workspace` in the same profile), or set {BIN_DIR_VARIABLE}",
            path.display()
        );
    }
    Ok(path)
}

/// The folder of [`bin`]'s programs.
///
/// # Errors
/// When this process's own path cannot be read.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(BIN_DIR_VARIABLE) {
        return std::path::absolute(&folder).with_context(|| format!("{BIN_DIR_VARIABLE}={}", folder.display()));
    }
    let exe = std::env::current_exe().context("find this program's own path")?;
    let folder = exe.parent().context("this program has no folder")?;
    // Cargo puts test binaries into deps/ and examples into examples/, programs one level above.
    let nested = ["deps", "examples"].iter().any(|name| folder.ends_with(name));
    Ok(if nested { folder.parent().unwrap_or(Path::new("/")) } else { folder }.to_owned())
}
