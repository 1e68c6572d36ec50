//! The commands of an operator: objects in etcd, and the daemon's status.
//!
//! Invariant: nothing is written that the daemon would refuse, and nothing at all when one object of a manifest is malformed.

mod apply;
mod delete;
mod list;
mod status;
mod tables;

use std::io::Read;

use anyhow::Context;
use cluster::etcd::{Client, Prefix, Store};
use cluster::manifest::{self, Form};

pub(crate) use status::{status, text};
pub(crate) use tables::tables;

use crate::command::args::Verb;
use crate::object::key::ObjectKey;

/// Objects of a manifest: each with its key and its JSON.
type Objects = Vec<(ObjectKey, Vec<u8>)>;

/// Carries out a command that works on the store.
///
/// # Errors
/// What is wrong with the manifests, or what the store answered.
pub(crate) fn on_store((client, prefix): (Client, Prefix), verb: &Verb) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let store = Store::new(client);
    runtime.block_on(async {
        match verb {
            Verb::Apply { filename } => apply::apply(&store, &prefix, filename).await,
            Verb::Delete { filename, objects, namespace } => {
                delete::delete(&store, &prefix, filename, objects, namespace).await
            }
            Verb::List => list::list(&store, &prefix).await,
            Verb::Status { .. } | Verb::Tables { .. } => Ok(()),
        }
    })
}

/// Reads manifests; objects of kinds that are not ours are named in the error.
fn read_manifests(files: &[String]) -> anyhow::Result<Objects> {
    let mut objects = Objects::new();
    for file in files {
        let text = read_file(file).with_context(|| format!("cannot read {file}"))?;
        let form = Form::of(file).unwrap_or(Form::Yaml);
        for object in manifest::parse(form, &text).with_context(|| file.clone())? {
            let key = ObjectKey::from_manifest(&object.key);
            let key =
                key.with_context(|| format!("{file}: {}: accepted kinds are Service and EndpointSlice", object.key))?;
            objects.push((key, object.json));
        }
    }
    Ok(objects)
}

fn read_file(file: &str) -> std::io::Result<Vec<u8>> {
    if file != "-" {
        return std::fs::read(file);
    }
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text)?;
    Ok(text)
}
