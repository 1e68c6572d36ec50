//! What is printed of a binary when it ends, and of all of them at the end.
//!
//! Invariants: a binary that failed is named at the end with the command that runs it alone and with what failed in it, however much was
//! printed before; so is one that passed alone only.

use std::fmt;
use std::time::{Duration, Instant};

use super::job::{Ended, Job};

/// The longest binaries that are named at the end.
const NAMED: usize = 10;

/// The letters of a test's reason.
const REASON: usize = 300;

/// All that have ended.
#[derive(Debug)]
pub(crate) struct Report {
    begun: Instant,
    entries: Vec<Entry>,
    failed: Vec<Failure>,
    /// Failed beside others, and passed alone.
    unsteady: Vec<Failure>,
    counts: Counts,
}

/// One that has ended.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    took: Duration,
    pub(crate) title: String,
    pub(crate) counts: Counts,
    /// Why tests of it were skipped.
    pub(crate) reasons: Vec<String>,
}

impl Entry {
    fn of(ended: &Ended) -> Self {
        let output = String::from_utf8_lossy(&ended.output);
        let mut counts = Counts::default();
        counts.add(&output);
        // What is no test binary, or has ended before its end, is one test.
        if counts == Counts::default() {
            let failed = usize::from(bad_end(ended).is_some());
            counts = Counts { passed: 1 - failed, failed, ignored: 0 };
        }
        let reason =
            |line: &str| line.strip_suffix(')')?.split_once("... ignored (").map(|(_, reason)| reason.to_owned());
        let mut reasons: Vec<String> = output.lines().filter_map(reason).collect();
        reasons.sort();
        reasons.dedup();
        Self { took: ended.took, title: ended.job.title.clone(), counts, reasons }
    }
}

/// A binary that did not pass, and how it ended.
#[derive(Debug)]
struct Failure {
    job: Job,
    end: String,
    /// Its tests that failed, each with the place and the first line of its reason.
    tests: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; alone: {}", self.job.title, self.end, self.job.alone)?;
        self.tests.iter().try_for_each(|test| write!(f, "\n    {test}"))
    }
}

/// Tests, added up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.passed, self.failed, self.ignored)
    }
}

impl Counts {
    pub(crate) const fn add_counts(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Adds the numbers in the lines `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, output: &str) {
        for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            for part in line.split(['.', ';']) {
                match part.trim().split_once(' ') {
                    Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                    Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                    Some((number, "ignored")) => self.ignored += number.parse().unwrap_or(0),
                    _ => {}
                }
            }
        }
    }
}

impl Report {
    /// An empty one of what begins at this time.
    pub(crate) const fn new(begun: Instant) -> Self {
        let counts = Counts { passed: 0, failed: 0, ignored: 0 };
        Self { begun, entries: Vec::new(), failed: Vec::new(), unsteady: Vec::new(), counts }
    }

    /// Each that has ended; one that was run twice as it ended the second time.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Notes one; returns what is to be printed of it.
    pub(crate) fn take(&mut self, ended: Ended) -> Vec<u8> {
        let text = printed(&ended);
        self.counts.add(&String::from_utf8_lossy(&ended.output));
        self.entries.push(Entry::of(&ended));
        if let Some(end) = bad_end(&ended) {
            let tests = failed_tests(&String::from_utf8_lossy(&ended.output));
            self.failed.push(Failure { job: ended.job, end, tests });
        }
        text
    }

    /// What failed, in order to be run alone and [noted](Self::take_alone) again.
    pub(crate) fn failed(&self) -> Vec<Job> {
        self.failed.iter().map(|failure| failure.job.clone()).collect()
    }

    /// Notes one that failed before and was run alone; returns what is to be printed of it.
    pub(crate) fn take_alone(&mut self, ended: &Ended) -> Vec<u8> {
        let title = &ended.job.title;
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.title == *title) {
            *entry = Entry { took: entry.took, ..Entry::of(ended) };
        }
        if bad_end(ended).is_none() {
            self.unsteady.extend(self.failed.extract_if(.., |failure| failure.job.title == ended.job.title));
        }
        printed(ended)
    }

    /// Whether every one passed.
    pub(crate) const fn passed(&self) -> bool {
        self.failed.is_empty()
    }
}

fn printed(ended: &Ended) -> Vec<u8> {
    let mut text = format!("     Running {} ({:.1} s)\n", ended.job.title, ended.took.as_secs_f64()).into_bytes();
    text.extend_from_slice(&ended.output);
    text
}

/// The tests that failed by what libtest (`---- NAME stdout ----`) or the lab's harness (`---- NAME ----`) printed of them, in the order of the
/// output: `name: place: first line of the reason`.
fn failed_tests(output: &str) -> Vec<String> {
    let sections = output.split("\n---- ").skip(1).filter_map(|section| section.split_once(" ----\n"));
    sections.map(|(name, said)| format!("{}: {}", name.trim_end_matches(" stdout"), reason(said))).collect()
}

/// Place and first line of a panic; the first line of what was printed where nothing panicked.
fn reason(said: &str) -> String {
    let panic = said.split_once(" panicked at ").map(|(_, rest)| rest.lines().take(2).collect::<Vec<_>>().join(" "));
    let first = || said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    panic.unwrap_or_else(first).chars().take(REASON).collect()
}

/// How it ended, unless it passed.
fn bad_end(ended: &Ended) -> Option<String> {
    match &ended.end {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(reason) => Some(reason.clone()),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { passed, failed, ignored } = self.counts;
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by(|one, other| other.cmp(one));
        let one_by_one: Duration = entries.iter().map(|entry| entry.took).sum();
        writeln!(f, "\nThe longest:")?;
        for Entry { took, title, .. } in entries.into_iter().take(NAMED) {
            writeln!(f, "  {:6.1} s  {title}", took.as_secs_f64())?;
        }
        writeln!(
            f,
            "{passed} tests passed, {failed} failed, {ignored} ignored, in {} binaries: {:.0} s, one after the other {:.0} s",
            self.entries.len(),
            self.begun.elapsed().as_secs_f64(),
            one_by_one.as_secs_f64()
        )?;
        for unsteady in &self.unsteady {
            writeln!(f, "UNSTEADY (failed beside others, passed alone; to be mended) {unsteady}")?;
        }
        for failed in &self.failed {
            writeln!(f, "FAILED {failed}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn ended(title: &str, status: i32, output: &str) -> Ended {
        let end = Ok(ExitStatus::from_raw(status << 8));
        let mut job = Job::of_shell("true");
        (job.title, job.alone) = (title.to_owned(), format!("cargo test --test {title}"));
        Ended { job, took: Duration::from_millis(1500), output: output.as_bytes().to_vec(), end }
    }

    #[test]
    fn tests_are_added_up_and_failures_are_named_at_the_end() {
        let mut report = Report::new(Instant::now());
        let printed =
            report.take(ended("one", 0, "running\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n"));
        assert!(printed.starts_with(b"     Running one (1.5 s)\nrunning\n"), "{printed:?}");
        assert!(report.passed());
        report.take(ended("two", 101, "test result: FAILED. 20 passed; 2 failed; 0 ignored; 0 measured\n"));
        report.take(Ended { end: Err("start it: no such file".to_owned()), ..ended("three", 0, "") });
        assert!(!report.passed());
        let text = report.to_string();
        assert!(text.contains("23 tests passed, 2 failed, 1 ignored, in 3 binaries"), "{text}");
        assert!(text.contains("FAILED two: exit status: 101; alone: cargo test --test two\n"), "{text}");
        assert!(text.ends_with("FAILED three: start it: no such file; alone: cargo test --test three\n"), "{text}");
    }

    #[test]
    fn what_failed_in_a_binary_is_named_with_place_and_reason() {
        let libtest = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nstep one\n\nthread 'a' (7) panicked at src/a.rs:79:5:\n\
                       assertion failed: x\n  left: 1\n\n---- b::c stdout ----\nError: \"no\"\n\nfailures:\n    a\n    b::c\n\n\
                       test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        let harness = "test d ... FAILED\n\nfailures:\n\n---- d ----\nno answer within 2s\n  log of netd:\n    | ready\n\nfailures:\n    d\n";
        let named = |output| {
            let mut report = Report::new(Instant::now());
            report.take(ended("one", 101, output));
            report.to_string().split_once("alone: cargo test --test one").unwrap().1.to_owned()
        };
        assert_eq!(named(libtest), "\n    a: src/a.rs:79:5: assertion failed: x\n    b::c: Error: \"no\"\n");
        assert_eq!(named(harness), "\n    d: no answer within 2s\n");
        assert_eq!(named("no test at all"), "\n");
    }

    #[test]
    fn entry_has_what_was_counted_and_the_reasons_of_what_was_skipped_each_once() {
        let skipped = "test a ... ignored (this kernel has no vrf links)\ntest b ... ignored (this kernel has no vrf links)\n\
                       test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured\n";
        let entry = Entry::of(&ended("one", 0, skipped));
        assert_eq!(
            (entry.counts.to_string().as_str(), entry.reasons),
            ("1/0/2", vec!["this kernel has no vrf links".to_owned()])
        );
        for (status, counts) in [(0, "1/0/0"), (125, "0/1/0")] {
            assert_eq!(Entry::of(&ended("a program", status, "no count")).counts.to_string(), counts);
        }
    }

    #[test]
    fn one_that_passes_alone_is_named_as_unsteady_and_one_that_does_not_has_failed() {
        let mut report = Report::new(Instant::now());
        for title in ["one", "two"] {
            report.take(ended(title, 101, "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n"));
        }
        assert_eq!(report.failed().len(), 2);
        report.take_alone(&ended("one", 0, "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n"));
        report.take_alone(&ended("two", 101, ""));
        let text = report.to_string();
        assert!(!report.passed());
        assert!(text.contains("2 tests passed, 2 failed"), "what failed once is counted: {text}");
        assert!(
            text.contains("UNSTEADY (failed beside others, passed alone; to be mended) one: exit status: 101"),
            "{text}"
        );
        assert!(text.contains("FAILED two") && !text.contains("FAILED one"), "{text}");
        report.take_alone(&ended("two", 0, ""));
        assert!(report.passed());
    }
}
