//! `ObjectName`: namespace and name of a Kubernetes object, or its name alone where its kind is in no namespace.
//!
//! Invariant: both are names that a key in a store can be made of; nothing in them leads out of that key.

use std::fmt;
use std::sync::Arc;

use cluster::Problem;

use super::field::Field;

/// The longest label (RFC 1123), in letters: namespaces, Services and their ports have such names. The kernel's record of a virtual server
/// has room for two of them.
pub(super) const LONGEST_LABEL: usize = 63;

/// Namespace and name of an object, as `namespace/name`, or `name`. A copy shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectName(Arc<str>);

impl ObjectName {
    /// A name of two texts that are known to be names.
    #[must_use]
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The name of an object that is in no namespace.
    #[must_use]
    pub(crate) fn of_cluster(name: &str) -> Self {
        Self(name.into())
    }

    /// A name as it is shown.
    #[must_use]
    pub(crate) fn shown(text: &str) -> Option<Self> {
        text.contains('/').then(|| Self(text.into()))
    }

    /// The text, which it shares.
    #[must_use]
    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// The namespace; empty where there is none.
    #[must_use]
    pub(crate) fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name, unique among the objects of one kind in the namespace.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads `metadata.namespace` (`default` when absent) and `metadata.name`.
///
/// # Errors
/// When one of them is no name that a key in a store can be made of.
pub(crate) fn object_name(object: &Field<'_>) -> Result<ObjectName, Problem> {
    let metadata = object.get("metadata");
    let (namespace, name) = (metadata.get("namespace"), metadata.get("name"));
    let of_default = Some("default");
    Ok(ObjectName::new(
        checked(&namespace, namespace.text()?.filter(|text| !text.is_empty()).or(of_default))?,
        checked(&name, name.text()?)?,
    ))
}

/// Reads `metadata.name` of an object that is in no namespace.
///
/// # Errors
/// When it is no name that a key in a store can be made of.
pub(crate) fn cluster_name(object: &Field<'_>) -> Result<ObjectName, Problem> {
    let name = object.get("metadata").get("name");
    checked(&name, name.text()?).map(ObjectName::of_cluster)
}

fn checked<'a>(field: &Field<'_>, text: Option<&'a str>) -> Result<&'a str, Problem> {
    text.filter(|text| is_name(text)).ok_or_else(|| field.problem("1 to 253 of a-z, 0-9, '-' and '.'"))
}

/// A DNS subdomain (RFC 1123), as Kubernetes demands of names.
fn is_name(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |text: &str| text.bytes().next().is_some_and(inside) && text.bytes().next_back().is_some_and(inside);
    text.len() <= 253 && ends(text) && text.bytes().all(|byte| inside(byte) || byte == b'-' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_that_could_leave_their_key_are_refused() {
        let named = |name: &str| object_name(&Field::root(&json!({"metadata": {"name": name}}))).map(|n| n.to_string());
        assert_eq!(named("web").unwrap(), "default/web");
        let longest = "n".repeat(253);
        assert_eq!(named(&longest).unwrap(), format!("default/{longest}"));
        for junk in ["", "a/b", "..", "Web", "-a", "a-", "a b", &format!("{longest}n")] {
            assert!(named(junk).is_err(), "{junk:?}");
        }
    }
}
