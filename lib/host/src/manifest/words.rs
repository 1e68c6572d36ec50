//! What may stand in a manifest: modes, owners, digests, paths, names.
//!
//! Invariant: what is a word here has one written form, and is read as it is printed.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The longest text of a refusal, in characters.
const LONGEST: usize = 400;

/// Kinds of units that a manifest may name.
const UNITS: [&str; 5] = [".service", ".socket", ".timer", ".target", ".mount"];

/// Permissions of a file: four octal digits, without set-id bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u32);

/// The user and the group that own a file, `etcd:etcd`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileOwner {
    user: String,
    group: String,
}

/// A SHA-256 as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Mode {
    /// What only its owner reads: keys.
    pub const SECRET: Self = Self(0o600);
    /// What everybody reads.
    pub const PUBLIC: Self = Self(0o644);

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let octal = text.len() == 4 && text.starts_with('0') && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let bits = u32::from_str_radix(&text, 8).ok().filter(|_| octal);
        bits.map(Self).ok_or_else(|| format!("{text:?} is no mode such as 0600"))
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FileOwner {
    /// Whom files belong to that nobody else needs.
    #[must_use]
    pub fn root() -> Self {
        Self::named("root")
    }

    /// A user and the group of the same name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { user: name.to_owned(), group: name.to_owned() }
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }
}

impl TryFrom<String> for FileOwner {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = |name: &str| {
            let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
            !name.is_empty() && name.len() <= 32 && name.bytes().all(inside) && !name.starts_with('-')
        };
        match text.split_once(':') {
            Some((user, group)) if plain(user) && plain(group) => {
                Ok(Self { user: user.to_owned(), group: group.to_owned() })
            }
            _ => Err(format!("{text:?} is no owner such as root:root")),
        }
    }
}

impl From<FileOwner> for String {
    fn from(owner: FileOwner) -> Self {
        owner.to_string()
    }
}

impl fmt::Display for FileOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.user, self.group)
    }
}

impl Digest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Its digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(digit) {
            return Ok(Self(text));
        }
        Err(format!("{text:?} is no SHA-256 in 64 small hexadecimal digits"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A map of which every key stands there once.
pub(super) fn once<'de, D: Deserializer<'de>, V: Deserialize<'de>>(from: D) -> Result<BTreeMap<PathBuf, V>, D::Error> {
    struct Once<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Once<V> {
        type Value = BTreeMap<PathBuf, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of paths")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut found = BTreeMap::new();
            while let Some((path, value)) = map.next_entry::<PathBuf, V>()? {
                if found.contains_key(&path) {
                    return Err(M::Error::custom(format!("{} stands there twice", path.display())));
                }
                found.insert(path, value);
            }
            Ok(found)
        }
    }
    from.deserialize_map(Once(PhantomData))
}

/// Checks the name of a cluster or a host, which is a name of one folder as well.
pub(super) fn name(field: &str, text: &str) -> Result<(), String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte);
    let plain = !text.is_empty() && text.len() <= 253 && text.bytes().all(inside) && !text.starts_with('.');
    if plain { Ok(()) } else { Err(format!("{field} {text:?} is no name of the DNS")) }
}

/// Checks that `path` is absolute, in its shortest form, and of plain characters.
pub(super) fn path(path: &Path) -> Result<(), String> {
    let plain = path.to_str().is_some_and(|text| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:=,".contains(&byte);
        let steps = text.split('/').skip(1).all(|step| !matches!(step, "" | "." | ".."));
        text.starts_with('/') && text.len() <= 1024 && text.bytes().all(inside) && steps
    });
    if plain { Ok(()) } else { Err(format!("{:?} is no absolute plain path", path.display().to_string())) }
}

/// Checks the name of a unit.
pub(super) fn unit(text: &str) -> Result<(), String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@:".contains(&byte);
    let stem = UNITS.iter().find_map(|kind| text.strip_suffix(kind));
    let plain = stem.is_some_and(|stem| !stem.is_empty()) && text.len() <= 255 && text.bytes().all(inside);
    if plain { Ok(()) } else { Err(format!("{text:?} is no unit such as etcd.service")) }
}

/// Checks the URL of something that serves.
pub(super) fn url(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && text.len() <= 1024;
    if plain && text.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(format!("{text:?} is no URL")) }
}

/// `text` without its middle where it is long: it may repeat what stands in the file.
pub(super) fn shortened(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let begin: String = text.chars().take(LONGEST / 2).collect();
    let end: String = text.chars().skip(text.chars().count().saturating_sub(LONGEST / 2)).collect();
    format!("{begin}…{end}")
}
