//! The tests of the kernel's half and the demo on several lab kernels, and the table of what became of them.
//!
//! Which tests these are says the file `tests/kernel/suites`. Invariants: a kernel that is not built is an error, never a column less; a
//! test that cannot run on a kernel is counted as skipped and its reason printed below the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::job::{self, Job};
use super::report::{Counts, Report};

/// The name of the demo among the test binaries of the list; behind it the mode of the proxy.
const DEMO: &str = "demo/";

/// The kernel without nearly all that the programs can make use of, and the only suite that it runs: what others need it lacks.
const LEAN: (&str, &str) = ("lean", "what a kernel lacks is said");

/// What the numbers in a cell are.
const HEAD: &str = "passed/failed/skipped";

/// Test binaries by suite, each as `package/target`, and those that are not run, by reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    suites: Vec<(String, Vec<String>)>,
    others: Vec<(String, Vec<String>)>,
}

impl List {
    /// Lines `SUITE: NAME NAME ...`, `- REASON: NAME ...`, comments.
    fn read(text: &str) -> Result<Self> {
        let mut list = Self::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (head, names) = line.rsplit_once(": ").with_context(|| format!("{line:?} has no colon"))?;
            let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            ensure!(!names.is_empty(), "{head} has no tests");
            match head.strip_prefix("- ") {
                Some(reason) => list.others.push((reason.to_owned(), names)),
                None => list.suites.push((head.to_owned(), names)),
            }
        }
        let all: Vec<&String> = list.suites.iter().chain(&list.others).flat_map(|(_, names)| names).collect();
        let mut once = BTreeSet::new();
        match all.into_iter().find(|name| !once.insert(*name)) {
            Some(twice) => bail!("{twice} is named twice"),
            None => Ok(list),
        }
    }

    fn of_tree() -> Result<Self> {
        let path = folder().join("suites");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::read(&text).with_context(|| path.display().to_string())
    }

    fn wanted(&self) -> impl Iterator<Item = (&str, &str)> {
        self.suites.iter().flat_map(|(suite, names)| names.iter().map(|name| (suite.as_str(), name.as_str())))
    }
}

fn folder() -> PathBuf {
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
    let names: Vec<(&str, &str)> = list.wanted().filter(|(_, name)| wanted(name)).collect();
    ensure!(!names.is_empty(), "no test of tests/kernel/suites has a name with {words:?}");
    let binaries = names.iter().map(|(_, name)| *name).filter(|name| !name.starts_with(DEMO));
    let built = job::named(&binaries.collect::<Vec<_>>())?;
    let (mut jobs, mut places) = (Vec::new(), BTreeMap::new());
    for kernel in &kernels {
        for (suite, name) in names.iter().filter(|(suite, _)| kernel.version != LEAN.0 || *suite == LEAN.1) {
            let job = match name.strip_prefix(DEMO) {
                Some(mode) => Job::of_demo(mode)?,
                None => built.get(*name).with_context(|| format!("cargo has no test {name}"))?.clone(),
            };
            let job = job.inside(&kernel.version, &kernel.path);
            places.insert(job.title.clone(), (kernel.version.clone(), (*suite).to_owned()));
            jobs.push(job);
        }
    }
    let columns = kernels.iter().map(|kernel| (kernel.version.clone(), kernel.release())).collect();
    let rows = list.suites.into_iter().map(|(suite, _)| suite).collect();
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
    use std::fs;

    use super::*;

    #[test]
    fn list_is_read_and_a_test_that_is_named_twice_refused() {
        let list = List::read("# of it\ntunnels: tests/a tests/b\n\n- the store: tests/c\n").unwrap();
        assert_eq!(list.wanted().collect::<Vec<_>>(), [("tunnels", "tests/a"), ("tunnels", "tests/b")]);
        assert_eq!(list.others, [("the store".to_owned(), vec!["tests/c".to_owned()])]);
        for wrong in ["tunnels", "tunnels: ", "a: tests/a\n- b: tests/a\n"] {
            assert!(List::read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lean_kernel_has_tests() {
        assert!(List::of_tree().unwrap().wanted().any(|(suite, _)| suite == LEAN.1));
    }

    #[test]
    fn every_test_of_a_program_and_of_the_kernels_crate_is_listed_and_every_one_listed_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let list = List::of_tree().unwrap();
        let listed: BTreeSet<&String> = list.suites.iter().chain(&list.others).flat_map(|(_, names)| names).collect();
        let mut missing = Vec::new();
        for package in ["tests", "lib/kernel"] {
            for entry in fs::read_dir(root.join(package).join("tests")).unwrap().flatten() {
                let path = entry.path();
                let Some(stem) = path.extension().filter(|it| *it == "rs").and(path.file_stem()) else { continue };
                let name = format!("{}/{}", package.trim_start_matches("lib/"), stem.to_string_lossy());
                let of_program =
                    ["netd_", "proxy_", "cni_", "lab_"].iter().any(|it| stem.to_string_lossy().starts_with(it));
                let concerns = package == "lib/kernel" || of_program;
                missing.extend(Some(name).filter(|name| concerns && !listed.contains(name)));
            }
        }
        assert!(missing.is_empty(), "tests/kernel/suites neither runs these nor says why not: {missing:?}");
        let is_there = |name: &str| {
            let (package, target) = name.split_once('/').unwrap();
            let file =
                |folder: &str| root.join(folder).join(package).join("tests").join(format!("{target}.rs")).exists();
            package == "demo" || file("") || file("lib")
        };
        let gone: Vec<_> = listed.iter().filter(|name| !is_there(name)).collect();
        assert!(gone.is_empty(), "tests/kernel/suites names tests that are not there: {gone:?}");
    }

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
