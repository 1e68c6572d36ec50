//! `Lines`: text for a terminal, in which nothing from outside can begin a line of its own.

use std::fmt::{self, Write as _};

pub use cluster::text::escape;

/// Text that grows line by line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines(String);

impl Lines {
    /// No lines.
    #[must_use]
    pub const fn new() -> Self {
        Self(String::new())
    }

    /// Adds one line, with everything escaped that would end or change it.
    pub fn push(&mut self, line: fmt::Arguments<'_>) {
        let text = line.to_string();
        let _ = writeln!(self.0, "{}", escape(&text));
    }

    /// The lines, each with its end, none longer than `columns` where a space allows it; what goes on is further in than any line of
    /// its own.
    #[must_use]
    pub fn into_folded(self, columns: usize) -> String {
        let mut folded = String::with_capacity(self.0.len());
        for line in self.0.lines() {
            fold(line, columns, &mut folded);
            folded.push('\n');
        }
        folded
    }

    /// The lines, each with its end.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

/// What stands in front of what goes on.
const FURTHER: &str = "    ";

fn fold(line: &str, columns: usize, folded: &mut String) {
    let body = line.trim_start_matches(' ');
    let own = line.len().saturating_sub(body.len());
    folded.extend(std::iter::repeat_n(' ', own));
    let mut width = own;
    for (index, word) in body.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && width.saturating_add(length) < columns {
            folded.push(' ');
            width = width.saturating_add(1);
        } else if index > 0 {
            let _ = write!(folded, "\n{}{FURTHER}", " ".repeat(own));
            width = own.saturating_add(FURTHER.len());
        }
        folded.push_str(word);
        width = width.saturating_add(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_forge_a_line_or_drive_the_terminal() {
        let mut lines = Lines::new();
        lines.push(format_args!("!  invalid {}: no lease", "x\nnode  in sync\u{1b}[2J\u{202e}\u{61c}"));
        lines.push(format_args!("Pödnetz"));
        assert_eq!(lines.into_text(), "!  invalid x\\nnode  in sync\\u{1b}[2J\\u{202e}\\u{61c}: no lease\nPödnetz\n");
    }

    #[test]
    fn lines_end_at_the_last_column_where_a_space_allows_it() {
        let folded = |text: &str| {
            let mut lines = Lines::new();
            lines.push(format_args!("{text}"));
            lines.into_folded(10)
        };
        for (text, expected) in [
            ("ten colums", "ten colums\n"),
            ("eleven colu", "eleven\n    colu\n"),
            ("  row of more than ten", "  row of\n      more\n      than\n      ten\n"),
            ("a averyverylongword b", "a\n    averyverylongword\n    b\n"),
            ("averyverylongword", "averyverylongword\n"),
            ("ä ö ü ä ö ü ä", "ä ö ü ä ö\n    ü ä\n"),
            ("", "\n"),
        ] {
            assert_eq!(folded(text), expected, "{text}");
        }
    }
}
