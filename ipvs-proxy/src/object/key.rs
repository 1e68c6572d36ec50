//! `ObjectKey`: which object a source speaks of.
//!
//! etcd keeps objects under `services/<namespace>/<name>`, `endpointslices/<namespace>/<name>` and `nodes/<name>` below the prefix; a
//! directory calls them `Service/<namespace>/<name>`, `EndpointSlice/<namespace>/<name>` and `Node/<name>`. Invariant: an object whose own
//! name differs from its key is refused, or one object could stand under two keys.

use std::fmt;

use cluster::manifest;

use crate::object::ObjectName;

/// Kind of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A Service of v1.
    Service,
    /// An EndpointSlice of discovery.k8s.io/v1.
    EndpointSlice,
    /// A Node of v1.
    Node,
}

impl Kind {
    /// What manifests call all kinds.
    pub(crate) const IN_MANIFESTS: [manifest::Kind; 3] = [
        Self::Service.in_manifests("", &["v1"]),
        Self::EndpointSlice.in_manifests("discovery.k8s.io", &["v1", "v1beta1"]),
        Self::Node.in_manifests("", &["v1"]),
    ];

    /// All kinds.
    pub(crate) const ALL: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::Node];

    const fn in_manifests(self, group: &'static str, versions: &'static [&'static str]) -> manifest::Kind {
        manifest::Kind { group, versions, name: self.name(), namespaced: self.is_namespaced() }
    }

    /// True when its objects are in a namespace.
    #[must_use]
    pub(crate) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node)
    }

    /// The kind's name in a manifest.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        }
    }

    /// Whether an object that says `api_version` is of this kind.
    pub(crate) fn has(self, api_version: Option<&str>) -> bool {
        Self::IN_MANIFESTS.iter().any(|kind| kind.name == self.name() && kind.has(api_version))
    }

    /// The versions that are read, in words.
    pub(crate) const fn versions(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1 or discovery.k8s.io/v1beta1",
        }
    }

    /// The folder that etcd keeps objects of this kind in.
    #[must_use]
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
        }
    }

    /// The kind an operator means: its name or folder in any case, singular or plural, or kubectl's short name.
    #[must_use]
    pub(crate) fn typed(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "service" | "services" | "svc" => Some(Self::Service),
            "endpointslice" | "endpointslices" => Some(Self::EndpointSlice),
            "node" | "nodes" | "no" => Some(Self::Node),
            _ => None,
        }
    }
}

/// An object's kind and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: ObjectName,
}

impl ObjectKey {
    /// Reads a key below the prefix in etcd.
    #[must_use]
    pub(crate) fn from_etcd(key: &str) -> Option<Self> {
        Self::read(key, Kind::folder)
    }

    /// Reads a directory's key.
    #[must_use]
    pub(crate) fn from_manifest(key: &str) -> Option<Self> {
        Self::read(key, Kind::name)
    }

    fn read(key: &str, prefix: fn(Kind) -> &'static str) -> Option<Self> {
        let (kind, rest) = key.split_once('/')?;
        let kind = Kind::ALL.into_iter().find(|known| prefix(*known) == kind)?;
        if !kind.is_namespaced() {
            let whole = !rest.is_empty() && !rest.contains('/');
            return whole.then(|| Self { kind, name: ObjectName::of_cluster(rest) });
        }
        let (namespace, name) = rest.split_once('/')?;
        let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        whole.then(|| Self { kind, name: ObjectName::new(namespace, name) })
    }
}

impl fmt::Display for ObjectKey {
    /// As the key below the prefix in etcd.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.folder(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_same_object() {
        let key = ObjectKey { kind: Kind::Service, name: ObjectName::new("default", "web") };
        assert_eq!(ObjectKey::from_etcd("services/default/web"), Some(key.clone()));
        assert_eq!(ObjectKey::from_manifest("Service/default/web"), Some(key.clone()));
        assert_eq!(key.to_string(), "services/default/web");
        let node = ObjectKey { kind: Kind::Node, name: ObjectName::of_cluster("n1") };
        assert_eq!(ObjectKey::from_etcd("nodes/n1"), Some(node.clone()));
        assert_eq!(ObjectKey::from_manifest("Node/n1"), Some(node.clone()));
        assert_eq!((node.to_string().as_str(), node.name.namespace(), node.name.name()), ("nodes/n1", "", "n1"));
    }

    #[test]
    fn other_keys_are_no_objects() {
        for junk in [
            "",
            "services",
            "services/web",
            "services//web",
            "services/default/",
            "pods/default/web",
            "services/a/b/c",
            "nodes/",
            "nodes/a/b",
        ] {
            assert_eq!(ObjectKey::from_etcd(junk), None, "{junk}");
        }
    }
}
