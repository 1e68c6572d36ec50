//! Names of Kubernetes objects, and a reader of their JSON that knows where it is.
//!
//! Invariant: an error names the field by its path in the object, what stands there and what is accepted. Fields that
//! nobody asks for are read over: Services in the wild carry dozens of them.

pub(crate) mod key;
pub(crate) mod service;
pub(crate) mod slice;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use cluster::Problem;
use serde_json::Value;

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

/// A place in an object: a value, or its absence, and the path that leads there.
#[derive(Debug, Clone)]
pub(crate) struct Field<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    /// The object itself.
    #[must_use]
    pub(crate) const fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value: Some(value) }
    }

    /// The field `key` of the object that stands here; absent when this is no object.
    #[must_use]
    pub(crate) fn get(&self, key: &str) -> Self {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { path, value: self.value.and_then(|value| value.get(key)).filter(|value| !value.is_null()) }
    }

    /// True when nothing, or `null`, stands here.
    #[must_use]
    pub(crate) const fn is_absent(&self) -> bool {
        self.value.is_none()
    }

    /// The problem that what stands here is not `accepted`.
    #[must_use]
    pub(crate) fn problem(&self, accepted: &'static str) -> Problem {
        let found = self.value.map_or_else(|| "missing".to_owned(), |value| shortened(&value.to_string()));
        let field = if self.path.is_empty() { "(the object)".to_owned() } else { self.path.clone() };
        Problem::new(field, found, accepted)
    }

    /// A text; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn text(&self) -> Result<Option<&'a str>, Problem> {
        self.value.map(|value| value.as_str().ok_or_else(|| self.problem("a text"))).transpose()
    }

    /// True or false; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn flag(&self) -> Result<Option<bool>, Problem> {
        self.value.map(|value| value.as_bool().ok_or_else(|| self.problem("true or false"))).transpose()
    }

    /// A port; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn port(&self) -> Result<Option<u16>, Problem> {
        let port = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        self.value.map(|value| port(value).ok_or_else(|| self.problem("a port from 1 to 65535"))).transpose()
    }

    /// An address; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn address(&self) -> Result<Option<IpAddr>, Problem> {
        let Some(text) = self.text()? else { return Ok(None) };
        parse_address(text).map(Some).ok_or_else(|| self.problem("an address such as 192.168.0.10"))
    }

    /// The places of an array; none when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn items(&self) -> Result<Vec<Self>, Problem> {
        let Some(value) = self.value else { return Ok(Vec::new()) };
        let array = value.as_array().ok_or_else(|| self.problem("a list"))?;
        let item = |(index, value)| Self { path: format!("{}[{index}]", self.path), value: Some(value) };
        Ok(array.iter().enumerate().map(item).collect())
    }
}

/// Enough of a long value to recognise it.
fn shortened(text: &str) -> String {
    const ENOUGH: usize = 80;
    let head: String = text.chars().take(ENOUGH).collect();
    if head.len() == text.len() { head } else { format!("{head}...") }
}

/// Reads an address as Kubernetes does: leading zeros of an IPv4 address are allowed and mean nothing
/// (k8s.io/utils/net ParseIPSloppy; `192.168.000.010` is 192.168.0.10).
#[must_use]
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
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
    fn a_problem_names_path_value_and_accepted_form() {
        let object = json!({"spec": {"ports": [{"port": 80}, {"port": 99_999}]}});
        let ports = Field::root(&object).get("spec").get("ports").items().unwrap();
        assert_eq!(ports[0].get("port").port(), Ok(Some(80)));
        let problem = ports[1].get("port").port().unwrap_err();
        assert_eq!(problem.to_string(), "spec.ports[1].port: 99999; accepted: a port from 1 to 65535");
    }

    #[test]
    fn null_counts_as_absent_and_long_values_are_cut() {
        let object = json!({"a": null, "b": "x".repeat(200)});
        assert!(Field::root(&object).get("a").is_absent());
        assert_eq!(Field::root(&object).get("b").flag().unwrap_err().found.len(), 83);
        assert_eq!(Field::root(&object).get("c").get("d").problem("x").to_string(), "c.d: missing; accepted: x");
    }

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, address) in
            [("192.168.0.10", "192.168.0.10"), ("192.168.000.010", "192.168.0.10"), ("fd00::1", "fd00::1")]
        {
            assert_eq!(parse_address(text), address.parse().ok(), "{text}");
        }
        for junk in ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.x", "1.2..4", "+1.2.3.4", "None", "fd00:::1"] {
            assert_eq!(parse_address(junk), None, "{junk}");
        }
    }

    #[test]
    fn names_that_could_leave_their_key_are_refused() {
        let named = |name: &str| object_name(&Field::root(&json!({"metadata": {"name": name}}))).map(|n| n.to_string());
        assert_eq!(named("web").unwrap(), "default/web");
        for junk in ["", "a/b", "..", "Web", "-a", "a-", "a b"] {
            assert!(named(junk).is_err(), "{junk:?}");
        }
    }
}
