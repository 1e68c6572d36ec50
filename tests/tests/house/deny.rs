//! `cargo deny check licenses bans sources` over `cargo metadata`, by the list in `deny.toml`: building cargo-deny takes a fresh machine
//! several minutes. Advisories need a network and stay with `make deny`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::root;

/// What `deny.toml` says of these three checks.
struct Rules {
    targets: Vec<String>,
    licences: Vec<String>,
    banned: Vec<String>,
    denies_wildcards: bool,
    denies_other_sources: bool,
}

impl Rules {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(root().join("deny.toml"))?;
        let section = |name: &str| {
            text.split(&format!("[{name}]\n")).nth(1).map(|rest| rest.split("\n[").next().unwrap_or_default())
        };
        let list = |name: &str, key: &str| -> Result<Vec<String>> {
            let body = section(name).with_context(|| format!("deny.toml has no [{name}]"))?;
            let value = body.split(&format!("{key} = [")).nth(1).with_context(|| format!("[{name}] has no {key}"))?;
            Ok(value
                .split("\n]")
                .next()
                .unwrap_or_default()
                .split(']')
                .next()
                .unwrap_or_default()
                .split('"')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect())
        };
        let bans = section("bans").context("deny.toml has no [bans]")?;
        let banned = bans.lines().filter_map(|line| line.trim().strip_prefix("{ name = \"")?.split('"').next());
        let sources = section("sources").context("deny.toml has no [sources]")?;
        Ok(Self {
            targets: list("graph", "targets")?,
            licences: list("licenses", "allow")?,
            banned: banned.map(str::to_owned).collect(),
            denies_wildcards: bans.contains("wildcards = \"deny\""),
            denies_other_sources: sources.contains("unknown-registry = \"deny\"")
                && sources.contains("unknown-git = \"deny\""),
        })
    }
}

/// What is against the rules, and what is only worth a warning: one crate in several versions.
pub(crate) fn check() -> Result<(Vec<String>, Vec<String>)> {
    let rules = Rules::read()?;
    ensure!(
        !rules.licences.is_empty() && !rules.banned.is_empty() && !rules.targets.is_empty(),
        "deny.toml was read wrongly"
    );
    ensure!(rules.denies_wildcards && rules.denies_other_sources, "deny.toml allows what it denied");
    let packages = packages(&rules.targets)?;
    ensure!(packages.len() > 50, "only {} packages", packages.len());
    let (mut wrong, mut versions, mut registries) =
        (Vec::new(), BTreeMap::<String, BTreeSet<String>>::new(), BTreeSet::new());
    for package in &packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (name, version) = (text("name"), text("version"));
        let licence = text("license");
        if !allowed(&licence, &rules.licences) {
            wrong.push(format!("licence of {name} {version}: {licence:?} is not in the list"));
        }
        if rules.banned.contains(&name) {
            wrong.push(format!("{name} {version} is banned"));
        }
        match package["source"].as_str() {
            None => wrong.extend(wildcards(package).map(|to| format!("{name} takes any version of {to}"))),
            Some(source) if source.starts_with("registry+") => drop(registries.insert(source.to_owned())),
            Some(source) => wrong.push(format!("source of {name} {version}: {source}")),
        }
        versions.entry(name).or_default().insert(version);
    }
    // The registry is the default one, or what a machine sets in its place; two would be one too many.
    ensure!(registries.len() == 1, "several registries: {registries:?}");
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    Ok((wrong, several.map(|(name, versions)| format!("{name}: {versions:?}")).collect()))
}

/// The packages that are built for one of the targets.
fn packages(targets: &[String]) -> Result<Vec<Value>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"]).current_dir(root());
    for target in targets {
        command.args(["--filter-platform", target]);
    }
    let output = command.output().context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("no resolved graph")?;
    let built: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().context("no packages")?;
    Ok(packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| built.contains(id))).cloned().collect())
}

/// Dependencies of one of our own packages that any version would satisfy.
fn wildcards(package: &Value) -> impl Iterator<Item = String> + use<> {
    let dependencies = package["dependencies"].as_array().cloned().unwrap_or_default();
    dependencies.into_iter().filter_map(|dependency| {
        let any = dependency["req"].as_str() == Some("*") && dependency["path"].is_null();
        any.then(|| dependency["name"].as_str().unwrap_or_default().to_owned())
    })
}

/// Whether an SPDX expression can be met with licences of the list.
fn allowed(expression: &str, list: &[String]) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut at = 0;
    !words.is_empty() && either(&words, &mut at, list) && at == words.len()
}

fn either(words: &[&str], at: &mut usize, list: &[String]) -> bool {
    let mut met = both(words, at, list);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(words, at, list);
    }
    met
}

fn both(words: &[&str], at: &mut usize, list: &[String]) -> bool {
    let mut met = one(words, at, list);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, list);
    }
    met
}

fn one(words: &[&str], at: &mut usize, list: &[String]) -> bool {
    let word = words.get(*at).copied().unwrap_or_default();
    *at += 1;
    if word == "(" {
        let met = either(words, at, list);
        *at += 1;
        return met;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    list.contains(&licence)
}

/// The reader of licences, shown on the forms that occur.
pub(crate) fn check_reader() {
    let list = ["MIT".to_owned(), "Apache-2.0".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for met in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "(GPL-3.0 OR MIT) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception OR X",
    ] {
        assert!(allowed(met, &list), "{met}");
    }
    for unmet in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT AND X) OR Y", "MIT WITH Z"] {
        assert!(!allowed(unmet, &list), "{unmet}");
    }
}
