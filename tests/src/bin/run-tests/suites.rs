//! `List`: which tests are run on several kernels, and why the others are not (`tests/kernel/suites`).
//!
//! Invariants: every test binary of the workspace stands in the list, run or with a reason; no test is run twice.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use super::kernels::folder;

/// The name of the demo among the test binaries of the list; behind it the mode of the proxy.
const DEMO: &str = "demo/";

/// Stands between a test binary and the word that those of its tests have in their names that are meant.
const SOME: &str = "::";

/// Test binaries by suite, each as `package/target` or `package/target::word`, and those that are not run, by reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    suites: Vec<(String, Vec<String>)>,
    others: Vec<(String, Vec<String>)>,
}

/// Tests of one binary that are run as one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    /// As the list has it.
    pub(crate) name: &'a str,
    /// Words of the tests that are run elsewhere, or nowhere.
    pub(crate) without: Vec<&'a str>,
}

impl<'a> Part<'a> {
    /// The test binary, `package/target`.
    pub(crate) fn target(&self) -> &'a str {
        target(self.name)
    }

    /// The word that its tests have in their names; without one they are all there are.
    pub(crate) fn word(&self) -> Option<&'a str> {
        word(self.name)
    }

    /// The mode of the proxy, where it is the demo.
    pub(crate) fn mode(&self) -> Option<&'a str> {
        self.name.strip_prefix(DEMO)
    }
}

fn target(name: &str) -> &str {
    name.split_once(SOME).map_or(name, |(target, _)| target)
}

fn word(name: &str) -> Option<&str> {
    name.split_once(SOME).map(|(_, word)| word)
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
        let mut once = BTreeSet::new();
        if let Some(twice) = list.names().find(|name| !once.insert(*name)) {
            bail!("{twice} is named twice");
        }
        Ok(list)
    }

    /// The list of this tree.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn of_tree() -> Result<Self> {
        let path = folder().join("suites");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::read(&text).with_context(|| path.display().to_string())
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.suites.iter().chain(&self.others).flat_map(|(_, names)| names).map(String::as_str)
    }

    /// The suites, in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &str> {
        self.suites.iter().map(|(suite, _)| suite.as_str())
    }

    /// All that is run, each with its suite. What several words of a binary are in the name of, the first one has; what has none of them
    /// is run with the binary's own name.
    pub(crate) fn parts(&self) -> Vec<(&str, Part<'_>)> {
        let run: Vec<(&str, &str)> = flat(&self.suites).collect();
        let part = |at: usize| {
            let (suite, name) = *run.get(at)?;
            let before = if word(name).is_some() { at } else { run.len() };
            let others = flat(&self.others).chain(run.iter().take(before).copied()).map(|(_, other)| other);
            let without = others.filter(|other| target(other) == target(name)).filter_map(word).collect();
            Some((suite, Part { name, without }))
        };
        (0..run.len()).filter_map(part).collect()
    }
}

/// Each name of a half of the list, with the line's head.
fn flat(lines: &[(String, Vec<String>)]) -> impl Iterator<Item = (&str, &str)> {
    lines.iter().flat_map(|(head, names)| names.iter().map(move |name| (head.as_str(), name.as_str())))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use serde_json::Value;

    use super::super::kernels::LEAN;
    use super::*;

    #[test]
    fn list_is_read_and_a_test_that_is_named_twice_refused() {
        let list = List::read("# of it\ntunnels: tests/a tests/b\n\n- the store: tests/c\n").unwrap();
        let parts: Vec<_> = list.parts().into_iter().map(|(suite, part)| (suite, part.name)).collect();
        assert_eq!(parts, [("tunnels", "tests/a"), ("tunnels", "tests/b")]);
        assert_eq!(list.others, [("the store".to_owned(), vec!["tests/c".to_owned()])]);
        for wrong in ["tunnels", "tunnels: ", "a: tests/a\n- b: tests/a\n", "a: tests/a::b\n- b: tests/a::b\n"] {
            assert!(List::read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_test_of_a_binary_in_parts_is_run_by_one_part() {
        let list =
            List::read("pods: p/v\nlimits: p/v::limit\nports: p/v::port p/w::port\n- kills: p/v::killed\n").unwrap();
        let found = list.parts();
        let parts: Vec<_> =
            found.iter().map(|(_, part)| (part.target(), part.word(), part.without.as_slice())).collect();
        let expected: [(&str, Option<&str>, &[&str]); 4] = [
            ("p/v", None, &["killed", "limit", "port"]),
            ("p/v", Some("limit"), &["killed"]),
            ("p/v", Some("port"), &["killed", "limit"]),
            ("p/w", Some("port"), &[]),
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn lean_kernel_has_tests_and_no_other_suite_takes_any_of_them() {
        let list = List::of_tree().unwrap();
        let parts = list.parts();
        let lean: Vec<_> = parts.iter().filter(|(suite, _)| *suite == LEAN.1).collect();
        let elsewhere =
            |other: &str| flat(&list.suites).any(|(suite, name)| suite != LEAN.1 && word(name) == Some(other));
        assert!(
            !lean.is_empty() && !lean.iter().any(|(_, part)| part.without.iter().any(|other| elsewhere(other))),
            "{lean:?}"
        );
    }

    /// Every test binary of the workspace, with the source of its `main` or of its crate. The unit tests of a package's programs are one.
    fn binaries() -> BTreeSet<(String, PathBuf)> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let metadata: Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
        let mut found = BTreeSet::new();
        for package in metadata["packages"].as_array().unwrap() {
            let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
            let package_name = folder.file_name().unwrap().to_string_lossy();
            let is_tested = |target: &&Value| target["test"] == true;
            for target in package["targets"].as_array().unwrap().iter().filter(is_tested) {
                let name = match target["kind"][0].as_str().unwrap() {
                    "test" => target["name"].as_str().unwrap(),
                    kind => kind,
                };
                found.insert((format!("{package_name}/{name}"), PathBuf::from(target["src_path"].as_str().unwrap())));
            }
        }
        found
    }

    #[test]
    fn every_test_binary_of_the_workspace_is_listed_and_every_one_listed_is_there() {
        let list = List::of_tree().unwrap();
        let listed: BTreeSet<&str> = list.names().filter(|name| !name.starts_with(DEMO)).collect();
        let binaries = binaries();
        let there: BTreeSet<&str> = binaries.iter().map(|(name, _)| name.as_str()).collect();
        let missing: Vec<_> = there.difference(&listed).collect();
        assert!(missing.is_empty(), "tests/kernel/suites neither runs these nor says why not: {missing:?}");
        let gone: Vec<_> = listed.iter().filter(|name| !there.contains(target(name))).collect();
        assert!(gone.is_empty(), "tests/kernel/suites names tests that are not there: {gone:?}");
    }

    #[test]
    fn every_word_of_a_part_is_in_the_name_of_a_test_of_that_binary() {
        let list = List::of_tree().unwrap();
        let binaries = binaries();
        for name in list.names() {
            let Some(word) = word(name) else { continue };
            let (_, source) = binaries.iter().find(|(binary, _)| binary == target(name)).unwrap();
            let mut folders = vec![source.parent().unwrap().to_owned()];
            let mut is_named = false;
            while let Some(folder) = folders.pop() {
                for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                    if path.is_dir() {
                        folders.push(path);
                    } else {
                        let text = fs::read_to_string(&path).unwrap_or_default();
                        is_named |=
                            text.lines().any(|line| line.contains(word) && line.trim_start().starts_with("(\""));
                    }
                }
            }
            assert!(is_named, "no test has the word of {name}");
        }
    }
}
