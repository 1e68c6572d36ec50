//! `certs`: each certificate of a rendered folder or of a host, with the days that are left; `renew` has a room of its own.
//!
//! Invariant: a list writes nothing; its status 0 says that nobody has to act for as many days as were asked for.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use daemon::json;
use daemon::status::Lines;

use super::args::{CertsList, CertsVerb};
use super::{apply, renew, written};
use crate::certs::{Place, Row, host, rendered};
use crate::pki::Time;

/// Runs the verb.
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn run(asked: &CertsVerb, out: &mut impl Write) -> Result<ExitCode, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map(Time::after_1970).map_err(|_| "the clock is before 1970; set it right")?;
    match asked {
        CertsVerb::List(asked) => list(asked, now, out),
        CertsVerb::Renew(asked) => renew::run(asked, now, apply::answer, out),
    }
}

fn list(asked: &CertsList, now: Time, out: &mut impl Write) -> Result<ExitCode, String> {
    let (searched, rows) = match &asked.output {
        Some(folder) => (folder, rendered(folder, now)?),
        None => (&asked.root, host(&asked.root, now)),
    };
    if rows.is_empty() {
        return Err(format!("{} has no certificate in {}", searched.display(), Place::FOLDERS.join(", ")));
    }
    let days = i64::from(asked.days);
    let printed = if asked.json { json(&rows)? } else { table(&rows, searched, days) };
    written(out, printed.as_bytes())?;
    Ok(if rows.iter().any(|row| row.is_due(days)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn json(rows: &[Row]) -> Result<String, String> {
    let rows: serde_json::Result<Vec<String>> = rows.iter().map(serde_json::to_string).collect();
    let text = rows.map_err(|cause| format!("print certificates: {cause}"))?.join(",\n ");
    Ok(format!("[{}]\n", json::escaped(&text)))
}

/// One line for each, the columns as wide as what stands in them, with what is wrong below.
fn table(rows: &[Row], searched: &Path, days: i64) -> String {
    let head = ["DAYS", "ENDS", "HOST", "FILE", "USE", "AUTHORITY"].map(str::to_owned);
    let cells: Vec<[String; 6]> = std::iter::once(head).chain(rows.iter().map(|row| cells(row, searched))).collect();
    let width = |column: usize| cells.iter().filter_map(|line| Some(line.get(column)?.chars().count())).max();
    let widths: Vec<usize> = (0..6).filter_map(width).collect();
    let mut lines = Lines::new();
    for (place, line) in cells.iter().enumerate() {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let row = place.checked_sub(1).and_then(|place| rows.get(place));
        let names = row.map_or_else(|| "NAMES".to_owned(), names);
        lines.push(format_args!("{}", format!("{}  {names}", padded.join("  ")).trim_end()));
        if let Some(problem) = row.and_then(|row| row.problem.as_ref()) {
            lines.push(format_args!("      {problem}"));
        }
    }
    let count = |test: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| test(row)).count();
    let ended = count(&|row| row.days.is_some_and(|left| left < 0));
    let soon = count(&|row| row.days.is_some_and(|left| (0..days).contains(&left)));
    let wrong = count(&|row| row.problem.is_some());
    let all = rows.len();
    lines
        .push(format_args!("{all} certificates: {ended} have ended, {soon} end within {days} days, {wrong} are wrong"));
    lines.into_text()
}

fn cells(row: &Row, searched: &Path) -> [String; 6] {
    let file = Path::new(&row.file);
    let shown = file.strip_prefix(searched).unwrap_or(file).display().to_string();
    // The folder of a host says its name, which stands beside it.
    let shown = match &row.host {
        Some(host) => shown.strip_prefix(&format!("hosts/{host}/root")).unwrap_or(&shown).to_owned(),
        None => shown,
    };
    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        row.days.map_or_else(|| "-".to_owned(), |days| days.to_string()),
        row.ends.as_deref().and_then(|ends| ends.split('T').next()).map_or_else(|| "-".to_owned(), str::to_owned),
        text(row.host.as_deref().unwrap_or_default()),
        shown,
        text(&row.usage),
        text(&row.authority),
    ]
}

fn names(row: &Row) -> String {
    let groups = row.organizations.iter().map(|group| format!(" ({group})")).collect::<String>();
    let others: Vec<&str> = row.names.iter().map(String::as_str).filter(|name| *name != row.subject).collect();
    let all = [format!("{}{groups}", row.subject), others.join(" ")];
    all.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::command;
    use crate::pki::{Ca, Store};

    fn run(words: &[&str]) -> (String, Result<ExitCode, String>) {
        let mut out = Vec::new();
        let words = ["netdadm", "certs", "list"].iter().chain(words).map(Into::into);
        let status = command::run(words, &mut out);
        (String::from_utf8(out).unwrap(), status)
    }

    #[test]
    fn the_status_says_whether_somebody_has_to_act() {
        let folder = tempfile::tempdir().unwrap();
        let pki = folder.path().join("etc/kubernetes/pki");
        fs::create_dir_all(&pki).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // A CA has ten years, and an hour less, lest the day ends while this runs.
        let store = Store::open(None, None, Time::after_1970(now).minus(3600)).unwrap();
        fs::write(pki.join("ca.crt"), &store.authority(Ca::Cluster).certificate_pem).unwrap();
        let root = folder.path().to_str().unwrap();
        let (printed, status) = run(&["--root", root]);
        assert_eq!(status, Ok(ExitCode::SUCCESS));
        let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["DAYS", "ENDS", "HOST", "FILE", "USE", "AUTHORITY", "NAMES"]);
        let ends = store.authority(Ca::Cluster).certificate.end.to_string();
        let file = "etc/kubernetes/pki/ca.crt";
        assert_eq!(lines[1], ["3649", &ends[..10], "-", file, "authority", "kubernetes", "kubernetes"]);
        assert!(printed.ends_with("1 certificates: 0 have ended, 0 end within 30 days, 0 are wrong\n"), "{printed}");
        assert_eq!(run(&["--root", root, "--days", "3650"]).1, Ok(ExitCode::FAILURE));
        let (printed, _) = run(&["--root", root, "--json"]);
        let rows: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(
            (&rows[0]["days"], &rows[0]["use"], &rows[0]["problem"]),
            (&3649.into(), &"authority".into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn a_folder_without_certificates_is_no_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        assert!(run(&["--root", root]).1.unwrap_err().contains("has no certificate in etc/kubernetes"));
        assert!(run(&["--output", root]).1.unwrap_err().contains("name the folder that `netdadm render` wrote"));
    }
}
