//! Which functions read what comes from outside, and which fuzz target gives each its inputs.
//!
//! Invariant: a function that is named like a parser and takes text or bytes is in `tests/fuzz/parsers.txt`, by a target that its
//! crate has, or with the reason why it needs none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::size::{function, head};
use super::{product, root, sources};

/// The list, below the root of the tree.
const LIST: &str = "tests/fuzz/parsers.txt";

/// What is wrong with the list, or with the sources.
pub(crate) fn unlisted() -> Vec<String> {
    let text = fs::read_to_string(root().join(LIST)).unwrap();
    let mut wrong = Vec::new();
    let mut listed = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some(file), Some(name), Some(by)) => drop(listed.insert(format!("{file} {name}"), by.to_owned())),
            _ => wrong.push(format!("{LIST}: {line:?} is not FILE FUNCTION TARGET")),
        }
    }
    let found = parsers();
    wrong.extend(found.iter().filter(|it| !listed.contains_key(*it)).map(|it| format!("{it} is not in {LIST}")));
    wrong.extend(listed.keys().filter(|it| !found.contains(*it)).map(|it| format!("{LIST}: {it} is no parser")));
    wrong.extend(listed.iter().filter_map(|(it, by)| Some(format!("{LIST}: {it}: {}", no_target(by)?))));
    wrong
}

/// File and name of each function that is named like a parser and takes text or bytes.
fn parsers() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for source in product().iter().flat_map(|folder| sources(folder)) {
        for (start, (_, line)) in source.lines.iter().enumerate() {
            let Some(name) = function(line).filter(|name| is_parser(name)) else { continue };
            let head = head(&source.lines[start..]);
            let given = head.split_once('(').map_or("", |(_, given)| given.split("->").next().unwrap_or_default());
            let raw = ["&str", "&'a str", "[u8]", "&Frame", "Value", "Fields", "Vec<u8>"];
            if raw.iter().any(|kind| given.contains(kind)) {
                found.insert(format!("{} {name}", source.path));
            }
        }
    }
    found
}

fn is_parser(name: &str) -> bool {
    let named = ["parse", "read", "decode", "from"]
        .iter()
        .any(|verb| name.strip_prefix(verb).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')));
    // Numbers and names of ours, known whole.
    named && !["from_number", "from_name"].contains(&name)
}

/// Why `by`, `FOLDER:TARGET` or `- REASON`, names no target.
fn no_target(by: &str) -> Option<String> {
    if let Some(reason) = by.strip_prefix('-') {
        return reason.trim().is_empty().then(|| "no target and no reason".to_owned());
    }
    let (folder, target) = by.split_once(':')?;
    let files = ["src/fuzz.rs", "tests/fuzz/targets.rs"].map(|file| root().join(folder).join(file));
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    (!text.contains(&format!("(\"{target}\","))).then(|| format!("{folder} has no target {target:?}"))
}

/// The reader, shown on the forms that occur.
pub(crate) fn check_reader() {
    assert!(is_parser("parse_list") && is_parser("read") && !is_parser("reads") && !is_parser("from_number"));
    assert_eq!(no_target("- it is a number"), None);
    assert!(no_target("-").is_some() && no_target("netd:nothing").is_some());
    assert!(parsers().contains("netd/src/format/net_conf.rs parse"));
}
