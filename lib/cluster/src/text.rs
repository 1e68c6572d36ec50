//! Text that somebody else wrote, where it is shown: on one line, every letter of it seen.
//!
//! Pure. What is shown in a terminal, a log, a page or an error comes from stores and files that others write: it ends no line, turns no
//! direction of writing, and two names that look alike are alike.

use std::borrow::Cow;

/// `text` with every letter that [`is_hidden`] as `\u{…}`.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            '\r' => escaped.push_str("\\r"),
            letter if is_hidden(letter) => escaped.extend(letter.escape_unicode()),
            letter => escaped.push(letter),
        }
    }
    Cow::Owned(escaped)
}

/// True for letters that show nothing of themselves, and change how others are shown: control characters, line separators, and Unicode's
/// Default_Ignorable_Code_Point and Bidi_Control.
#[must_use]
pub fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{fff9}'..='\u{fffb}')
        || matches!(
            letter,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'
                ..='\u{180f}'
        )
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}')
        || matches!(letter, '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}')
        || matches!(letter, '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_one_line_and_hides_nothing() {
        for (text, shown) in [
            ("Pöd 東京", "Pöd 東京"),
            ("a\nb\r\tc\u{1b}[2J\u{9b}", "a\\nb\\r\\tc\\u{1b}[2J\\u{9b}"),
            ("web\u{200b}-1\u{2060}\u{feff}\u{ad}", "web\\u{200b}-1\\u{2060}\\u{feff}\\u{ad}"),
            ("\u{202e}\u{61c}\u{2028}\u{e0041}", "\\u{202e}\\u{61c}\\u{2028}\\u{e0041}"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }
}
