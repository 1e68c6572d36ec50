//! The field's words: the private dialect of the first building is in no name, comment, document or log.

use std::fs;

use super::{every_file, product, root, sources};

/// Words with the one to use instead.
const DIALECT: [(&str, &str); 33] = [
    ("ears", "source, monitors"),
    ("hear", "receive, apply_event, on_lease"),
    ("hears", "receives"),
    ("heard", "received"),
    ("heed", "apply"),
    ("heeds", "applies"),
    ("heeded", "applied"),
    ("tell", "report, log, say"),
    ("tells", "reports, says"),
    ("told", "reported, said"),
    ("telling", "reporting"),
    ("hands", "worker, tables"),
    ("looked", "verified, listed, read"),
    ("looks", "verifies, lists, reads"),
    ("wish", "request"),
    ("wishes", "requests"),
    ("applicant", "candidate"),
    ("applicants", "candidates"),
    ("shelf", "entries, files"),
    ("shelves", "entries, files"),
    ("happening", "event"),
    ("happenings", "events"),
    ("unsettled", "pending"),
    ("stray", "orphan"),
    ("strays", "orphans"),
    ("breath", "min_interval"),
    ("pulse", "period"),
    ("news", "changes"),
    ("former", "predecessor"),
    ("formers", "predecessors"),
    ("spells", "writes"),
    ("spelled", "written"),
    ("unheard", "unread"),
];

/// Words that are none of the dialect in these company.
const ALLOWED: [&str; 7] = ["stray key", "looks up", "looked up", "hands over", "hands out", "hands on", "looks like"];

/// Documents for readers.
const DOCUMENTS: [&str; 8] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SPECIFICATION.md",
    "docs/benchmarks.md",
    "docs/cni.md",
    "docs/compatibility.md",
    "docs/tools.md",
];

/// Where the dialect is still spoken.
pub(crate) fn spoken() -> Vec<String> {
    let mut found = Vec::new();
    let folders = product().into_iter().chain(["tests/src".to_owned(), "tests/floor/src".to_owned()]);
    for folder in folders {
        for source in sources(&folder) {
            for (number, line) in &source.lines {
                note(&mut found, &source.path, *number, line);
            }
        }
    }
    for folder in ["lib", "netd", "cni-plugin", "ipvs-proxy", "netdadm", "tests"] {
        for (path, text) in every_file(folder) {
            for (number, name) in test_names(&text) {
                note(&mut found, &path, number, &name.replace('_', " "));
            }
        }
    }
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            // Code spans are names: of tests, of files, of what a predecessor writes.
            let prose: Vec<&str> = line.split('`').step_by(2).collect();
            note(&mut found, document, number + 1, &prose.join(" "));
        }
    }
    found
}

/// The names that are sentences, which are those of tests, with their lines.
fn test_names(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(number, line)| {
        let code = line.split("//").next().unwrap_or_default();
        let names = code.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        names.filter(|name| name.split('_').count() > 4).map(move |name| (number + 1, name))
    })
}

fn note(found: &mut Vec<String>, path: &str, number: usize, line: &str) {
    let lower = line.to_lowercase();
    for word in words(line) {
        let Some((_, better)) = DIALECT.iter().find(|(banned, _)| *banned == word) else { continue };
        // What is told apart is told from something else.
        let apart = ["tell", "tells", "told", "telling"].contains(&word.as_str()) && lower.contains("apart");
        let allowed = apart || ALLOWED.iter().any(|phrase| phrase.starts_with(&word) && lower.contains(phrase));
        if !allowed {
            found.push(format!("{path}:{number} `{word}` ({better}): {}", line.trim()));
        }
    }
}

/// The words of a line in small letters: identifiers are taken apart at `_` and before capitals.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_small = false;
    for letter in line.chars() {
        let ends = !letter.is_alphabetic() || (letter.is_uppercase() && was_small);
        if ends {
            words.push(String::new());
        }
        if letter.is_alphabetic() {
            words.last_mut().unwrap().extend(letter.to_lowercase());
        }
        was_small = letter.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The reader, shown on the forms that occur.
pub(crate) fn check_reader() {
    assert_eq!(
        words("fn is_told(&self) -> ToldLines { // was heard"),
        ["fn", "is", "told", "self", "told", "lines", "was", "heard"]
    );
    let mut found = Vec::new();
    note(&mut found, "a.rs", 1, "the resolver looks up a name");
    assert!(found.is_empty(), "{found:?}");
    note(&mut found, "a.rs", 2, "let wish = 1;");
    assert_eq!(found.len(), 1);
    let text = "    fn a_lease_that_was_lost() {\n// what_is_in_a_comment\n(\"one_in_a_table_too\", short_name)";
    let names: Vec<_> = test_names(text).collect();
    assert_eq!(names, [(1, "a_lease_that_was_lost"), (3, "one_in_a_table_too")]);
}
