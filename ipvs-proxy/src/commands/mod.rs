//! The commands of an operator: objects in etcd, and the daemon's status.
//!
//! Invariant: nothing is written that the daemon would refuse, and nothing at all when one object of a manifest is malformed.

mod apply;
mod delete;
mod list;
mod status;
mod tables;

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use cluster::ClusterError;
use cluster::etcd::{Client, Prefix, Store};
use cluster::manifest::{self, Form};

pub(crate) use status::{status, text};
pub(crate) use tables::tables;

use crate::command::args::Verb;
use crate::object::key::{Kind, ObjectKey};

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
            Verb::Doctor { .. }
            | Verb::Explain(_)
            | Verb::Status { .. }
            | Verb::Tables { .. }
            | Verb::Completions(_)
            | Verb::Man(_) => Ok(()),
        }
    })
}

/// What the store answered to somebody who asks once.
fn answered<T>(answer: Result<T, ClusterError>) -> anyhow::Result<T> {
    answer.map_err(|error| anyhow!(error.asked_once()))
}

/// Reads manifests; objects of kinds that are not ours are named in the error.
fn read_manifests(files: &[String]) -> anyhow::Result<Objects> {
    let mut objects = Objects::new();
    for file in files {
        let text = bounded::read_argument_bytes(Path::new(file), bounded::MANIFEST)
            .with_context(|| format!("cannot read {file}"))?;
        let form = Form::of(file).unwrap_or(Form::Yaml);
        let found = manifest::parse(form, &text, &Kind::IN_MANIFESTS).with_context(|| file.clone())?;
        let problems = found.problems.iter().map(ToString::to_string).chain(found.duplicates);
        let unused =
            found.unused.iter().map(|title| format!("{title}: accepted kinds are Service, EndpointSlice and Node"));
        let refused: Vec<String> = problems.chain(unused).map(|reason| format!("{file}: {reason}")).collect();
        if !refused.is_empty() {
            bail!("{}", refused.join("\n"));
        }
        let keyed = |object: manifest::Object| Some((ObjectKey::from_manifest(&object.key)?, object.json));
        objects.extend(found.objects.into_iter().filter_map(keyed));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_command_has_16_mib_at_most() {
        let error = format!("{:#}", read_manifests(&["/dev/zero".to_owned()]).unwrap_err());
        assert!(error.contains("cannot read /dev/zero: it has more than 16777216 bytes"), "{error}");
    }
}
