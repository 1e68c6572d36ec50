//! `Table`, `Row`: where a kernel table stands; `TableRows`: its rows, desired and actual.

use reconcile::{Counts, Line, Owner, RetryClass, Stage, State};
use serde::{Deserialize, Serialize};

use super::line::Lines;

/// Items of one list that are shown; beyond that only their number is said.
pub const LISTED: usize = reconcile::SHOWN;

/// The first [`LISTED`] of `items`, and how many there are in all.
pub fn bounded<T>(items: impl IntoIterator<Item = T>) -> (Vec<T>, usize) {
    let mut items = items.into_iter();
    let list: Vec<T> = items.by_ref().take(LISTED).collect();
    let count = list.len() + items.count();
    (list, count)
}

/// True when the table was listed and each of its desired rows is in place or was tried, and not all of them failed: one
/// row that the kernel refuses holds nobody up.
#[must_use]
pub const fn is_tried(counts: &Counts) -> bool {
    let missing = counts.desired.saturating_sub(counts.done);
    counts.actual.is_some() && missing <= counts.failed && (missing == 0 || counts.done > 0)
}

/// One kernel table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Table {
    /// Rows that are desired.
    pub desired: usize,
    /// Of these, rows in place.
    pub done: usize,
    /// Why the table could not be listed.
    pub error: Option<String>,
    /// Rows that are not as they should be, at most [`LISTED`].
    pub open: Vec<Row>,
    /// How many there are in all.
    pub open_count: usize,
}

/// One row that is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// The row.
    pub key: String,
    /// `pending`, `waiting` (for something it needs), `retrying` or `refused`.
    pub state: String,
    /// Why the last try failed.
    pub reason: String,
    /// Failures in a row.
    pub times: u32,
}

impl From<&reconcile::TableStatus> for Table {
    fn from(status: &reconcile::TableStatus) -> Self {
        let open = status.open.iter().map(Row::from).collect();
        let (desired, done, error) = (status.desired, status.done, status.observe_error.clone());
        Self { desired, done, error, open, open_count: status.open_count }
    }
}

impl From<&reconcile::Row> for Row {
    fn from(row: &reconcile::Row) -> Self {
        let (state, reason, times) = match &row.state {
            State::Pending => ("pending", String::new(), 0),
            State::Done => ("done", String::new(), 0),
            State::Failed { class, reason, times, .. } => {
                let state = match class {
                    RetryClass::Retry => "retrying",
                    RetryClass::Wait => "waiting",
                    RetryClass::Refuse => "refused",
                };
                (state, reason.clone(), *times)
            }
        };
        Self { key: row.key.clone(), state: state.to_owned(), reason, times }
    }
}

impl Table {
    /// True when every row is in place and the table could be listed.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.error.is_none() && self.open_count == 0 && self.done == self.desired
    }

    /// The lines below the table's own: what is not in place, behind `mark`.
    pub fn write_open(&self, lines: &mut Lines, mark: &str) {
        if let Some(error) = &self.error {
            lines.push(format_args!("{mark}{error}"));
        }
        for row in &self.open {
            if row.reason.is_empty() {
                lines.push(format_args!("{mark}{} {}", row.state, row.key));
            } else {
                lines.push(format_args!("{mark}{} {}: {}", row.state, row.key, row.reason));
            }
        }
        if self.open_count > self.open.len() {
            lines.push(format_args!("{mark}and {} more", self.open_count - self.open.len()));
        }
    }
}

/// One row with what is desired and what the kernel holds, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowText {
    /// The row as desired; `None` when nobody desires it.
    pub desired: Option<String>,
    /// The row as the kernel holds it; `None` when it does not.
    pub actual: Option<String>,
    /// True when the actual row satisfies the desired one.
    pub equal: bool,
    /// True when the row is this program's to remove.
    pub own: bool,
}

impl From<Line> for RowText {
    fn from(line: Line) -> Self {
        let Line { key, desired, actual, state } = line;
        let row = |value: String| netstate::row_text(&key, &value);
        let (actual, own) = match actual {
            Some((value, owner)) => (Some(row(value)), owner == Owner::Ours),
            None => (None, true),
        };
        Self { desired: desired.map(row), actual, equal: state == State::Done, own }
    }
}

/// The rows of one table that are desired or this program's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// Name of the table.
    pub name: String,
    /// False when the kernel could not be listed, or not yet: nothing is known of the actual rows then.
    pub listed: bool,
    /// The rows, in order of their keys.
    pub rows: Vec<RowText>,
}

impl TableRows {
    /// The rows of `stage`, as it knows them.
    pub fn of(stage: &dyn Stage) -> Self {
        let ours = |line: &Line| line.desired.is_some() || matches!(line.actual, Some((_, Owner::Ours)));
        Self {
            name: stage.name().to_owned(),
            listed: stage.counts().actual.is_some(),
            rows: stage.lines().into_iter().filter(ours).map(RowText::from).collect(),
        }
    }

    /// The table for a terminal. In front of a row stands a blank when it is as desired, `+` when it is missing, `-`
    /// when it is superfluous; a row that differs is shown both ways, `-` as it is and `+` as desired.
    pub fn write(&self, lines: &mut Lines) {
        let count = self.rows.iter().filter(|row| row.desired.is_some()).count();
        let note = if self.listed { "" } else { ", kernel not listed" };
        lines.push(format_args!("table {} ({count} desired{note})", self.name));
        for row in &self.rows {
            match (&row.desired, &row.actual) {
                (Some(desired), Some(_)) if row.equal => lines.push(format_args!("  {desired}")),
                (desired, actual) => {
                    if let Some(actual) = actual {
                        lines.push(format_args!("- {actual}"));
                    }
                    if let Some(desired) = desired {
                        lines.push(format_args!("{} {desired}", if self.listed { '+' } else { '?' }));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(desired: Option<&str>, actual: Option<&str>) -> RowText {
        let equal = desired == actual;
        RowText { desired: desired.map(str::to_owned), actual: actual.map(str::to_owned), equal, own: true }
    }

    #[test]
    fn rows_are_shown_as_a_difference() {
        let rows = TableRows {
            name: "routes".to_owned(),
            listed: true,
            rows: vec![
                row(Some("route a via x"), Some("route a via x")),
                row(Some("route b via x"), Some("route b via y")),
                row(Some("route c via x"), None),
                row(None, Some("route d\nvia x")),
            ],
        };
        let mut lines = Lines::new();
        rows.write(&mut lines);
        TableRows { listed: false, rows: vec![row(Some("route e"), None)], ..rows }.write(&mut lines);
        assert_eq!(
            lines.into_text(),
            "\
table routes (3 desired)
  route a via x
- route b via y
+ route b via x
+ route c via x
- route d\\nvia x
table routes (1 desired, kernel not listed)
? route e
"
        );
    }

    #[test]
    fn a_table_is_tried_when_no_row_waits_and_not_all_failed() {
        let counts = |desired, done, failed| Counts { desired, done, failed, actual: Some(done), ..Counts::default() };
        assert!(is_tried(&counts(0, 0, 0)));
        assert!(is_tried(&counts(2, 1, 1)));
        assert!(!is_tried(&counts(1, 0, 1)), "every row failed");
        assert!(!is_tried(&counts(2, 1, 0)), "one was not tried");
        assert!(!is_tried(&Counts { actual: None, ..counts(0, 0, 0) }), "not listed");
    }

    #[test]
    fn lists_are_bounded_and_their_number_is_said() {
        let open = |number: usize| reconcile::Row { key: format!("row {number}"), state: State::Pending };
        let (open, open_count) = ((0..LISTED).map(open).collect(), 250);
        let status = reconcile::TableStatus { desired: 250, open, open_count, ..Default::default() };
        let table = Table::from(&status);
        assert_eq!((table.open.len(), table.open_count, table.is_done()), (LISTED, 250, false));
        let mut lines = Lines::new();
        table.write_open(&mut lines, "! ");
        let text = lines.into_text();
        assert!(text.starts_with("! pending row 0\n") && text.ends_with("\n! and 150 more\n"), "{text}");
    }
}
