//! What is decoded of a Node's text.
//!
//! Invariant: a Node of 20 KB becomes a few hundred bytes while it is read: annotations that are not flannel's, labels, images
//! and, of other nodes, the whole status are passed over.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::NAMES;

/// The longest annotation of those that are kept: as much as an operator's program may say of a lease in its file.
const LONGEST: usize = 64 * 1024;

/// A Node as the other nodes need it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Node {
    /// What it is called, and its annotations.
    #[serde(default)]
    pub metadata: Metadata,
    /// Its subnets.
    #[serde(default)]
    pub spec: Spec,
}

/// `metadata` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    /// Its name.
    pub name: String,
    /// What makes it another one than an earlier Node of this name.
    pub uid: String,
    /// When it was made, RFC 3339 in UTC.
    pub creation_timestamp: Option<String>,
    /// The state of the store in which it was written last.
    pub resource_version: String,
    /// Annotations whose names end as flannel's do.
    #[serde(deserialize_with = "of_flannel")]
    pub annotations: Vec<(String, String)>,
}

/// `spec` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Spec {
    /// The only one, or the first of several.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// All of them; older API servers write none.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// This node's own Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct OwnNode {
    /// What the other nodes need of it.
    #[serde(flatten)]
    pub node: Node,
    /// What it says of its state.
    #[serde(default)]
    pub status: NodeStatus,
}

/// `status` of the own Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    /// Its conditions.
    pub conditions: Vec<NodeCondition>,
}

/// One condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeCondition {
    /// Which: `Ready`, `NetworkUnavailable` ...
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// A word for programs.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

impl Node {
    /// The state of the store that it was read from; 0 where the server's versions are no numbers, and nothing is compared.
    pub(crate) fn revision(&self) -> i64 {
        self.metadata.resource_version.parse().unwrap_or(0)
    }

    /// When it was made, as a number that is only good for comparing: the digits of the time.
    pub(crate) fn created(&self) -> i64 {
        let digits = self.metadata.creation_timestamp.iter().flat_map(|text| text.chars()).filter(char::is_ascii_digit);
        digits.take(14).collect::<String>().parse().unwrap_or(0)
    }
}

fn of_flannel<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    deserializer.deserialize_any(Annotations)
}

/// Reads annotations and keeps those that may be flannel's, under whatever prefix.
struct Annotations;

impl<'de> Visitor<'de> for Annotations {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations, an object of texts")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(name) = map.next_key::<Cow<str>>()? {
            if NAMES.iter().any(|known| name.ends_with(known)) {
                let value: String = map.next_value()?;
                if value.len() > LONGEST {
                    let found = format!("annotation {name} has {} bytes; accepted: up to {LONGEST}", value.len());
                    return Err(A::Error::custom(found));
                }
                kept.push((name.into_owned(), value));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(kept)
    }
}
