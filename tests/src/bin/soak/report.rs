//! The report: what was done, what was verified, how long paths took, what was used.
//!
//! Invariant: plain text in tables; the last line says whether the run passed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::act::Action;
use crate::judge::resources::{Samples, allowed};
use crate::prober::PATHS;
use crate::shared::State;

/// What became of the actions.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Times it was done, and times it failed.
    pub(crate) actions: BTreeMap<Action, (u32, u32)>,
    /// What strangers did to rows, and how often.
    pub(crate) deleted: BTreeMap<&'static str, u32>,
    pub(crate) quiet_points: u32,
    /// Errors that daemons logged, without numbers, and how often.
    pub(crate) errors: BTreeMap<String, u32>,
}

impl Tally {
    /// What was never done.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = &'static str> {
        let actions = Action::all().filter(|action| !self.actions.contains_key(action)).map(Action::title);
        let rows = self.deleted.iter().filter(|(_, count)| **count == 0).map(|(what, _)| *what);
        actions.chain(rows)
    }
}

/// Kinds of errors that the report shows.
const ERRORS: usize = 12;

/// The whole report.
pub(crate) fn text(tally: &Tally, state: &State, samples: &Samples) -> String {
    let mut text = String::new();
    let rows = Action::all().map(|action| {
        let (count, failed) = tally.actions.get(&action).copied().unwrap_or_default();
        vec![action.title().to_owned(), count.to_string(), failed.to_string()]
    });
    table(&mut text, &["action", "times", "failed"], rows.collect());
    let rows = tally.deleted.iter().map(|(what, count)| vec![(*what).to_owned(), count.to_string()]);
    table(&mut text, &["deleted or changed by a stranger", "times"], rows.collect());
    let broken = |invariant: &str| state.violations.iter().filter(|violation| violation.invariant == invariant).count();
    let rows =
        state.checks.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string(), broken(name).to_string()]);
    table(&mut text, &["invariant", "verified", "violations"], rows.collect());
    let ledger = &state.ledger;
    let _ = writeln!(
        text,
        "{PATHS}: {} probes, {} of paths that must work, {} failures explained by what follows\n",
        ledger.probes, ledger.settled, ledger.excused
    );
    let rows = ledger.recoveries.iter().map(|(cause, recovery)| {
        let (times, worst, bound) = (recovery.disturbed.to_string(), seconds(recovery.worst), seconds(recovery.bound));
        vec![(*cause).to_owned(), times, worst, bound, recovery.path.clone()]
    });
    table(
        &mut text,
        &["paths disturbed by", "times", "worst recovery", "bound", "on an idle machine; the path"],
        rows.collect(),
    );
    let mut errors: Vec<_> = tally.errors.iter().collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let rows = errors.into_iter().take(ERRORS).map(|(error, count)| vec![error.clone(), count.to_string()]);
    table(&mut text, &["errors in logs", "times"], rows.collect());
    let rows = samples.trends().map(|(what, trend)| {
        let allowed = allowed(what);
        let percent = if allowed.percent > 0 { format!(" and {} %", allowed.percent) } else { String::new() };
        let [first, last, most] = [trend.first, trend.last, trend.most].map(|count| count.to_string());
        vec![what.to_owned(), first, last, most, format!("+{}{percent}", allowed.more)]
    });
    table(&mut text, &["used at quiet points", "first", "last", "most", "allowed"], rows.collect());
    text
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// A table whose columns are as wide as their widest cell.
fn table(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    let all: Vec<Vec<String>> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    for row in &all {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or_default();
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn action_and_row_that_had_no_turn_are_left_out() {
        let tally = Tally {
            actions: Action::all().skip(1).map(|action| (action, (1, 0))).collect(),
            deleted: BTreeMap::from([("all routes", 1), ("a real server", 0)]),
            ..Tally::default()
        };
        assert!(tally.left_out().eq(Action::all().take(1).map(Action::title).chain(["a real server"])));
    }

    #[test]
    fn report_has_a_row_for_each_action_and_counts_violations() {
        let mut state = State::default();
        state.checks.insert("no address twice", 3);
        state.violations.push(crate::shared::Violation {
            at: Duration::ZERO,
            invariant: "no address twice",
            text: String::new(),
        });
        let mut samples = Samples::default();
        samples.add(&BTreeMap::from([("links".to_owned(), 7)]));
        let text = text(&Tally::default(), &state, &samples);
        assert!(Action::all().all(|action| text.contains(action.title())), "{text}");
        let row = |name: &str| {
            text.lines()
                .find(|line| line.contains(name))
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(row("no address twice").as_deref(), Some("no address twice 3 1"));
        assert_eq!(row("links").as_deref(), Some("links 7 7 7 +0"));
    }
}
