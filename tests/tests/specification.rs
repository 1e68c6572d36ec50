//! SPECIFICATION.md held against the tests that there are: every promise names one, or a part of the benchmark; and so are
//! the lists of flannel's and kube-proxy's tests. And the pages on the network's configuration against what netd reads of it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod pictured;
mod registered;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use registered::has_test;

/// The parts that `make bench` measures.
const PARTS: [&str; 4] = ["cni", "netd", "proxy", "kubernetes"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn every_promise_is_shown_by_a_test_or_a_benchmark() -> Result<()> {
    let page = fs::read_to_string(root().join("SPECIFICATION.md")).context("SPECIFICATION.md")?;
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise"));
    let (mut promises, mut wrong) = (0, Vec::new());
    for row in rows {
        promises += 1;
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        ensure!(cells.len() == 3, "{row:?} is not `promise | number | shown by`");
        let shown: Vec<&str> = cells[2].split('`').skip(1).step_by(2).collect();
        if shown.is_empty() {
            wrong.push(format!("{row}: shown by nothing"));
        }
        for name in shown {
            let known = match name.split_once(' ') {
                Some((place, test)) => has_test(&root().join(place), test),
                None => PARTS.contains(&name) && cells[2].contains(&format!("bench `{name}`")),
            };
            if !known {
                wrong.push(format!("{}: {name} does not exist", cells[0]));
            }
        }
    }
    ensure!(promises > 30, "only {promises} promises were read");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn every_counterpart_of_a_test_of_flannel_exists() -> Result<()> {
    ensure_counterparts("docs/flannel-tests.md", 60)
}

fn every_counterpart_of_a_test_of_kube_proxy_exists() -> Result<()> {
    ensure_counterparts("docs/kube-proxy-tests.md", 100)
}

fn every_claim_about_security_has_its_test() -> Result<()> {
    ensure_counterparts("docs/security.md", 45)
}

/// The page on conformance has a line for each case of the lists, in their order, and each line a test with real Pods or a reason; and every test
/// with real Pods has its line.
fn every_case_of_the_conformance_lists_has_its_line() -> Result<()> {
    const TESTS: &str = "tests/tests/kubernetes_services.rs";
    ensure_counterparts("docs/conformance.md", 130)?;
    let page = fs::read_to_string(root().join("docs/conformance.md")).context("docs/conformance.md")?;
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| here |"));
    let rows: Vec<(&str, &str)> =
        rows.map(|row| row.trim_matches(['|', ' ']).split_once(" | ").context("two cells")).collect::<Result<_>>()?;
    let mut cases = Vec::new();
    for list in ["services", "others", "flannel"] {
        let text = fs::read_to_string(root().join(format!("tests/conformance/{list}.txt")))?;
        cases.extend(text.lines().map(str::to_owned));
    }
    let listed: Vec<&str> = rows.iter().map(|(case, _)| *case).collect();
    ensure!(cases.len() > 100 && listed == cases, "cases and lines differ: {:#?}", differing(&listed, &cases));
    let undecided =
        rows.iter().filter(|(_, here)| !here.starts_with("not run") && !here.starts_with(&format!("`{TESTS} ")));
    let undecided: Vec<_> = undecided.collect();
    ensure!(undecided.is_empty(), "neither a test with Pods nor `not run` and the reason: {undecided:#?}");
    let source = fs::read_to_string(root().join(TESTS))?;
    let tests = source.split_once("lab::tests![").context("the list of tests")?.1;
    let names = tests.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|name| name.len() > 3);
    let missing: Vec<&str> = names.filter(|name| !page.contains(&format!("`{TESTS} {name}`"))).collect();
    ensure!(missing.is_empty(), "tests without a line: {missing:#?}");
    Ok(())
}

/// What is in one of both alone.
fn differing<'a>(listed: &[&'a str], cases: &'a [String]) -> Vec<&'a str> {
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    let alone = |of: &[&'a str], other: &[&str]| -> Vec<&'a str> {
        of.iter().filter(|case| !other.contains(case)).copied().collect()
    };
    [alone(listed, &cases), alone(&cases, listed)].concat()
}

/// Every row of the tables of tests on a page names tests, and these exist, or says openly why there is none; more than `least` are named.
fn ensure_counterparts(path: &str, least: usize) -> Result<()> {
    let page = fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
    let (mut named, mut wrong) = (0, Vec::new());
    for row in rows_of_tests(&page) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        ensure!(cells.len() == 2, "{row:?} is not `theirs | here`");
        let tests: Vec<&str> = cells[1].split('`').skip(1).step_by(2).collect();
        let cases = recorded(cells[1]);
        for name in &tests {
            let known = match name.split_once(' ') {
                Some(("make", part)) => ["bench", "bench-instructions", "demo"].contains(&part),
                Some((place, test)) => has_test(&root().join(place), test),
                None => false,
            };
            named += 1;
            if !known {
                wrong.push(format!("{}: {name} is no test", cells[0]));
            }
        }
        for number in cases.iter().filter(|number| !has_case(number)) {
            wrong.push(format!("{}: there is no case {number}", cells[0]));
        }
        let is_refused = NONE.iter().any(|start| cells[1].starts_with(start));
        if tests.is_empty() && cases.is_empty() && !is_refused {
            wrong.push(format!("{}: neither a test nor why there is none", cells[0]));
        }
    }
    ensure!(named > least, "only {named} tests were read");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// How a row begins that says why it has no test.
const NONE: [&str; 2] = ["not ", "no "];

/// The rows of those tables of a page whose last column is `here` or `shown by`.
fn rows_of_tests(page: &str) -> Vec<&str> {
    let (mut rows, mut is_of_tests, mut before) = (Vec::new(), false, "");
    for line in page.lines() {
        if line.starts_with("|---") {
            is_of_tests = before.ends_with("| here |") || before.ends_with("| shown by |");
            rows.pop();
        } else if line.starts_with('|') && (is_of_tests || !before.starts_with('|')) {
            rows.push(line);
        }
        (is_of_tests, before) = (is_of_tests && line.starts_with('|'), line);
    }
    rows
}

/// Words of a page in quotes of code that are a place below the root and one word more: a test.
fn places_with_a_word(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = page.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let pairs = quoted.filter_map(|text| text.split_once(' '));
    pairs.filter(|(place, word)| place.ends_with(".rs") && !word.contains(' '))
}

fn every_test_that_a_document_names_exists() -> Result<()> {
    let documents = fs::read_dir(root().join("docs"))?.map(|entry| Ok(entry?.path()));
    let mut documents = documents.collect::<Result<Vec<PathBuf>>>()?;
    documents.retain(|document| document.extension().is_some_and(|extension| extension == "md"));
    documents.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let (mut named, mut wrong) = (0, Vec::new());
    for document in documents {
        let page = fs::read_to_string(&document)?;
        for (place, test) in places_with_a_word(&page) {
            named += 1;
            if !has_test(&root().join(place), test) {
                wrong.push(format!("{}: {place} {test} is no test", document.display()));
            }
        }
    }
    ensure!(named > 400, "only {named} tests were read");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The numbers of recorded cases that a text names: `case 11`, `cases 10, 11`.
fn recorded(text: &str) -> Vec<&str> {
    let lists = text.split("case ").skip(1).chain(text.split("cases ").skip(1));
    let is_of_list = |c: char| c.is_ascii_digit() || c == ',' || c == ' ';
    let ends = lists.map(|list| list.find(|c| !is_of_list(c)).map_or(list, |end| &list[..end]));
    ends.flat_map(|list| list.split([',', ' '])).filter(|number| !number.is_empty()).collect()
}

fn has_case(number: &str) -> bool {
    let mut folders = fs::read_dir(root().join("tests/oracle/cases")).into_iter().flatten().flatten();
    folders.any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{number}-")))
}

/// Pages that say what the members of the network's configuration are.
const PAGES: [&str; 5] = ["backends", "vxlan", "families", "data-path", "extension"];

/// Names in the same sources that are no members of it: a lease's, and those of files.
const OTHERS: [&str; 6] = ["VtepMAC", "PublicKey", "NETWORK", "SUBNET", "IPV6NETWORK", "IPV6SUBNET"];

/// The names that a source reads: its texts of one word with a capital, tests apart.
fn names(source: &str) -> Vec<&str> {
    let own = source.split("#[cfg(test)]").next().unwrap_or_default();
    let texts = own
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split('"').skip(1).step_by(2));
    let is_name = |text: &&str| {
        text.starts_with(|c: char| c.is_ascii_uppercase()) && text.chars().all(|c| c.is_ascii_alphanumeric())
    };
    texts.filter(is_name).filter(|name| !OTHERS.contains(name)).collect()
}

fn every_member_of_the_networks_configuration_is_in_the_documents() -> Result<()> {
    let page =
        |name: &&str| fs::read_to_string(root().join(format!("docs/{name}.md"))).with_context(|| (*name).to_owned());
    let pages = PAGES.iter().map(page).collect::<Result<String>>()?;
    let netd = root().join("netd/src");
    let rooms = fs::read_dir(netd.join("plan/backend"))?.map(|entry| Ok(entry?.path()));
    let mut sources = rooms.collect::<Result<Vec<PathBuf>>>()?;
    sources.retain(|source| !source.ends_with("tests.rs"));
    sources.push(netd.join("format/net_conf.rs"));
    let (mut read, mut missing) = (0, Vec::new());
    for source in sources {
        let text = fs::read_to_string(&source)?;
        for name in names(&text) {
            read += 1;
            if !pages.contains(&format!("`{name}`")) {
                missing.push(format!("{name} of {}", source.display()));
            }
        }
    }
    ensure!(read > 35, "only {read} names were read");
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

fn picture_of_the_page_was_taken_of_the_page_as_it_is() -> Result<()> {
    let picture = root().join("docs/page.png");
    let (kept, now) = (fs::read_to_string(pictured::beside(&picture)), pictured::sums(&fs::read(&picture)?)?);
    let kept = kept.unwrap_or_default();
    ensure!(
        kept == now,
        "docs/page.png is of another page: look at it after `{}`\n{kept}instead of\n{now}",
        pictured::ANEW
    );
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            every_promise_is_shown_by_a_test_or_a_benchmark,
            every_counterpart_of_a_test_of_flannel_exists,
            every_counterpart_of_a_test_of_kube_proxy_exists,
            every_claim_about_security_has_its_test,
            every_test_that_a_document_names_exists,
            every_case_of_the_conformance_lists_has_its_line,
            every_member_of_the_networks_configuration_is_in_the_documents,
            picture_of_the_page_was_taken_of_the_page_as_it_is,
        ],
    )
}
