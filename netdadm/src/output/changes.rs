//! `Changes`: what every host must do after a render, in the order in which hosts are taken.
//!
//! Pure. Invariant: a unit is named only if a file that it reads differs, or it is new or not wanted any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use host::{Manifest, UnitEntry};
use serde::Serialize;

/// What one host must do, in the order of its units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HostChanges {
    /// The host.
    pub(crate) host: String,
    /// Units that are not wanted any more.
    pub(crate) stop: Vec<String>,
    /// Units that it had not.
    pub(crate) start: Vec<String>,
    /// Units that must be started again, with the files that say so.
    pub(crate) restart: Vec<Because>,
    /// Units that must read their files again.
    pub(crate) reload: Vec<Because>,
    /// Files that differ and that no unit must do anything for.
    pub(crate) files: Vec<PathBuf>,
}

/// A unit, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Because {
    /// The unit.
    pub(crate) unit: String,
    /// Files that differ.
    pub(crate) files: Vec<PathBuf>,
}

/// What every host must do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes(pub(crate) Vec<HostChanges>);

impl Changes {
    /// From the manifests of before to those of now, which are in the order of hosts.
    pub(crate) fn between(before: &BTreeMap<String, Manifest>, now: &[Manifest]) -> Self {
        let mut found: Vec<HostChanges> =
            now.iter().filter_map(|manifest| HostChanges::of(before.get(&manifest.host), manifest)).collect();
        let gone = before.values().filter(|old| !now.iter().any(|manifest| manifest.host == old.host));
        found.extend(gone.map(|old| HostChanges {
            host: old.host.clone(),
            stop: old.units.iter().rev().map(|unit| unit.name.clone()).collect(),
            start: Vec::new(),
            restart: Vec::new(),
            reload: Vec::new(),
            files: old.files.keys().cloned().collect(),
        }));
        Self(found)
    }
}

impl HostChanges {
    fn of(before: Option<&Manifest>, now: &Manifest) -> Option<Self> {
        let differing = differing(before, now);
        let had = |unit: &UnitEntry| before.is_some_and(|old| old.units.iter().any(|one| one.name == unit.name));
        let wanted = |name: &str| now.units.iter().any(|unit| unit.name == name);
        let old = before.map_or(&[][..], |old| &old.units).iter().rev();
        let stop = old.filter(|unit| !wanted(&unit.name)).map(|unit| unit.name.clone()).collect();
        let (mut start, mut restart, mut reload) = (Vec::new(), Vec::new(), Vec::new());
        let mut noted: BTreeSet<&Path> = BTreeSet::new();
        for unit in &now.units {
            let of = |files: &[PathBuf]| -> Vec<PathBuf> {
                files.iter().filter(|path| differing.contains(path.as_path())).cloned().collect()
            };
            noted.extend(unit.restart.iter().chain(&unit.reload).map(PathBuf::as_path));
            let (again, read) = (of(&unit.restart), of(&unit.reload));
            if !had(unit) {
                start.push(unit.name.clone());
            } else if !again.is_empty() {
                restart.push(Because { unit: unit.name.clone(), files: again });
            } else if !read.is_empty() {
                reload.push(Because { unit: unit.name.clone(), files: read });
            }
        }
        let files = differing.iter().filter(|path| !noted.contains(*path)).map(|path| path.to_path_buf()).collect();
        let changes = Self { host: now.host.clone(), stop, start, restart, reload, files };
        (!differing.is_empty() || !changes.stop.is_empty() || !changes.start.is_empty()).then_some(changes)
    }
}

/// Files that came, went or have another content, mode or owner.
fn differing<'a>(before: Option<&'a Manifest>, now: &'a Manifest) -> BTreeSet<&'a Path> {
    let old = |path: &PathBuf| before.and_then(|old| old.files.get(path));
    let gone = before.into_iter().flat_map(|old| old.files.keys()).filter(|path| !now.files.contains_key(*path));
    let differ = now.files.iter().filter(|(path, entry)| old(path) != Some(*entry)).map(|(path, _)| path);
    gone.chain(differ).map(PathBuf::as_path).collect()
}
