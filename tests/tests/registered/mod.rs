//! The tests that there are, as the sources register them: a word in a comment, a helper or a test that no list runs is none.
//!
//! Four forms: a function below an attribute `test`; a name in `tests![…]` or `cases![…]`; the first text of a pair in a constant whose name
//! ends in `TESTS` or `CASES`; a target in a crate's list for fuzzing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Whether a Rust file at or below `place` registers a test of this name.
pub(crate) fn has_test(place: &Path, name: &str) -> bool {
    if place.is_dir() {
        return fs::read_dir(place).into_iter().flatten().flatten().any(|entry| has_test(&entry.path(), name));
    }
    let is_rust = place.extension().is_some_and(|extension| extension == "rs");
    is_rust && fs::read_to_string(place).is_ok_and(|source| tests_of(&source).contains(name))
}

/// The names of the tests that a source registers.
pub(crate) fn tests_of(source: &str) -> BTreeSet<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::with_capacity(source.len()), |code, line| code + line + "\n");
    let listed = ["tests![", "cases!["].iter().flat_map(|start| code.split(start).skip(1)).flat_map(words);
    attributed(&code).into_iter().chain(listed).chain(paired(&code)).map(str::to_owned).collect()
}

/// Functions right below an attribute whose path ends in `test`.
fn attributed(code: &str) -> Vec<&str> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in code.lines().map(str::trim) {
        if let Some(attribute) = line.strip_prefix("#[") {
            let path = attribute.split([']', '(']).next().unwrap_or_default();
            is_test |= path.rsplit("::").next() == Some("test");
            continue;
        }
        let function = line.split_once("fn ").filter(|(before, _)| before.split(' ').all(is_qualifier));
        if let Some((_, rest)) = function.filter(|_| is_test) {
            found.extend(rest.split('(').next());
        }
        is_test &= line.is_empty();
    }
    found
}

fn is_qualifier(word: &str) -> bool {
    word.is_empty() || word == "async" || word.starts_with("pub")
}

/// The names of a list up to its end.
fn words(list: &str) -> Vec<&str> {
    let names = list.split(']').next().unwrap_or_default().split(',').map(str::trim);
    names.filter(|name| !name.is_empty()).collect()
}

/// The first text of each pair in the constants that list tests.
fn paired(code: &str) -> Vec<&str> {
    let constants = code.split("const ").skip(1).filter_map(|constant| {
        let (name, rest) = constant.split_once(':')?;
        let lists = ["TESTS", "CASES", "TARGETS"].iter().any(|end| name.ends_with(end));
        lists.then(|| rest.split(";\n").next().unwrap_or_default())
    });
    let texts = constants.flat_map(|constant| constant.split('(').skip(1));
    texts.filter_map(|pair| pair.trim_start().strip_prefix('"')?.split_once("\",").map(|(name, _)| name)).collect()
}
