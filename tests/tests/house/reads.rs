//! Which functions read something to its end, and what ends it.
//!
//! Invariant: whatever reads a file, a stream or standard input whole does it up to a limit, in the same line; or it reads what the
//! kernel makes below `/proc` and `/sys`; or it is in `tests/fuzz/reads.txt` with what bounds it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::size::function;
use super::{Source, product, root, sources};

/// The list, below the root of the tree.
const LIST: &str = "tests/fuzz/reads.txt";

/// Calls that read to the end, of a file, a stream or a line.
const CALLS: [&str; 11] = [
    "fs::read(",
    "fs::read_to_string(",
    "io::read_to_string(",
    "read_to_end(",
    ".read_to_string(",
    ".read_line(",
    ".read_until(",
    ".next_line(",
    "BufReader::new(",
    "io::copy(",
    ".collect().await",
];

/// Ways to write that what is read has a limit, or is the kernel's.
const BOUNDED: [&str; 4] = [".take(", "\"/proc/", "\"/sys/", "Limited::new("];

/// What is wrong with the list, or with the sources.
pub(crate) fn unbounded() -> Vec<String> {
    let text = fs::read_to_string(root().join(LIST)).unwrap();
    let (mut wrong, mut listed) = (Vec::new(), BTreeMap::new());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some(file), Some(name), Some(bound)) => drop(listed.insert(format!("{file} {name}"), bound.to_owned())),
            _ => wrong.push(format!("{LIST}: {line:?} is not FILE FUNCTION BOUND")),
        }
    }
    let found: BTreeSet<String> =
        product().iter().flat_map(|folder| sources(folder)).flat_map(|source| readers(&source)).collect();
    let unlisted = found.iter().filter(|it| !listed.contains_key(*it));
    wrong.extend(unlisted.map(|it| format!("{it} reads without a limit (the crate bounded), and is not in {LIST}")));
    wrong.extend(listed.keys().filter(|it| !found.contains(*it)).map(|it| format!("{LIST}: {it} reads nothing whole")));
    wrong
}

/// File and name of each function of `source` that reads something to its end without a limit.
fn readers(source: &Source) -> BTreeSet<String> {
    let (mut found, mut within) = (BTreeSet::new(), "");
    for (_, line) in &source.lines {
        let code = line.split("//").next().unwrap_or_default();
        within = function(line).unwrap_or(within);
        let call = CALLS.iter().filter_map(|call| code.find(call)).min();
        if call.is_some_and(|place| !BOUNDED.iter().any(|bound| bounds(code, bound, place))) {
            found.insert(format!("{} {within}", source.path));
        }
    }
    found
}

/// Whether `bound` stands where it concerns the call at `place`: a limit comes before the call, a path behind it.
fn bounds(code: &str, bound: &str, place: usize) -> bool {
    code.find(bound).is_some_and(|found| (found < place) != bound.starts_with('"'))
}

/// The reader, shown on the forms that occur.
pub(crate) fn check_reader() {
    let source = |line: &str| Source {
        path: "x.rs".to_owned(),
        text: String::new(),
        lines: vec![(1, "fn load() {".to_owned()), (2, line.to_owned())],
    };
    let finds = |line: &str| readers(&source(line)) == BTreeSet::from(["x.rs load".to_owned()]);
    for unbounded in [
        "    let text = fs::read_to_string(path)?;",
        "    let text = std::fs::read(&path)?; // .take(1)",
        "    io::stdin().lock().read_to_end(&mut text)?;",
        "    stream.read_to_string(&mut text)?.lines().take(3)",
        "    let body = response.into_body().collect().await?;",
        "    io::stdin().lock().read_line(&mut line)?;",
    ] {
        assert!(finds(unbounded), "{unbounded}");
    }
    for bounded in [
        "    file.take(most).read_to_end(&mut bytes)?;",
        "    let stat = fs::read_to_string(\"/proc/self/stat\")?;",
        "    let name = fs::read_to_string(format!(\"/proc/{pid}/comm\"))?;",
        "    let text = bounded::read_text(path, bounded::SETTINGS)?;",
    ] {
        assert!(!finds(bounded), "{bounded}");
    }
}
