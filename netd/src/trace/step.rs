//! `Step`: one thing that a packet meets, and whether it is as it must be.
//!
//! Invariant: a step that is missing or wrong says what to do.

use std::borrow::Cow;

use ::daemon::status::Lines;
use serde::{Deserialize, Serialize};

/// Whether a step is as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; it stops no packet by itself.
    Note,
    /// Not there, and packets need it.
    Missing,
    /// There, and packets do not pass or go elsewhere.
    Wrong,
}

/// One thing that a packet meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// The node where it is: `here`, or the other one's address.
    pub node: String,
    /// What it is.
    pub part: Cow<'static, str>,
    /// Whether it is as it must be.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// The node where the trace was asked for.
pub(crate) const HERE: &str = "here";

impl Step {
    pub(crate) fn ok(part: &'static str, found: impl Into<String>) -> Self {
        Self::new(part, Verdict::Ok, found, "")
    }

    pub(crate) fn note(part: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(part, Verdict::Note, found, fix)
    }

    pub(crate) fn missing(part: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(part, Verdict::Missing, found, fix)
    }

    pub(crate) fn wrong(part: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(part, Verdict::Wrong, found, fix)
    }

    fn new(part: &'static str, verdict: Verdict, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { node: HERE.to_owned(), part: part.into(), verdict, found: found.into(), fix: fix.into() }
    }

    /// The same on the node at `address`.
    #[must_use]
    pub(crate) fn at(self, address: impl ToString) -> Self {
        Self { node: address.to_string(), ..self }
    }

    /// True when packets do not pass because of it.
    #[must_use]
    pub(crate) const fn stops(&self) -> bool {
        matches!(self.verdict, Verdict::Missing | Verdict::Wrong)
    }
}

/// The steps for a terminal.
#[must_use]
pub(crate) fn text(steps: &[Step]) -> String {
    let mut lines = Lines::new();
    let mut node = HERE;
    for step in steps {
        if step.node != node {
            node = &step.node;
            lines.push(format_args!("-- {node}"));
        }
        let mark = match step.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Missing => "MISSING",
            Verdict::Wrong => "WRONG",
        };
        lines.push(format_args!("{mark:<8} {:<12} {}", step.part, step.found));
        if !step.fix.is_empty() {
            lines.push(format_args!("{:<8} {:<12} {}", "", "to do", step.fix));
        }
    }
    lines.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_the_node_where_it_changes_and_forges_no_line() {
        let steps = [
            Step::ok("route", "172.7.22.0/24 dev flannel.1"),
            Step::missing("neighbour", "172.7.22.0\nok       route", "start netd").at("10.4.7.22"),
        ];
        assert_eq!(
            text(&steps),
            "ok       route        172.7.22.0/24 dev flannel.1\n-- 10.4.7.22\n\
             MISSING  neighbour    172.7.22.0\\nok       route\n         to do        start netd\n"
        );
    }
}
