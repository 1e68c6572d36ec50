//! No crate names a dependency that its sources do not use, and the one table names none that no crate uses.

use std::fs;

use super::root;

/// Packages with a manifest of their own.
const PACKAGES: [&str; 13] = [
    "lib/bounded",
    "lib/netstate",
    "lib/reconcile",
    "lib/kernel",
    "lib/cluster",
    "lib/daemon",
    "lib/host",
    "netd",
    "cni-plugin",
    "ipvs-proxy",
    "netdadm",
    "tests",
    "tests/floor",
];

/// Dependencies that are there for what they switch on, and what that is.
const FOR_A_FEATURE: [(&str, &str, &str); 0] = [];

/// Dependencies that nothing names.
pub(crate) fn unused() -> Vec<String> {
    let mut found = Vec::new();
    let mut named = Vec::new();
    for package in PACKAGES {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        for (section, dependency) in dependencies(&manifest) {
            let folders: &[&str] = if section == "dependencies" { &["src"] } else { &["src", "tests", "benches"] };
            let used =
                folders.iter().any(|folder| names(&root().join(package).join(folder), &dependency.replace('-', "_")));
            let excused = FOR_A_FEATURE.iter().any(|(owner, name, _)| *owner == package && *name == dependency);
            if !used && !excused {
                found.push(format!("{package}/Cargo.toml: [{section}] {dependency}"));
            }
            named.push(dependency);
        }
    }
    let table = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for (section, dependency) in dependencies(&table) {
        if section == "workspace.dependencies" && !named.contains(&dependency) {
            found.push(format!("Cargo.toml: [{section}] {dependency}"));
        }
    }
    found
}

/// The names in all sections of dependencies.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let (mut found, mut section) = (Vec::new(), String::new());
    for line in manifest.lines() {
        if let Some(title) = line.strip_prefix('[') {
            section = title.trim_start_matches('[').trim_end_matches(']').to_owned();
        } else if section.ends_with("dependencies") {
            let name: String =
                line.chars().take_while(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect();
            if !name.is_empty() {
                found.push((section.clone(), name));
            }
        }
    }
    found
}

/// Whether a Rust file below `folder` has `name` as a path's beginning.
fn names(folder: &std::path::Path, name: &str) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return names(&path, name);
        }
        path.extension().is_some_and(|extension| extension == "rs")
            && fs::read_to_string(&path).is_ok_and(|text| {
                text.lines().any(|line| {
                    let code = line.split("//").next().unwrap_or_default();
                    code.match_indices(name).any(|(at, _)| {
                        let part = |letter: char| letter.is_alphanumeric() || letter == '_';
                        !code[..at].ends_with(part) && !code[at + name.len()..].starts_with(part)
                    })
                })
            })
    })
}
