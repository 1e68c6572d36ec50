//! The tests of the kernel's half and the demo on several lab kernels, and the table of what became of them.
//!
//! Which tests these are says the file `tests/kernel/suites`. Invariants: a kernel that is not built is an error, never a column less; a
//! test that cannot run on a kernel is counted as skipped and its reason printed below the table.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::job::{self, Job};
use super::report::{Counts, Report};
use super::suites::{List, Part};

/// The kernel without nearly all that the programs can make use of, and the only suite that it runs: what others need it lacks.
pub(crate) const LEAN: (&str, &str) = ("lean", "what a kernel lacks is said");

/// What the numbers in a cell are.
const HEAD: &str = "passed/failed/skipped";

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel")
}

/// A built lab kernel.
struct Kernel {
    version: String,
    path: PathBuf,
}

impl Kernel {
    fn find(version: &str) -> Result<Self> {
        let asked = Command::new(folder().join("build")).args([version, "--path"]).output();
        let asked = asked.context("run tests/kernel/build")?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr).trim());
        let path = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
        Ok(Self { version: version.to_owned(), path })
    }

    /// The release that it says of itself.
    fn release(&self) -> String {
        let asked = Command::new(folder().join("run")).arg("-k").arg(&self.path).args(["uname", "-r"]).output();
        asked.map_or_else(|error| error.to_string(), |it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
    }
}

/// The jobs of all `kernels` whose names contain one of `words`, each with the column and the row of its result.
///
/// # Errors
/// When a kernel or a test is not there, or cargo does not build.
pub(crate) fn jobs(kernels: &[String], words: &[String]) -> Result<(Vec<Job>, Table)> {
    let list = List::of_tree()?;
    let kernels: Vec<Kernel> = kernels.iter().map(|version| Kernel::find(version)).collect::<Result<_>>()?;
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let parts: Vec<(&str, Part<'_>)> = list.parts().into_iter().filter(|(_, part)| wanted(part.name)).collect();
    ensure!(!parts.is_empty(), "no test of tests/kernel/suites has a name with {words:?}");
    let built = job::named(
        &parts.iter().filter(|(_, part)| part.mode().is_none()).map(|(_, part)| part.target()).collect::<Vec<_>>(),
    )?;
    let (mut jobs, mut places) = (Vec::new(), BTreeMap::new());
    for kernel in &kernels {
        for (suite, part) in parts.iter().filter(|(suite, _)| kernel.version != LEAN.0 || *suite == LEAN.1) {
            let job = match part.mode() {
                Some(mode) => Job::of_demo(mode)?,
                None => {
                    let whole = built.get(part.target()).with_context(|| format!("cargo has no test {}", part.name))?;
                    whole.part(part.word(), &part.without)
                }
            };
            let job = job.inside(&kernel.version, &kernel.path);
            places.insert(job.title.clone(), (kernel.version.clone(), (*suite).to_owned()));
            jobs.push(job);
        }
    }
    let columns = kernels.iter().map(|kernel| (kernel.version.clone(), kernel.release())).collect();
    let rows = list.rows().map(str::to_owned).collect();
    Ok((jobs, Table { columns, rows, places, cells: BTreeMap::new(), notes: Vec::new() }))
}

/// What became of each suite on each kernel.
#[derive(Debug)]
pub(crate) struct Table {
    /// Versions that were asked for, each with the release of its kernel.
    columns: Vec<(String, String)>,
    rows: Vec<String>,
    /// Column and row of each job, by its title.
    places: BTreeMap<String, (String, String)>,
    cells: BTreeMap<(String, String), Counts>,
    notes: Vec<String>,
}

impl Table {
    /// Takes the results of all jobs.
    pub(crate) fn fill(&mut self, report: &Report) {
        for entry in report.entries() {
            let Some(place) = self.places.get(&entry.title) else { continue };
            self.cells.entry(place.clone()).or_default().add_counts(&entry.counts);
            self.notes.extend(entry.reasons.iter().map(|reason| format!("{}: {reason}", entry.title)));
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.chars().count()).chain([HEAD.len()]).max().unwrap_or(0);
        write!(f, "\n{HEAD:width$}")?;
        for (version, release) in &self.columns {
            let title =
                if release.starts_with(version.as_str()) { release.clone() } else { format!("{version} {release}") };
            write!(f, "  {title:>18}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            if !self.cells.keys().any(|(_, suite)| suite == row) {
                continue;
            }
            write!(f, "{row:width$}")?;
            for (version, _) in &self.columns {
                let cell = self.cells.get(&(version.clone(), row.clone())).map(ToString::to_string);
                write!(f, "  {:>18}", cell.unwrap_or_default())?;
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "skipped: {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_row_for_each_suite_that_ran_a_column_for_each_kernel_and_the_reasons() {
        let columns = vec![("5.10".to_owned(), "5.10.2-lab".to_owned()), ("newest".to_owned(), "7.3.4-lab".to_owned())];
        let place = |version: &str| (version.to_owned(), "tunnels".to_owned());
        let cells = [("5.10", 3, 1, 0), ("newest", 2, 0, 2)]
            .map(|(version, passed, failed, ignored)| (place(version), Counts { passed, failed, ignored }));
        let rows = vec!["tunnels".to_owned(), "none".to_owned()];
        let notes = vec!["newest: tests/a: no vrf".to_owned()];
        let table = Table { columns, rows, places: BTreeMap::new(), cells: cells.into(), notes };
        let expected = "
passed/failed/skipped          5.10.2-lab    newest 7.3.4-lab
tunnels               3/1/0               2/0/2
skipped: newest: tests/a: no vrf
";
        let squeezed = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(squeezed(&table.to_string()), squeezed(expected));
    }
}
