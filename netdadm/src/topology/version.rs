//! `Version`: three numbers, ordered.
//!
//! Invariant: a version is whole: 1.20 names no program, 1.20.2 does.

use std::fmt;

use crate::document::Form;

/// A released version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// 1 in 1.20.2.
    pub(crate) major: u32,
    /// 20 in 1.20.2.
    pub(crate) minor: u32,
    /// 2 in 1.20.2.
    pub(crate) patch: u32,
}

impl Version {
    /// A version.
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Form for Version {
    const ACCEPTED: &str = "three numbers such as 1.20.2";

    fn read(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<u32>> = text.strip_prefix('v').unwrap_or(text).split('.').map(number).collect();
        match numbers.as_deref() {
            Some([major, minor, patch]) => Ok(Self::new(*major, *minor, *patch)),
            _ => Err(String::new()),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_whole_and_ordered_by_numbers() {
        assert_eq!(Version::read("v1.20.2"), Ok(Version::new(1, 20, 2)));
        assert!(Version::read("1.9.0").unwrap() < Version::read("1.20.0").unwrap());
        for text in ["1.20", "1.20.2.1", "1.20.x", "1.020.2", "1.20.2-rc1", "", "v", "1..2", "+1.2.3"] {
            assert!(Version::read(text).is_err(), "{text}");
        }
    }
}
