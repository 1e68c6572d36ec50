//! Inputs for parsers: those of a committed corpus, and what is made from them.
//!
//! A crate lists its parsers as [`Target`]s by the name of their corpus; a test of the crate calls [`check`] for each. The targets are
//! plain functions of bytes, so that a fuzzing engine can call them as well. Inputs are mutated here and not by an engine: most of them
//! are small objects or lines, whose structure random bytes never have.
//!
//! Invariant: a run replays the corpus and goes on with a fixed number of inputs that are made from it, the same in every run. With
//! `FUZZ_SECONDS` set it goes on for that long, another way each time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this crate is for tests, which may fail by panic"
)]

mod mutate;

use std::fs;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::test_runner::{RngAlgorithm, TestRng};

pub use mutate::mutated;

/// What is done with one input. It panics when an expectation does not hold.
pub type Target = fn(&[u8]);

/// Made inputs per run.
const CASES: usize = 1500;

/// How long one input may take. Parsing one takes microseconds; a machine under load must not fail the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// The inputs of a corpus, in the order of their names.
///
/// # Panics
/// When the folder is empty or cannot be read.
#[must_use]
pub fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Checks every one of a crate's `targets`, whose corpora lie in the folder `fuzz` of the crate at `root`.
///
/// # Panics
/// With the first input that fails; when a folder there is no target's.
pub fn check_all(root: &str, targets: &[(&str, Target)]) {
    let corpora = Path::new(root).join("fuzz");
    for entry in fs::read_dir(&corpora).unwrap_or_else(|error| panic!("{corpora:?}: {error}")) {
        let name = entry.unwrap().file_name();
        assert!(targets.iter().any(|(target, _)| name == *target), "{name:?} in {corpora:?} is no target's corpus");
    }
    for (name, target) in targets {
        check(&corpora.join(name), *target);
    }
}

/// Gives `target` the inputs of the corpus in `folder` and those made from them.
///
/// # Panics
/// With the first input that fails, which is kept in the system's folder of temporary files.
pub fn check(folder: &Path, target: Target) {
    let failed = first_failure(&corpus(folder), |input| failure_of(input, target));
    if let Some((input, why)) = failed {
        let mut hash = DefaultHasher::new();
        input.hash(&mut hash);
        let name = folder.file_name().unwrap_or_default().display().to_string();
        let path = std::env::temp_dir().join(format!("fuzz-{name}-{:016x}", hash.finish()));
        let kept = fs::write(&path, &input).map_or_else(|error| error.to_string(), |()| path.display().to_string());
        let shown = String::from_utf8_lossy(input.get(..2000).unwrap_or(&input)).into_owned();
        panic!("{name}: {why}\ninput, kept as {kept}:\n{shown:?}");
    }
}

/// The first input, of the corpus or made from it, of which `failure` says why it fails.
///
/// # Panics
/// When `FUZZ_SECONDS` is no number.
pub fn first_failure(corpus: &[Vec<u8>], failure: impl Fn(&[u8]) -> Option<String>) -> Option<(Vec<u8>, String)> {
    let limit = std::env::var("FUZZ_SECONDS").ok().map(|text| match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(error) => panic!("FUZZ_SECONDS={text}: {error}"),
    });
    let mut rng = match limit {
        None => TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        Some(_) => TestRng::from_seed(RngAlgorithm::ChaCha, &seed()),
    };
    let failed = |input: Vec<u8>| failure(&input).map(|why| (input, why));
    if let Some(failure) = corpus.iter().cloned().find_map(failed) {
        return Some(failure);
    }
    let start = Instant::now();
    let goes_on = |case: usize| limit.map_or(case < CASES, |limit| start.elapsed() < limit);
    (0..).take_while(|case| goes_on(*case)).find_map(|_| failed(mutated(&mut rng, corpus)))
}

/// Why `target` fails with `input`, if it does: a panic, or more time than parsing takes.
pub fn failure_of(input: &[u8], target: Target) -> Option<String> {
    let start = Instant::now();
    match catch_unwind(AssertUnwindSafe(|| target(input))) {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
        }
        Ok(()) if start.elapsed() > PATIENCE => Some(format!("took {:?}", start.elapsed())),
        Ok(()) => None,
    }
}

fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    // Without it the run is one of the others.
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed));
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_input_is_found_in_the_corpus_and_among_those_made_from_it() {
        let corpus = [b"{\"a\": 1}".to_vec(), b"bad".to_vec()];
        let found = first_failure(&corpus, |input| (input == b"bad").then(|| "bad".to_owned()));
        assert_eq!(found, Some((b"bad".to_vec(), "bad".to_owned())));
        let longer = first_failure(&corpus, |input| (input.len() > 100).then(|| "long".to_owned()));
        assert!(longer.is_some_and(|(input, _)| input.len() > 100));
        assert_eq!(first_failure(&corpus, |_| None), None);
    }

    #[test]
    fn panic_is_a_failure_with_its_text() {
        assert_eq!(failure_of(b"x", |input| assert!(input.is_empty(), "not empty")), Some("not empty".to_owned()));
        assert_eq!(failure_of(b"", |input| assert!(input.is_empty())), None);
    }
}
