//! `delete`: takes objects out of etcd.

use anyhow::{Context, bail};
use cluster::etcd::{Prefix, Store};
use daemon::terminal;

use super::{answered, read_manifests};
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};

/// Deletes the objects of manifests and those named; one that does not exist is an error, reported behind all others.
pub(super) async fn delete(
    store: &Store,
    prefix: &Prefix,
    files: &[String],
    objects: &[String],
    namespace: &str,
) -> anyhow::Result<()> {
    let mut keys: Vec<ObjectKey> = read_manifests(files)?.into_iter().map(|(key, _)| key).collect();
    for object in objects {
        keys.push(named(object, namespace)?);
    }
    let mut missing = Vec::new();
    for key in keys {
        let path = prefix.key(&key.to_string());
        if answered(store.get(&path).await)?.is_none() {
            missing.push(key.to_string());
            continue;
        }
        answered(store.delete(&path).await).with_context(|| format!("{key} may not be deleted"))?;
        terminal::put(&format!("{key} deleted\n"))?;
    }
    if missing.is_empty() { Ok(()) } else { bail!("not found: {}", missing.join(", ")) }
}

/// Reads `KIND/NAME`.
fn named(object: &str, namespace: &str) -> anyhow::Result<ObjectKey> {
    let parts = object.split_once('/').and_then(|(kind, name)| Some((Kind::typed(kind)?, name)));
    match parts {
        Some((kind, name)) if !name.is_empty() && !name.contains('/') && !namespace.contains('/') => {
            let of_namespace = || ObjectName::new(namespace, name);
            let name = if kind.is_namespaced() { of_namespace() } else { ObjectName::of_cluster(name) };
            Ok(ObjectKey { kind, name })
        }
        _ => bail!("{object:?} is no object; accepted: service/NAME, endpointslice/NAME or node/NAME"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_for_kubectl() {
        for typed in ["service/web", "svc/web", "Services/web"] {
            assert_eq!(named(typed, "default").unwrap().to_string(), "services/default/web");
        }
        assert_eq!(named("endpointslice/web-1", "ns").unwrap().to_string(), "endpointslices/ns/web-1");
        for typed in ["node/n1", "no/n1", "Nodes/n1"] {
            assert_eq!(named(typed, "default").unwrap().to_string(), "nodes/n1");
        }
        for junk in ["web", "pod/web", "service/", "service/a/b"] {
            assert!(named(junk, "default").is_err(), "{junk}");
        }
    }
}
