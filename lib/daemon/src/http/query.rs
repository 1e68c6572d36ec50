//! The fields of a query, `name=value&name=value` with what a browser's form makes of other letters.
//!
//! Invariant: a value is cut at [`LONGEST`] letters, and what is no letter in UTF-8 becomes U+FFFD.

/// Letters of a value.
const LONGEST: usize = 200;

/// The first value of `name` in `query`, if it has one that is not empty.
#[must_use]
pub(super) fn field(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.filter(|(found, _)| *found == name).map(|(_, value)| decoded(value)).next()?;
    Some(value.chars().take(LONGEST).collect()).filter(|value: &String| !value.is_empty())
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let escaped = if *first == b'%' { behind.split_at_checked(2) } else { None };
        let byte = escaped.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = byte.unwrap_or((if *first == b'+' { b' ' } else { *first }, behind));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `text` as a value of a query.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            value.push(char::from(byte));
        } else {
            value.push_str(&format!("%{byte:02X}"));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_was_typed_whatever_letters_it_has() {
        for text in ["web", "shop/web", "172.7.22.0/24,fc00::/64", "a&b=c%d+e f", "<Größe>\r\n", "%zz"] {
            let query = format!("nodes=x&services={}&", encoded(text));
            assert_eq!(field(&query, "services").as_deref(), Some(text));
            assert_eq!(field(&query, "nodes").as_deref(), Some("x"));
        }
        assert_eq!(field("a=1+2%2", "a").as_deref(), Some("1 2%2"));
        assert_eq!(field("a=%ff%+1", "a").as_deref(), Some("\u{fffd}% 1"));
        for none in ["", "a", "a=", "b=1", "aa=1"] {
            assert_eq!(field(none, "a"), None, "{none}");
        }
        assert_eq!(field(&format!("a={}", "ü".repeat(500)), "a").map(|value| value.chars().count()), Some(LONGEST));
    }
}
