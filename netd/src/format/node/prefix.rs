//! `AnnotationPrefix`: what stands before the names of flannel's annotations.
//!
//! Invariant: it accepts what flannel's `--kube-annotation-prefix` accepts, and makes the same names of it.

use std::fmt;
use std::str::FromStr;

use regex::Regex;

use super::wire::Node;

/// flannel's default.
pub(crate) const DEFAULT: &str = "flannel.alpha.coreos.com";

/// What a prefix must match at its end (pkg/subnet/kube/annotations.go).
const GRAMMAR: &str = r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$";

/// A prefix, with the slash or the hyphen that ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnnotationPrefix(String);

/// The text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidPrefix;

impl AnnotationPrefix {
    /// The accepted form.
    pub(crate) const ACCEPTED: &str =
        "a domain name in small letters, with at most one slash, such as flannel.alpha.coreos.com or example.org/pods";

    /// The whole name of an annotation.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// The value of an annotation.
    pub(super) fn get<'a>(&self, node: &'a Node, name: &str) -> Option<&'a str> {
        let found = node.metadata.annotations.iter().find(|(key, _)| key.strip_prefix(&self.0) == Some(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl FromStr for AnnotationPrefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let mut prefix = text.to_owned();
        match prefix.matches('/').count() {
            0 => prefix.push('/'),
            1 => {}
            _ => return Err(InvalidPrefix),
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        let grammar = Regex::new(GRAMMAR).map_err(|_| InvalidPrefix)?;
        if grammar.is_match(&prefix) { Ok(Self(prefix)) } else { Err(InvalidPrefix) }
    }
}

impl fmt::Display for AnnotationPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_flannels() {
        for (text, name) in [
            (DEFAULT, "flannel.alpha.coreos.com/backend-type"),
            ("org.com", "org.com/backend-type"),
            ("org.com/", "org.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
            ("org.com/prefix", "org.com/prefix-backend-type"),
            ("org.com/prefix-", "org.com/prefix-backend-type"),
            ("sub.org_9.com/a_b", "sub.org_9.com/a_b-backend-type"),
        ] {
            assert_eq!(text.parse::<AnnotationPrefix>().unwrap().name("backend-type"), name, "{text}");
        }
        for text in
            ["", "org", "ORG.COM", "org.com/PRE", "org.com/a/b", "/", ".com", "org.com/a.b", "org.com//", "org.com/ö"]
        {
            assert_eq!(text.parse::<AnnotationPrefix>(), Err(InvalidPrefix), "{text:?}");
        }
    }
}
