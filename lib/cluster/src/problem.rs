//! `Problem`: one thing wrong with an input, with its field and the accepted form.
//!
//! Invariant: a reader of inputs collects problems and reports them all at once, so that nobody has to mend one to
//! learn of the next. Each stands on a line of its own, whatever somebody wrote. The text never carries a secret.

use std::fmt;

use crate::text::escape;

/// One thing wrong with a flag, a file, a key or value of a store, or an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field as the operator knows it: `--iface`, `Backend.VNI`, `spec.ports[0].port`.
    pub field: String,
    /// What was found, with the offending text unless it is a secret.
    pub found: String,
    /// The accepted form; empty when `found` says it already.
    pub accepted: String,
}

impl Problem {
    /// A problem with `field`.
    pub fn new(field: impl Into<String>, found: impl Into<String>, accepted: impl Into<String>) -> Self {
        let shown = |text: String| elided(escape(&text).into_owned());
        Self { field: shown(field.into()), found: shown(found.into()), accepted: accepted.into() }
    }

    /// The same problem one level further out: `prefix` stands before the field.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        Self { field: format!("{prefix}{}", self.field), ..self }
    }
}

/// The longest text that is repeated whole, in characters.
const WHOLE: usize = 400;

/// What somebody wrote may have any length; of a long text the beginning and the end are shown.
#[must_use]
pub fn elided(text: String) -> String {
    let count = text.chars().count();
    if count <= WHOLE {
        return text;
    }
    let head: String = text.chars().take(WHOLE / 2).collect();
    let tail: String = text.chars().skip(count.saturating_sub(WHOLE / 2)).collect();
    format!("{head}… ({count} characters) …{tail}")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.found)?;
        if self.accepted.is_empty() { Ok(()) } else { write!(f, "; accepted: {}", self.accepted) }
    }
}

impl std::error::Error for Problem {}

/// Everything wrong with one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// Where the input came from: a file, an etcd key, the command line.
    pub source: String,
    /// At least one problem.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.list.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "{}: {count} {noun}", self.source)?;
        self.list.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_shown_by_its_beginning_and_its_end() {
        let problem = Problem::new("Backend", format!("\"{}\" is no key", "ü".repeat(5000)), "a key");
        let text = problem.to_string();
        assert!(
            text.chars().count() < 500 && text.contains("… (5012 characters) …") && text.contains("is no key"),
            "{text}"
        );
        assert_eq!(Problem::new("", "x".repeat(400), "").found.len(), 400);
    }

    #[test]
    fn every_problem_stands_on_a_line_of_its_own() {
        let list = vec![
            Problem::new("--store", "\"disk\" is unknown", "etcd or local"),
            Problem::new("--iface", "no interface \"eth9\"", ""),
            Problem::new("a\nb", "\"x\n  --store: all is well\u{202e}\" is unknown", ""),
        ];
        let problems = Problems { source: "command line".to_owned(), list };
        let text = "command line: 3 problems\n  --store: \"disk\" is unknown; accepted: etcd or local\n  --iface: no interface \"eth9\"\n  \
                    a\\nb: \"x\\n  --store: all is well\\u{202e}\" is unknown";
        assert_eq!(problems.to_string(), text);
    }

    #[test]
    fn a_problem_further_out_names_the_whole_field() {
        let problem = Problem::new("etcd-endpoints", "`ftp://x` has no known scheme", "http://HOST:PORT").under("--");
        assert_eq!(problem.to_string(), "--etcd-endpoints: `ftp://x` has no known scheme; accepted: http://HOST:PORT");
    }
}
