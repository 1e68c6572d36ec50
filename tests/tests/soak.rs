//! The soak (`make soak`) for five minutes, and broken on purpose: each invariant is found where it does not hold.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::harness::Suite;
use lab::{Need, bin};

/// Runs it with these words, and leaves what it finds in `folder`.
fn soak(words: &[&str], folder: &Path) -> Result<(Output, String)> {
    let output = Command::new(bin("soak")?).args(words).arg("--keep").arg(folder).output().context("start the soak")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output, text))
}

fn five_minutes_of_faults_break_no_invariant() -> Result<()> {
    let folder = bin("soak")?.parent().context("a folder")?.join("../soak");
    let (output, text) = soak(&["--minutes", "5"], &folder)?;
    ensure!(output.status.success() && text.trim_end().ends_with("passed: no violation"), "{text}");
    eprintln!("{text}");
    // The tables say what was done; a schedule that does nothing would pass as well.
    for (table, column, least) in [("action", 1, 22), ("deleted or changed by a stranger", 0, 19)] {
        let rows = rows(&text, table)?;
        ensure!(rows.len() == least, "{table}: {} rows: {text}", rows.len());
        for row in rows {
            let times = row.split_whitespace().rev().nth(column).and_then(|count| count.parse::<u32>().ok());
            ensure!(times.is_some_and(|times| times > 0), "never done: {row}: {text}");
        }
    }
    Ok(())
}

/// The rows of the table whose first column has this title.
fn rows<'a>(text: &'a str, title: &str) -> Result<Vec<&'a str>> {
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(&format!("{title}  ")));
    lines.next().with_context(|| format!("no table of {title}: {text}"))?;
    Ok(lines.take_while(|line| !line.is_empty()).collect())
}

fn each_invariant_that_is_broken_on_purpose_is_found_and_what_shows_why_is_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (output, text) = soak(&["--minutes", "0", "--seed", "1", "--violate"], folder.path())?;
    ensure!(output.status.code() == Some(1), "{text}");
    for found in [
        "no address twice: 172.7.",
        "nothing foreign changed: foreign things of n2: gone",
        "daemons run: ipvs-proxy on n4 ended by itself",
        "daemons run: netd on n4 ended by itself",
        "daemons say in sync: ",
        "no subnet twice: leases overlap: ",
        "no error but of a full disk: n3: ",
        "cleanup leaves nothing: n2 after its cleanup: ",
        "actions succeed: Pod added (ADD, CHECK): ",
        "paths within their bound: ",
        "tables are what leases ask: ",
        "nodes serve what Services ask: still not so",
        "last seen: Services of n4: missing [\"tcp 10.4.7.34:30011 to ",
        "nothing grows: files of state",
        "nothing grows: namespaces of Pods",
        "nothing grows: links",
        "nothing grows: nftables elements",
        "nothing grows: nftables tables, chains, sets and rules",
        "nothing grows: ipvs-proxy on n1: KiB",
        "nothing grows: ipvs-proxy on n1: descriptors",
        "nothing grows: ipvs-proxy on n1: threads",
    ] {
        ensure!(text.lines().any(|line| line.starts_with("VIOLATION") && line.contains(found)), "{found}: {text}");
    }
    for path in [" to outside by ", " at n4 by ", " to the host port of p", "n1 to p"] {
        let is_found = |line: &str| line.starts_with("VIOLATION") && line.contains("bound: ") && line.contains(path);
        ensure!(text.lines().any(is_found), "{path}: {text}");
    }
    let run = std::fs::read_dir(folder.path())?.next().context("a folder of the run")??.path();
    for file in ["violations.txt", "actions.txt", "report.txt", "logs/n1-netd-last.log", "logs/n5-netd-0.log"] {
        ensure!(run.join(file).metadata()?.len() > 0, "{file} is empty");
    }
    let dump = std::fs::read_dir(&run)?.flatten().map(|entry| entry.path()).find(|path| path.join("n2.txt").exists());
    let state = std::fs::read_to_string(dump.context("a dump")?.join("n2.txt"))?;
    ensure!(state.contains("table inet theirs") && state.contains("flannel.1"), "{state}");
    Ok(())
}

fn main() -> ExitCode {
    Suite::new(&[Need::Vxlan, Need::Nftables]).limit(Duration::from_secs(1800)).run(lab::tests![
        five_minutes_of_faults_break_no_invariant,
        each_invariant_that_is_broken_on_purpose_is_found_and_what_shows_why_is_left,
    ])
}
