//! `ObjectName`: namespace and name of a Kubernetes object.
//!
//! Invariant: both are names that a key in a store can be made of; nothing in them leads out of that key.

use std::fmt;

use cluster::Problem;

use super::field::Field;

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectName {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name, unique among the objects of one kind in the namespace.
    pub(crate) name: String,
}

impl ObjectName {
    /// A name of two texts that are known to be names.
    #[must_use]
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Reads `metadata.namespace` (`default` when absent) and `metadata.name`.
///
/// # Errors
/// When one of them is no name that a key in a store can be made of.
pub(crate) fn object_name(object: &Field<'_>) -> Result<ObjectName, Problem> {
    let metadata = object.get("metadata");
    let (namespace, name) = (metadata.get("namespace"), metadata.get("name"));
    let accepted = "1 to 253 of a-z, 0-9, '-' and '.'";
    let checked = |field: &Field<'_>, text: Option<&str>| match text {
        Some(text) if is_name(text) => Ok(text.to_owned()),
        _ => Err(field.problem(accepted)),
    };
    Ok(ObjectName {
        namespace: checked(&namespace, namespace.text()?.filter(|text| !text.is_empty()).or(Some("default")))?,
        name: checked(&name, name.text()?)?,
    })
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
        for junk in ["", "a/b", "..", "Web", "-a", "a-", "a b"] {
            assert!(named(junk).is_err(), "{junk:?}");
        }
    }
}
