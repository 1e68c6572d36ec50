//! `IfName`: the name of a network interface, checked once.
//!
//! Invariant: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..`
//! (`dev_valid_name` in net/core/dev.c; IFNAMSIZ in linux/if.h; `:` is refused as CNI refuses it).

use std::fmt;
use std::str::FromStr;

/// The name of a network interface, 1 to 15 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// Why a text is no interface name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidIfName(String);

impl fmt::Display for InvalidIfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an interface name: 1 to 15 bytes without '/', ':' and white space, not '.' or '..'",
            self.0
        )
    }
}

impl std::error::Error for InvalidIfName {}

impl IfName {
    /// Checks `name`.
    ///
    /// # Errors
    /// When the kernel would refuse the name (see the module's invariant).
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidIfName> {
        let name = name.into();
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(forbidden) {
            return Err(InvalidIfName(name));
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx", "tab\t"] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["eth0", "cbr0", "flannel.1", "fifteen-bytes-x"] {
            assert_eq!(IfName::new(good).unwrap().as_str(), good);
        }
    }
}
