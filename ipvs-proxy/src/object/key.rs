//! `ObjectKey`: which object a source speaks of.
//!
//! etcd keeps objects under `services/<namespace>/<name>` and `endpointslices/<namespace>/<name>` below the prefix; a
//! directory calls them `Service/<namespace>/<name>` and `EndpointSlice/<namespace>/<name>`. Invariant: an object whose own
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
}

impl Kind {
    /// What manifests call both kinds.
    pub(crate) const IN_MANIFESTS: [manifest::Kind; 2] = [
        manifest::Kind { group: "", versions: &["v1"], name: Self::Service.name(), namespaced: true },
        manifest::Kind {
            group: "discovery.k8s.io",
            versions: &["v1", "v1beta1"],
            name: Self::EndpointSlice.name(),
            namespaced: true,
        },
    ];

    /// Both kinds.
    pub(crate) const ALL: [Self; 2] = [Self::Service, Self::EndpointSlice];

    /// The kind's name in a manifest.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// The folder that etcd keeps objects of this kind in.
    #[must_use]
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }

    /// The kind an operator means: its name or folder in any case, singular or plural, or kubectl's short name.
    #[must_use]
    pub(crate) fn typed(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "service" | "services" | "svc" => Some(Self::Service),
            "endpointslice" | "endpointslices" => Some(Self::EndpointSlice),
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
        let (namespace, name) = rest.split_once('/')?;
        let kind = Kind::ALL.into_iter().find(|known| prefix(*known) == kind)?;
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
    }

    #[test]
    fn other_keys_are_no_objects() {
        for junk in
            ["", "services", "services/web", "services//web", "services/default/", "pods/default/web", "services/a/b/c"]
        {
            assert_eq!(ObjectKey::from_etcd(junk), None, "{junk}");
        }
    }
}
