//! A folder of keys, and the ranges of keys that are asked for.
//!
//! etcd's key space is flat; a prefix without its trailing slash also matches its neighbours (`/net/subnets`
//! matches `/net/subnets-old/x`, which is how flannel lists). Invariant: every range this crate asks for is a
//! folder with its `/`, or one key.

use std::fmt;

use crate::Problem;

/// A folder such as `/coreos.com/network` or `/coreos.com/network/subnets`, kept without trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix(String);

const ACCEPTED: &str = "a path of non-empty names such as /coreos.com/network";

impl Prefix {
    /// Reads a prefix as an operator types it. As Go's `path.Join`, which flannel builds its keys with, repeated
    /// and trailing slashes collapse; whether it begins with a slash is kept.
    ///
    /// # Errors
    /// When nothing is left, or a name is `.` or `..`; `field` is named in the error.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Problem> {
        let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
        let refuse = |message: String| Err(Problem::new(field, message, ACCEPTED));
        if names.is_empty() {
            return refuse(format!("`{text}` names no folder"));
        }
        if names.iter().any(|name| *name == "." || *name == "..") {
            return refuse(format!("`{text}` contains `.` or `..`"));
        }
        let root = if text.starts_with('/') { "/" } else { "" };
        Ok(Self(format!("{root}{}", names.join("/"))))
    }

    /// The key of `name` in this folder.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// The folder `name` in this folder.
    #[must_use]
    pub fn folder(&self, name: &str) -> Self {
        Self(self.key(name.trim_matches('/')))
    }

    /// First key of the range: the folder with its slash.
    pub(crate) fn range_start(&self) -> String {
        format!("{}/", self.0)
    }

    /// First key after the range: `0` follows `/` in ASCII.
    pub(crate) fn range_end(&self) -> String {
        format!("{}0", self.0)
    }

    /// What a key is called below this folder. A key that is not UTF-8 is shown with its bytes escaped, so that
    /// whoever parses it refuses and reports it like any other junk.
    pub(crate) fn below(&self, key: &[u8]) -> String {
        let rest = key.strip_prefix(self.range_start().as_bytes()).unwrap_or(key);
        match str::from_utf8(rest) {
            Ok(text) => text.to_owned(),
            Err(_) => rest.escape_ascii().to_string(),
        }
    }
}

/// The keys that a listing or a watch is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Range {
    /// All keys of a folder.
    Below(Prefix),
    /// One key.
    Key(String),
}

impl Range {
    /// The first key.
    pub(super) fn start(&self) -> String {
        match self {
            Self::Below(prefix) => prefix.range_start(),
            Self::Key(key) => key.clone(),
        }
    }

    /// The first key after the last; empty for one key, as etcd has it.
    pub(super) fn end(&self) -> String {
        match self {
            Self::Below(prefix) => prefix.range_end(),
            Self::Key(_) => String::new(),
        }
    }

    /// What a key of the range is called: below its folder, or whole.
    pub(super) fn name(&self, key: &[u8]) -> String {
        match self {
            Self::Below(prefix) => prefix.below(key),
            Self::Key(key) => key.clone(),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(prefix) => prefix.fmt(f),
            Self::Key(key) => f.write_str(key),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_collapse_as_in_go_path_join() {
        let cases = [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("atomic.io/network", "atomic.io/network/config"),
            ("//x", "/x/config"),
        ];
        for (typed, key) in cases {
            assert_eq!(Prefix::parse("etcd-prefix", typed).unwrap().key("config"), key, "{typed}");
        }
    }

    #[test]
    fn a_prefix_without_a_name_is_refused() {
        for typed in ["", "/", "//", "/a/../b", "./a"] {
            let error = Prefix::parse("etcd-prefix", typed).unwrap_err();
            assert_eq!(error.field, "etcd-prefix");
            assert!(error.found.contains(typed), "{error}");
        }
    }

    #[test]
    fn the_range_excludes_neighbours_with_the_same_beginning() {
        let subnets = Prefix::parse("etcd-prefix", "/net").unwrap().folder("subnets");
        let inside = |key: &str| key >= subnets.range_start().as_str() && key < subnets.range_end().as_str();
        assert!(inside("/net/subnets/172.7.21.0-24"));
        assert!(inside("/net/subnets/\u{7f}"));
        assert!(!inside("/net/subnets-old/172.7.21.0-24"));
        assert!(!inside("/net/subnets"));
        assert!(!inside("/net/subnetss/x"));
    }

    #[test]
    fn keys_are_reported_below_the_folder_and_junk_stays_distinct() {
        let subnets = Prefix::parse("etcd-prefix", "/net/subnets").unwrap();
        assert_eq!(subnets.below(b"/net/subnets/172.7.21.0-24"), "172.7.21.0-24");
        assert_eq!(subnets.below(b"/net/subnets/\xff\x01"), "\\xff\\x01");
        assert_ne!(subnets.below(b"/net/subnets/\xff"), subnets.below(b"/net/subnets/\xfe"));
    }
}
