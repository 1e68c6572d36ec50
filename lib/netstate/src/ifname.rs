//! `IfName`: the name of a network interface, checked once.
//!
//! Invariant: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..`
//! (`dev_valid_name` in net/core/dev.c; IFNAMSIZ in linux/if.h; `:` is refused as CNI refuses it).
//! It is stored in place: every row of a table of routes or neighbours has one.

use std::fmt::{self, Write};
use std::str::FromStr;

/// The most bytes a name has.
const LONGEST: usize = 15;

/// The name of a network interface, 1 to 15 bytes, filled up with zeros, which are in no name: so bytes compare as texts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; LONGEST]);

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

/// What can be said of the bytes alone; white space beyond ASCII is left to [`IfName::new`].
const fn valid(mut bytes: &[u8]) -> bool {
    if matches!(bytes, [] | b"." | b"..") || bytes.len() > LONGEST {
        return false;
    }
    while let [first, rest @ ..] = bytes {
        if matches!(first, b'/' | b':' | b'\0' | b' ' | b'\t'..=b'\r') {
            return false;
        }
        bytes = rest;
    }
    true
}

/// `name` filled up with zeros; what is beyond [`LONGEST`] is left out.
const fn padded(name: &[u8]) -> [u8; LONGEST] {
    let mut bytes = [0; LONGEST];
    let (mut from, mut to) = (name, bytes.as_mut_slice());
    while let ([byte, rest @ ..], [place, places @ ..]) = (from, to) {
        *place = *byte;
        (from, to) = (rest, places);
    }
    bytes
}

impl IfName {
    /// A name known when the program is written; costs no allocation. An invalid one in a `const` does not compile.
    ///
    /// # Panics
    /// When `name` breaks the module's invariant or is not ASCII; use [`IfName::new`] for what comes from outside.
    #[must_use]
    pub const fn literal(name: &'static str) -> Self {
        assert!(name.is_ascii() && valid(name.as_bytes()), "not an interface name");
        Self(padded(name.as_bytes()))
    }

    /// `stem` with `number` behind it, as devices of one kind are named; `None` when that is no name. Costs no allocation:
    /// every row of every lease names its device.
    #[must_use]
    pub fn numbered(stem: &str, number: u32) -> Option<Self> {
        let mut name = Unchecked::default();
        write!(name, "{stem}{number}").ok()?;
        str::from_utf8(name.bytes.get(..name.used)?).ok().and_then(|name| Self::new(name).ok())
    }

    /// Checks `name`.
    ///
    /// # Errors
    /// When the kernel would refuse the name (see the module's invariant).
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidIfName> {
        let name = name.as_ref();
        if valid(name.as_bytes()) && !name.contains(char::is_whitespace) {
            Ok(Self(padded(name.as_bytes())))
        } else {
            Err(InvalidIfName(name.to_owned()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(LONGEST);
        // Made of a whole text, so it is one.
        self.0.get(..end).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default()
    }
}

/// A text that may become a name.
#[derive(Default)]
struct Unchecked {
    bytes: [u8; LONGEST],
    used: usize,
}

impl fmt::Write for Unchecked {
    /// Fails when the text is too long for a name.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        self.bytes.get_mut(self.used..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IfName").field(&self.as_str()).finish()
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
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx", "tab\t", "nul\0", "\u{a0}", "\u{2003}x"] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
            assert!(std::panic::catch_unwind(|| IfName::literal(bad)).is_err(), "{bad:?}");
        }
        const LO: IfName = IfName::literal("lo");
        assert_eq!(IfName::new("lo"), Ok(LO));
        for good in ["eth0", "cbr0", "flannel.1", "fifteen-bytes-x"] {
            assert_eq!(IfName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn numbered_name_is_the_text_of_both_or_none() {
        for (stem, number) in
            [("flannel.", 0), ("flannel.", 1), ("flannel.", 1_000_000), ("flannel-v6.", 9999), ("", 7)]
        {
            let name = IfName::numbered(stem, number).unwrap();
            assert_eq!(name.as_str(), format!("{stem}{number}"));
        }
        for (stem, number) in [("flannel-v6.", 10_000), ("flannel.", 10_000_000), ("a/", 1), ("fifteen-bytes-x", 0)] {
            assert_eq!(IfName::numbered(stem, number), None, "{stem}{number}");
        }
    }

    #[test]
    fn names_are_in_the_order_of_their_texts() {
        let texts = ["a", "a0", "ab", "eth", "eth0", "eth0.1", "eth1", "fifteen-bytes-x", "ä"];
        let names = texts.map(|text| IfName::new(text).unwrap());
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names.map(|name| name.to_string()), texts);
        assert_eq!(format!("{:?}", IfName::literal("lo")), r#"IfName("lo")"#);
    }
}
