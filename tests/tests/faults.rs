//! The table of faults (`tests/faults/*.txt`) held against the tests that there are and against the list of faults.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod registered;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use registered::has_test;

/// The faults of the list, by letter: how many there are, and the later issue that mends what is not mended here.
const LIST: [(char, u32, &str); 4] = [('T', 4, ""), ('C', 8, ""), ('N', 25, "8"), ('P', 31, "9")];

/// The faults of the list that it gives no number: the name here behind the letter of their section, and how the list begins each.
const UNNUMBERED: [(&str, &str); 4] = [
    ("P-by-reading", "By reading only, to be shown by errno injection: the record is removed"),
    ("N-default-route", "A default route with several next hops"),
    ("N-own-subnet", "A route that a predecessor left for what is now the *own* subnet"),
    ("N-by-reading", "By reading: a panic of the kernel thread"),
];

/// What issue 7 mends: every one of these has a test.
const MENDED: &str = "T1 T2 T3 T4 C1 C2 C3 C4 C5 C6 C7 C8 \
    N1 N2 N3 N4 N5 N6 N7 N8 N9 N10 N11 N12 N15 N16 N23 \
    P1 P2 P3 P4 P5 P6 P7 P9 P10 P12 P13 P18 P21 P24";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A line of the table.
#[derive(Debug)]
enum Row {
    Test { file: String, name: String },
    Later { issue: String },
}

/// The rows of all files by fault.
fn table() -> Result<BTreeMap<String, Vec<Row>>> {
    let mut table: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for (letter, ..) in LIST {
        let path = root().join(format!("tests/faults/{letter}.txt"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [fault, middle, last] = words[..] else { panic!("{letter}.txt: {line:?} is not `ID FILE TEST`") };
            ensure!(fault.starts_with(letter), "{letter}.txt: {line:?} is of another letter");
            let row = match middle {
                "issue" => Row::Later { issue: last.to_owned() },
                file => Row::Test { file: file.to_owned(), name: last.to_owned() },
            };
            table.entry(fault.to_owned()).or_default().push(row);
        }
    }
    Ok(table)
}

/// Every fault of the list.
fn listed() -> BTreeSet<String> {
    LIST.iter().flat_map(|(letter, count, _)| (1..=*count).map(move |number| format!("{letter}{number}"))).collect()
}

fn every_named_test_exists() -> Result<()> {
    let mut wrong = Vec::new();
    for (fault, rows) in table()? {
        let is_named = UNNUMBERED.iter().any(|(name, _)| *name == fault);
        ensure!(is_named || listed().contains(&fault), "{fault} is not in the list of faults");
        for row in rows {
            let Row::Test { file, name } = row else { continue };
            if !has_test(&root().join(&file), &name) {
                wrong.push(format!("{fault}: {file} has no test {name}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn every_fault_has_a_test_or_a_later_issue() -> Result<()> {
    let table = table()?;
    let mended: BTreeSet<&str> = MENDED.split_whitespace().collect();
    let mut open = Vec::new();
    for (letter, count, issue) in LIST {
        for fault in (1..=count).map(|number| format!("{letter}{number}")) {
            let rows = table.get(&fault).map_or(&[][..], Vec::as_slice);
            let shown = rows.iter().any(|row| matches!(row, Row::Test { .. }));
            let later = rows.iter().any(|row| matches!(row, Row::Later { issue: named } if named == issue));
            if mended.contains(fault.as_str()) {
                ensure!(!later, "{fault} is mended here, not later");
                if !shown {
                    open.push(fault);
                }
            } else {
                ensure!(shown || later, "{fault} has neither a test nor the line `{fault} issue {issue}`");
            }
        }
    }
    let unnumbered = UNNUMBERED.iter().map(|(name, _)| (*name).to_owned());
    open.extend(unnumbered.filter(|name| !table.contains_key(name)));
    ensure!(open.is_empty(), "mended here, and no test shows it: {}", open.join(" "));
    Ok(())
}

fn list_is_the_one_that_was_handed_over() -> Result<()> {
    let Some(text) = ["../shared", "../../shared"]
        .iter()
        .find_map(|folder| fs::read_to_string(root().join(folder).join("faults.md")).ok())
    else {
        eprintln!("faults: SKIPPED, no shared/faults.md beside the tree: the numbers kept here are taken as they are");
        return Ok(());
    };
    let is_fault = |word: &&str| {
        LIST.iter().any(|(letter, ..)| word.strip_prefix(*letter).is_some_and(|n| n.parse::<u32>().is_ok()))
    };
    let found: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("* ")?.split_whitespace().next())
        .filter(is_fault)
        .map(str::to_owned)
        .collect();
    ensure!(found == listed(), "the list names {found:?}");
    let rest = text.lines().filter_map(|line| line.strip_prefix("* "));
    let rest: Vec<&str> =
        rest.filter(|line| !line.split_whitespace().next().is_some_and(|word| is_fault(&word))).collect();
    let openings: Vec<&str> = UNNUMBERED.iter().map(|(_, opening)| *opening).collect();
    let agree = rest.iter().zip(&openings).all(|(line, opening)| line.starts_with(opening));
    ensure!(agree && rest.len() == openings.len(), "without a number the list has {rest:#?}, here are {openings:#?}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            every_named_test_exists,
            every_fault_has_a_test_or_a_later_issue,
            list_is_the_one_that_was_handed_over,
        ],
    )
}
