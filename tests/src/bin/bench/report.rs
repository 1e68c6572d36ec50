//! The report: sections, sentences and tables, for a terminal or for docs/benchmarks.md.
//!
//! Invariant: both forms show the same figures; a table is printed as soon as it is complete, so an aborted run has not measured
//! for nothing.

/// Prints in one of two forms.
#[derive(Debug)]
pub(crate) struct Report {
    markdown: bool,
}

impl Report {
    pub(crate) fn new(markdown: bool) -> Self {
        Self { markdown }
    }

    pub(crate) fn title(&self, text: &str) {
        println!("{}{text}\n", if self.markdown { "# " } else { "" });
    }

    pub(crate) fn section(&self, text: &str) {
        if self.markdown { println!("\n### {text}\n") } else { println!("\n== {text}") }
    }

    /// A sentence below a table or a heading.
    pub(crate) fn text(&self, text: &str) {
        if self.markdown { println!("{text}\n") } else { println!("  {text}") }
    }

    /// Says what goes on, on standard error: it is no part of the report.
    pub(crate) fn progress(&self, text: &str) {
        eprintln!("bench: {text}");
    }

    /// Prints a table: the first column names the row, the others are figures and stand right.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        let head: Vec<String> = head.iter().map(|&title| title.to_owned()).collect();
        let widths = widths(&head, rows);
        println!("{}", self.line(&head, &widths));
        if self.markdown {
            let rule = |index: usize| if index == 0 { "---" } else { "---:" };
            let rules: Vec<&str> = (0..head.len()).map(rule).collect();
            println!("| {} |", rules.join(" | "));
        }
        for row in rows {
            println!("{}", self.line(row, &widths));
        }
        if self.markdown {
            println!();
        }
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        if self.markdown {
            return format!("| {} |", cells.join(" | "));
        }
        let padded = cells.iter().zip(widths).enumerate().map(|(index, (cell, width))| match index {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("  {}", padded.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    }
}

fn widths(head: &[String], rows: &[Vec<String>]) -> Vec<usize> {
    let width = |row: &[String], column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widest = |column| rows.iter().map(|row| width(row, column)).chain([width(head, column)]).max().unwrap_or(0);
    (0..head.len()).map(widest).collect()
}

/// Milliseconds with three significant digits or so: `0.185`, `1.84`, `18.4`, `184`.
pub(crate) fn ms(value: f64) -> String {
    match value {
        value if value < 1.0 => format!("{value:.3}"),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// How many times `base` fits into `value`: `1.8×`.
pub(crate) fn times(value: f64, base: f64) -> String {
    if base > 0.0 { format!("{:.2}×", value / base) } else { "–".to_owned() }
}
