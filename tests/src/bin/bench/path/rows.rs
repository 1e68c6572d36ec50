//! Rows that are measured by turns, and what each is beside its base.
//!
//! Invariant: a row is compared with what its base was in the same round, so that a machine that becomes slower or faster from round to round
//! moves both; rounds go through the rows forwards and backwards by turns. Shown is the median of the rounds' quotients, and within what
//! the middle half of them lies.

use anyhow::{Context, Result, bail};

use super::load::Sample;
use crate::machine;
use crate::report::Report;

/// Columns of the tables.
const COLUMNS: [&str; 11] = [
    "path",
    "Gbit/s",
    "of base",
    "middle half",
    "processor/KiB, ns",
    "base of it",
    "middle half",
    "round trip, µs",
    "of base",
    "processor/trip, µs",
    "base of it",
];

/// One row.
struct Row {
    label: String,
    /// Number of the row that it is compared with.
    base: usize,
    samples: Vec<Sample>,
}

/// The rows of one table.
#[derive(Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    busy: usize,
}

impl Rows {
    /// Adds a row that is compared with another one, or with itself, and returns its number.
    pub(crate) fn add(&mut self, label: impl Into<String>, base: Option<usize>) -> usize {
        let index = self.rows.len();
        self.rows.push(Row { label: label.into(), base: base.unwrap_or(index), samples: Vec::new() });
        index
    }

    /// The name of a row.
    pub(crate) fn label(&self, index: usize) -> &str {
        self.rows.get(index).map_or("", |row| row.label.as_str())
    }

    /// The numbers of all rows as round `round` takes them.
    pub(crate) fn order(&self, round: usize) -> Vec<usize> {
        let forwards = 0..self.rows.len();
        if round.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
    }

    /// Measures row `index` once.
    pub(crate) fn measure(&mut self, index: usize, take: impl FnOnce() -> Result<Sample>) -> Result<()> {
        self.busy += usize::from(!machine::await_calm());
        let Some(row) = self.rows.get_mut(index) else { bail!("no row {index}") };
        row.samples.push(take().with_context(|| row.label.clone())?);
        Ok(())
    }

    pub(crate) fn print(&self, report: &Report) {
        report.table(&COLUMNS, &self.rows.iter().map(|row| self.line(row)).collect::<Vec<_>>());
        if self.busy > 0 {
            report.text(&format!("{} measurements began on a busy machine.", self.busy));
        }
    }

    fn line(&self, row: &Row) -> Vec<String> {
        let base = self.rows.get(row.base).map(|base| base.samples.as_slice()).unwrap_or_default();
        let median = |of: fn(&Sample) -> f64, digits: usize| match quarters(row.samples.iter().map(of).collect()) {
            Some([_, median, _]) => format!("{median:.digits$}"),
            None => "–".to_owned(),
        };
        // Better is larger.
        let throughput = beside(&row.samples, base, |own, base| own.throughput / base.throughput);
        let per_kib = beside(&row.samples, base, |own, base| base.per_kib / own.per_kib);
        let round_trip = beside(&row.samples, base, |own, base| base.round_trip / own.round_trip);
        let per_trip = beside(&row.samples, base, |own, base| base.per_trip / own.per_trip);
        vec![
            row.label.clone(),
            median(|sample| sample.throughput, 2),
            middle(throughput),
            half(throughput),
            median(|sample| sample.per_kib, 0),
            middle(per_kib),
            half(per_kib),
            median(|sample| sample.round_trip, 1),
            middle(round_trip),
            median(|sample| sample.per_trip, 1),
            middle(per_trip),
        ]
    }
}

/// The quarters of the quotients of each round.
fn beside(own: &[Sample], base: &[Sample], quotient: impl Fn(&Sample, &Sample) -> f64) -> Option<[f64; 3]> {
    quarters(own.iter().zip(base).map(|(own, base)| quotient(own, base)).collect())
}

/// A quarter, a half and three quarters of the values are at most these. None of what is not known, which is 0 or a quotient of it.
fn quarters(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.retain(|value| value.is_finite() && *value > 0.0);
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |quarter: usize| values.get((last * quarter + 2) / 4).copied();
    Some([at(1)?, at(2)?, at(3)?])
}

fn middle(quarters: Option<[f64; 3]>) -> String {
    quarters.map_or_else(|| "–".to_owned(), |[_, median, _]| format!("{median:.2}"))
}

fn half(quarters: Option<[f64; 3]>) -> String {
    quarters.map_or_else(|| "–".to_owned(), |[lower, _, upper]| format!("{lower:.2}–{upper:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_is_compared_with_its_base_round_by_round() {
        let samples = |values: &[f64]| -> Vec<Sample> {
            values.iter().map(|value| Sample { throughput: *value, ..Sample::default() }).collect()
        };
        // The machine becomes five times as fast; the row is always half as fast as its base.
        let (own, base) = (samples(&[1.0, 2.0, 5.0]), samples(&[2.0, 4.0, 10.0]));
        let quotient = |own: &Sample, base: &Sample| own.throughput / base.throughput;
        assert_eq!(beside(&own, &base, quotient), Some([0.5; 3]));
        assert_eq!(beside(&own, &base, |own, base| base.per_kib / own.per_kib), None, "unknown");
        assert_eq!(quarters((1..=9).map(f64::from).collect()), Some([3.0, 5.0, 7.0]));
        assert_eq!(quarters(vec![4.0]), Some([4.0; 3]));
    }
}
