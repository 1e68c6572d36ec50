//! JSON that verbs and pages print, for programs and for the people in front of a terminal.
//!
//! Invariant: what a program reads is the value, and nothing in it drives a terminal: JSON itself leaves all but the first 32 control
//! characters as they are.

use std::borrow::Cow;
use std::fmt::Write as _;

use cluster::text::is_hidden;
use serde::Serialize;

/// `value` over several lines, with their ends.
///
/// # Errors
/// When it has no form in JSON.
pub fn pretty<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    Ok(escaped(&text).into_owned())
}

/// The same JSON as `text` is, which has line ends between its words and no other control characters there.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    let is_escaped = |letter| letter != '\n' && is_hidden(letter);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_escaped(letter) {
            // JSON has letters beyond U+FFFF as two numbers (RFC 8259, 7).
            for unit in letter.encode_utf16(&mut [0; 2]) {
                // Writing into a text does not fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(letter);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_program_reads_what_was_meant_and_a_terminal_nothing_that_drives_it() {
        let value = json!({"ke\u{9b}y": ["\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\u{61c}\u{2028}\u{200b}\u{e0041}", "Pöd\n"]});
        let text = pretty(&value).unwrap();
        assert!(!text.contains(|letter| letter != '\n' && is_hidden(letter)), "{text:?}");
        assert!(
            text.contains("\\u009b2J\\u007f\\u202e\\u061c\\u2028\\u200b\\udb40\\udc41") && text.contains("\"Pöd\\n\""),
            "{text}"
        );
        assert_eq!((text.lines().count(), serde_json::from_str::<Value>(&text).unwrap()), (6, value));
        assert_eq!(pretty(&json!([])).unwrap(), "[]\n");
    }
}
