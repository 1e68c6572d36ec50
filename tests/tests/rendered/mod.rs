//! `configs/kubernetes` as kustomize and helm render it.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod rights;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::kubernetes;
use serde_json::Value;

/// Objects by kind and name.
pub(crate) type Objects = BTreeMap<(String, String), Value>;

pub(crate) fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/kubernetes")
}

/// What a program from the package of kubectl and helm prints.
pub(crate) fn rendered_by(name: &str, arguments: &[&str]) -> Result<String> {
    let program = kubernetes::tools().map_err(|absent| anyhow::anyhow!("{absent:?}"))?.join(name);
    let done = Command::new(program).args(arguments).current_dir(configs()).output()?;
    ensure!(done.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

pub(crate) fn objects(text: &str) -> Result<Objects> {
    let mut found = Objects::new();
    for object in serde_saphyr::from_multiple::<Value>(text)?.into_iter().filter(|object| !object.is_null()) {
        let key = (text_at(&object, "/kind")?.to_owned(), text_at(&object, "/metadata/name")?.to_owned());
        ensure!(found.insert(key.clone(), object).is_none(), "{key:?} twice");
    }
    Ok(found)
}

/// Every overlay with its objects.
pub(crate) fn overlays() -> Result<Vec<(String, Objects)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(configs().join("overlays"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let rendered = rendered_by("kubectl", &["kustomize", &format!("overlays/{name}")])?;
        found.push((name.clone(), objects(&rendered).context(name)?));
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

pub(crate) fn text_at<'a>(object: &'a Value, path: &str) -> Result<&'a str> {
    object.pointer(path).and_then(Value::as_str).with_context(|| format!("no text at {path} of {object}"))
}

pub(crate) fn list_at<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn of_kind<'a>(objects: &'a Objects, kind: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    objects.iter().filter(move |((found, _), _)| found == kind).map(|((_, name), object)| (name.as_str(), object))
}

/// Containers of a DaemonSet, those that come first included.
pub(crate) fn containers(set: &Value) -> impl Iterator<Item = &Value> {
    list_at(set, "/spec/template/spec/initContainers").chain(list_at(set, "/spec/template/spec/containers"))
}

/// The command line of a container.
pub(crate) fn words(container: &Value) -> Vec<&str> {
    list_at(container, "/command").chain(list_at(container, "/args")).filter_map(Value::as_str).collect()
}

/// Adds the paths of what was written and is not read so.
pub(crate) fn compare(written: &Value, read: &Value, path: &str, lost: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (name, value) in written {
                compare(value, read.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"), lost);
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (number, (one, other)) in written.iter().zip(read).enumerate() {
                compare(one, other, &format!("{path}[{number}]"), lost);
            }
        }
        _ if written == read => {}
        _ => lost.push(format!("{path}: {written} is read as {read}")),
    }
}
