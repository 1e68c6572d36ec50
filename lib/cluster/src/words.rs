//! `Words`: which names a text that cannot be read may hold.
//!
//! Invariant: a name that the text holds is always found, however it is written there; that one is found which the text does not hold
//! may be. Names are those of Kubernetes: letters, digits, `-` and `.`.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// More different words than this are not kept: then the text may hold any name.
const MOST: usize = 100_000;

/// Ways to write a letter without writing it: escapes of YAML and JSON, a line that goes on, base64.
const DISGUISES: [&str; 6] = ["\\x", "\\u", "\\U", "\\\n", "\\\r", "!!binary"];

/// See the module's text. Nothing is known of the default: any name may be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words(Option<Arc<[u64]>>);

impl Words {
    /// Those of a text.
    #[must_use]
    pub fn of(text: &[u8]) -> Self {
        let Ok(text) = std::str::from_utf8(text) else { return Self::default() };
        if text.contains('\0') || DISGUISES.iter().any(|disguise| text.contains(disguise)) {
            return Self::default();
        }
        let mut found = BTreeSet::new();
        for word in text.split(|c: char| !is_of_name(c)) {
            found.insert(hash(word));
            if found.len() > MOST {
                return Self::default();
            }
        }
        Self(Some(found.into_iter().collect()))
    }

    /// False when the text does not hold this name.
    #[must_use]
    pub fn may_hold(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|known| known.binary_search(&hash(name)).is_ok())
    }
}

const fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.')
}

fn hash(word: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    word.trim_matches(['-', '.']).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_however_it_is_written() {
        for text in [
            "metadata:\n  name: web\n",
            "metadata: {name: web, namespace: x",
            "{\"metadata\":{\"name\":\"web\"",
            "name: 'web'",
            "name: >-\n  web\n",
            "name: &a web # the first",
            "- web",
            "name: \"w\\x65b\"",
            "{\"name\":\"\\u0077eb\"}",
            "name: \"we\\\n  b\"",
            "name: !!binary d2Vi",
            "w\0e\0b\0",
        ] {
            assert!(Words::of(text.as_bytes()).may_hold("web"), "{text}");
        }
        assert!(Words::of(b"\xff").may_hold("web") && Words::default().may_hold("web"));
        for text in ["metadata:\n  name: web-1\n", "metadata: {name: api", "{\"a\": \"b\\\"c\"}", ""] {
            assert!(!Words::of(text.as_bytes()).may_hold("web"), "{text}");
        }
    }
}
