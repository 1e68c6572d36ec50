//! `Name`: the name of a table, chain, set or map, checked once.
//!
//! Invariant: 1 to 255 bytes (NFT_NAME_MAXLEN in include/uapi/linux/netfilter/nf_tables.h, with the final NUL) of
//! letters, digits, `_`, `-`, `.` and `/`, the first one a letter or `_`. The kernel takes more, the nft language
//! does not: an operator must be able to type every name.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// The name of a table, chain, set or map; a copy shares the text.
#[derive(Clone)]
pub struct Name(Text);

#[derive(Clone)]
enum Text {
    Literal(&'static str),
    Shared(Arc<str>),
}

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName(String);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an nftables name: a letter or '_', then letters, digits, '_', '-', '.' or '/', at most 255 bytes",
            self.0
        )
    }
}

impl std::error::Error for InvalidName {}

const fn valid(mut bytes: &[u8]) -> bool {
    match bytes {
        [b'a'..=b'z' | b'A'..=b'Z' | b'_', ..] if bytes.len() <= 255 => {}
        _ => return false,
    }
    while let [first, rest @ ..] = bytes {
        if !first.is_ascii_alphanumeric() && !matches!(first, b'_' | b'-' | b'.' | b'/') {
            return false;
        }
        bytes = rest;
    }
    true
}

impl Name {
    /// A name known when the program is written; costs no allocation. An invalid one in a `const` does not compile.
    ///
    /// # Panics
    /// When `text` breaks the module's invariant; use [`Name::new`] for what comes from outside.
    #[must_use]
    pub const fn literal(text: &'static str) -> Self {
        assert!(valid(text.as_bytes()), "not an nftables name");
        Self(Text::Literal(text))
    }

    /// Checks `text`.
    ///
    /// # Errors
    /// When it breaks the module's invariant.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if valid(text.as_bytes()) { Ok(Self(Text::Shared(text.into()))) } else { Err(InvalidName(text)) }
    }

    /// A name as the kernel reports it, which may be one that the nft language cannot write.
    #[must_use]
    pub fn observed(text: impl Into<String>) -> Self {
        Self(Text::Shared(text.into().into()))
    }

    /// True for the name of a chain or set that comes and goes with the cluster and therefore is a row of its own; it has a `/` in
    /// it. A chain or set without one is of the table's static part.
    #[must_use]
    pub fn is_of_row(&self) -> bool {
        self.as_str().contains('/')
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Text::Literal(text) => text,
            Text::Shared(text) => text,
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.as_str(), other.as_str()) || self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        // Names of thousands of elements are copies of one.
        if std::ptr::eq(self.as_str(), other.as_str()) { Ordering::Equal } else { self.as_str().cmp(other.as_str()) }
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Name").field(&self.as_str()).finish()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nft_cannot_write_are_refused() {
        for bad in ["", "1st", "-x", "a b", "a{", "\u{e9}", "a;b", &"x".repeat(256)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in ["netd", "node-ports", "_x", "service/web.80", &"x".repeat(255)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        assert_eq!(Name::literal("netd"), Name::new("netd".to_owned()).unwrap());
    }
}
