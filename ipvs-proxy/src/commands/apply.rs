//! `apply`: puts the objects of manifests into etcd.

use anyhow::{Context, bail};
use cluster::etcd::{Prefix, Store};
use daemon::terminal;

use super::{answered, read_manifests};
use crate::object::key::Kind;
use crate::source::{read_node, read_service, read_slice};

/// Checks every object, then writes those that differ in one transaction and prints each.
pub(super) async fn apply(store: &Store, prefix: &Prefix, files: &[String]) -> anyhow::Result<()> {
    let objects = read_manifests(files)?;
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    for (key, json) in &objects {
        let checked = match key.kind {
            Kind::Service => read_service(&key.name, json).map(|service| (service.skipped, Vec::new())),
            Kind::EndpointSlice => read_slice(&key.name, json).map(|slice| (slice.skipped, slice.unserved)),
            Kind::Node => read_node(&key.name, json).map(|node| (node.skipped, Vec::new())),
        };
        let (skipped, not_served) = checked.unwrap_or_else(|reason| (vec![reason], Vec::new()));
        problems.extend(skipped.iter().map(|reason| format!("{key}: {reason}")));
        notes.extend(not_served.iter().map(|field| format!("{key}: {field}")));
    }
    if !problems.is_empty() {
        bail!("nothing was applied:\n{}", problems.join("\n"));
    }
    if objects.is_empty() {
        bail!("no objects in {}", files.join(", "));
    }
    let (mut verbs, mut changed) = (Vec::new(), Vec::new());
    for (key, json) in objects {
        let path = prefix.key(&key.to_string());
        let before = answered(store.get(&path).await).context("nothing was applied")?;
        let verb = match before {
            Some(entry) if entry.value == json => "unchanged",
            Some(_) => "configured",
            None => "created",
        };
        verbs.push((key, verb));
        if verb != "unchanged" {
            changed.push((path, json));
        }
    }
    answered(store.put_all(&changed).await).context("some objects may not be applied")?;
    for (key, verb) in verbs {
        terminal::put(&format!("{key} {verb}\n"))?;
    }
    for note in notes {
        terminal::note(&format!("not served yet: {note}"));
    }
    Ok(())
}
