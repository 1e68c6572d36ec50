//! The image of our three programs, as the Containerfile makes it.
//!
//! Invariant: podman builds it on a machine of the lab, which reaches nothing else, from the programs that `make static` has linked.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::{Host, bin_dir};

use super::podman::Podman;

/// Where [`save`] puts the archive on the machine.
pub(crate) const ARCHIVE: &str = "/run/netd.tar";

/// The statically linked programs, where `make static` puts them.
fn programs() -> Result<PathBuf> {
    let folder = bin_dir()?.parent().context("a folder above the programs")?.join("image");
    for name in ["netd", "netd-cni", "ipvs-proxy"] {
        let there = folder.join(name).is_file();
        ensure!(there, "no {name} in {}: run `make static IMAGE_PROFILE=dev`", folder.display());
    }
    Ok(folder)
}

/// Why it cannot be built here.
pub(crate) fn obstacle() -> Option<String> {
    super::podman::obstacle().or_else(|| programs().err().map(|error| error.to_string()))
}

/// Builds it under this name.
pub(crate) fn build(host: &Host, name: &str) -> Result<Podman> {
    let podman = Podman::set_up(host)?;
    let containerfile = concat!(env!("CARGO_MANIFEST_DIR"), "/../Containerfile");
    let programs = programs()?;
    let context = programs.to_str().context("a path of UTF-8")?;
    podman.run(&["build", "-q", "-t", name, "-f", containerfile, context])?;
    Ok(podman)
}

/// Builds it under this name and writes it as an archive of docker's form.
pub(crate) fn save(host: &Host, name: &str) -> Result<Podman> {
    let podman = build(host, name)?;
    podman.run(&["save", "-q", "--format=docker-archive", "-o", ARCHIVE, name])?;
    Ok(podman)
}
