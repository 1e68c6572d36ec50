//! Prints what the released programs are made of, as CycloneDX 1.5 in JSON: every crate that is linked or that helps to build, with licence,
//! checksum and dependencies.
//!
//! Usage: `cargo metadata --format-version 1 --locked | sbom CARGO_LOCK TIME`. Invariant: the same lock file gives the same bytes, from whatever folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::{env, fs, io};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The programs, by their packages.
const PROGRAMS: [(&str, &str); 4] =
    [("netd", "netd"), ("cni-plugin", "netd-cni"), ("ipvs-proxy", "ipvs-proxy"), ("netdadm", "netdadm")];

/// A package of `cargo metadata`, with those that it needs.
struct Package<'a> {
    described: &'a Value,
    needs: BTreeSet<&'a str>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [lock, time] = arguments.as_slice() else {
        bail!("usage: cargo metadata --format-version 1 --locked | sbom CARGO_LOCK TIME")
    };
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("read what cargo metadata prints")?;
    let metadata: Value = serde_json::from_str(&text).context("standard input is no output of cargo metadata")?;
    let lock = fs::read_to_string(lock).with_context(|| format!("read {lock}"))?;
    println!("{:#}", bom(&metadata, &checksums(&lock), time)?);
    Ok(())
}

fn bom(metadata: &Value, checksums: &BTreeMap<(String, String), String>, time: &str) -> Result<Value> {
    let packages = packages(metadata)?;
    let programs = packages.iter().filter(|(_, package)| PROGRAMS.iter().any(|(name, _)| is_ours(package, name)));
    let mut wanted: Vec<&str> = programs.map(|(id, _)| *id).collect();
    if wanted.len() != PROGRAMS.len() {
        bail!("cargo metadata names {} of the {} programs", wanted.len(), PROGRAMS.len());
    }
    let mut linked = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if linked.insert(id) {
            wanted.extend(packages.get(id).with_context(|| format!("{id} is not described"))?.needs.iter());
        }
    }
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for package in linked.iter().filter_map(|id| packages.get(id)) {
        let reference = reference(package.described);
        let needs: BTreeSet<String> = package
            .needs
            .iter()
            .filter_map(|id| packages.get(id))
            .map(|needed| self::reference(needed.described))
            .collect();
        components.insert(reference.clone(), component(package.described, checksums, &reference));
        dependencies.insert(reference.clone(), json!({"ref": reference, "dependsOn": needs}));
    }
    let version =
        packages.values().find(|package| is_ours(package, "netd")).map(|package| text(package.described, "version"));
    let whole = json!({"type": "application", "bom-ref": "release", "name": "netd", "version": version});
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": time, "component": whole},
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    }))
}

/// All packages by their ids; dependencies that tests alone have are left out.
fn packages(metadata: &Value) -> Result<BTreeMap<&str, Package<'_>>> {
    let described = metadata.get("packages").and_then(Value::as_array).context("no packages")?;
    let nodes = metadata.pointer("/resolve/nodes").and_then(Value::as_array).context("no resolve.nodes")?;
    let mut packages: BTreeMap<&str, Package<'_>> = described
        .iter()
        .map(|described| (text(described, "id"), Package { described, needs: BTreeSet::new() }))
        .collect();
    for node in nodes {
        let deps = node.get("deps").and_then(Value::as_array).into_iter().flatten();
        let needs = deps.filter(|dep| is_of_a_build(dep)).map(|dep| text(dep, "pkg"));
        packages.get_mut(text(node, "id")).context("a node without a package")?.needs.extend(needs);
    }
    Ok(packages)
}

fn is_of_a_build(dep: &Value) -> bool {
    let kinds = dep.get("dep_kinds").and_then(Value::as_array);
    kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind.get("kind").and_then(Value::as_str) != Some("dev")))
}

/// A package of the workspace has no source.
fn is_ours(package: &Package<'_>, name: &str) -> bool {
    text(package.described, "name") == name && text(package.described, "source").is_empty()
}

fn reference(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version"))
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>, reference: &str) -> Value {
    let (name, version) = (text(package, "name").to_owned(), text(package, "version").to_owned());
    let program = PROGRAMS.iter().find(|(package, _)| *package == name).filter(|_| text(package, "source").is_empty());
    let mut component = json!({
        "type": if program.is_some() { "application" } else { "library" },
        "bom-ref": reference,
        "name": program.map_or(name.as_str(), |(_, program)| *program),
        "version": version,
        "purl": reference,
    });
    // The slash is how crates once wrote a choice.
    let licence = text(package, "license").replace('/', " OR ");
    let checksum = checksums.get(&(name, version));
    if let Some(fields) = component.as_object_mut() {
        if !licence.is_empty() {
            fields.insert("licenses".to_owned(), json!([{"expression": licence}]));
        }
        if let Some(checksum) = checksum {
            fields.insert("hashes".to_owned(), json!([{"alg": "SHA-256", "content": checksum}]));
        }
    }
    component
}

/// Checksums by name and version, out of a lock file.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")));
        line.map(|rest| rest.trim_end_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter_map(|package| {
            Some(((value(package, "name")?, value(package, "version")?), value(package, "checksum")?))
        })
        .collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
