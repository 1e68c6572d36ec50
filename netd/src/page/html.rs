//! `Html`: markup of this program and text of anybody, kept apart.
//!
//! Invariant: markup is a text of this program, known when it was built; everything else goes through [`Html::text`], which leaves no
//! letter that could end an element, an attribute or a line, or turn the direction of what stands behind it.

use std::fmt::{self, Display, Write};

use cluster::text::is_hidden;

/// A part of a page.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// Adds markup.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds text, as the content of an element or of an attribute in double quotes.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing into a string does not fail.
        let _ = write!(Escaped(&mut self.0), "{text}");
        self
    }

    /// Adds a part.
    pub(super) fn part(&mut self, part: &Self) -> &mut Self {
        self.0.push_str(&part.0);
        self
    }

    /// The whole.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Escapes what is written.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                letter if is_hidden(letter) => write!(self.0, "{}", letter.escape_unicode())?,
                letter => self.0.push(letter),
            }
        }
        Ok(())
    }
}

/// A text as a value in a query, without letters that have a meaning there.
pub(super) struct Value<'a>(pub(super) &'a str);

impl Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_no_element_no_attribute_and_no_line() {
        let mut html = Html::default();
        html.raw("<a href=\"?")
            .text(Value("a b/c&d\"é"))
            .raw("\">")
            .text("<b>\"x\" & 'y'\n\u{202e}\u{0}</b>ü")
            .text("\u{61c}\u{ad}\u{3164}\u{e0041}")
            .raw("</a>");
        assert_eq!(
            html.into_text(),
            "<a href=\"?a%20b%2Fc%26d%22%C3%A9\">&lt;b&gt;&quot;x&quot; &amp; &#39;y&#39;\\u{a}\\u{202e}\\u{0}&lt;/b&gt;ü\
             \\u{61c}\\u{ad}\\u{3164}\\u{e0041}</a>"
        );
    }
}
