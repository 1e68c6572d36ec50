//! `Collection`: which objects are listed and watched, and under which path.

use std::fmt::{self, Write as _};

/// The objects of one kind in all namespaces, as far as the selectors let them through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// The API group; empty for the core group.
    pub group: String,
    /// Its version: `v1`.
    pub version: String,
    /// The plural name in the path: `nodes`.
    pub plural: String,
    /// Label selector, as `kubectl -l` takes it.
    pub labels: Option<String>,
    /// Field selector, as `kubectl --field-selector` takes it.
    pub field: Option<String>,
}

impl Collection {
    /// All objects of this kind.
    #[must_use]
    pub fn new(group: &str, version: &str, plural: &str) -> Self {
        let (group, version, plural) = (group.to_owned(), version.to_owned(), plural.to_owned());
        Self { group, version, plural, labels: None, field: None }
    }

    /// Those of them with these labels.
    #[must_use]
    pub fn labels(self, selector: &str) -> Self {
        Self { labels: Some(selector.to_owned()), ..self }
    }

    /// Those of them with these fields.
    #[must_use]
    pub fn field(self, selector: &str) -> Self {
        Self { field: Some(selector.to_owned()), ..self }
    }

    /// The path with these parameters and those of the selectors.
    pub(super) fn path(&self, parameters: &[(&str, &str)]) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}/{}", self.version, self.plural)
        } else {
            format!("/apis/{}/{}/{}", self.group, self.version, self.plural)
        };
        let labels = self.labels.as_deref().map(|selector| ("labelSelector", selector));
        let field = self.field.as_deref().map(|selector| ("fieldSelector", selector));
        let mut separator = '?';
        for (name, value) in labels.into_iter().chain(field).chain(parameters.iter().copied()) {
            path.push(separator);
            path.push_str(name);
            path.push('=');
            escape(&mut path, value);
            separator = '&';
        }
        path
    }
}

/// Appends `text` with everything escaped that RFC 3986 does not call unreserved.
fn escape(path: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing into a text cannot fail.
            let _written = write!(path, "%{byte:02X}");
        }
    }
}

/// As RBAC names it: `endpointslices.discovery.k8s.io`.
impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plural)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_holds_group_selectors_and_parameters_escaped() {
        let services = Collection::new("", "v1", "services").labels("!service.kubernetes.io/headless,a in (b,c)");
        assert_eq!(
            services.path(&[("limit", "500")]),
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fheadless%2Ca%20in%20%28b%2Cc%29&limit=500"
        );
        let slices = Collection::new("discovery.k8s.io", "v1", "endpointslices");
        assert_eq!(slices.path(&[]), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(slices.to_string(), "endpointslices.discovery.k8s.io");
        let node = Collection::new("", "v1", "nodes").field("metadata.name=n1");
        assert_eq!(node.path(&[]), "/api/v1/nodes?fieldSelector=metadata.name%3Dn1");
    }
}
