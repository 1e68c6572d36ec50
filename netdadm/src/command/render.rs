//! `render`: writes the folder of a cluster, and says what is new, why, and what hosts must do about it.
//!
//! Invariant: a topology with errors writes nothing; nothing secret is printed.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use daemon::json;
use serde::Serialize;

use super::args::Render;
use super::{said, verify};
use crate::output::{Changes, Folder, HostChanges, Outcome, assemble};
use crate::pki::{Store, Time};

/// What was done, for programs.
#[derive(Serialize)]
struct Report<'a> {
    folder: String,
    files: &'a Outcome,
    issued: Vec<IssuedRow>,
    hosts: &'a [HostChanges],
}

/// A certificate or key that was made anew.
#[derive(Serialize)]
struct IssuedRow {
    host: Option<String>,
    path: String,
    reason: String,
}

/// Renders the file that was named.
///
/// # Errors
/// When it cannot be read, the folder is another cluster's, or something cannot be written.
pub(super) fn run(asked: &Render, out: &mut impl Write) -> Result<ExitCode, String> {
    let Some(topology) = verify::topology(&asked.file, out)? else { return Ok(ExitCode::FAILURE) };
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    let mut folder = Folder::open(&asked.output, &cluster)?;
    let before = folder.manifests();
    let given = topology.deviations.pki.as_ref().map(|folder| PathBuf::from(folder.value.to_string()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| "the clock is before 1970; set it right")?;
    let store = Store::open(Some(folder.path()), given.as_deref(), Time::after_1970(now));
    let mut store = store.map_err(|fault| fault.to_string())?;
    let wanted = assemble(&topology, &mut store).map_err(|fault| fault.to_string())?;
    let outcome = folder.write(&wanted)?;
    let issued = store.issued().iter().map(|issued| IssuedRow {
        host: issued.host.clone(),
        path: issued.path.clone(),
        reason: issued.reason.to_string(),
    });
    let changes = Changes::between(&before, &wanted.manifests);
    let issued = issued.collect();
    let report = Report { folder: asked.output.display().to_string(), files: &outcome, issued, hosts: &changes.0 };
    let printed = if asked.json { json(&report)? } else { plain(&report) };
    said(out, &printed)
}

fn json(report: &Report<'_>) -> Result<String, String> {
    json::pretty(report).map_err(|cause| format!("print what changed: {cause}"))
}

fn plain(report: &Report<'_>) -> String {
    let (folder, files) = (&report.folder, report.files);
    // Writing into a text does not fail.
    let mut text = String::new();
    for (verb, paths) in [("new", &files.new), ("changed", &files.changed), ("removed", &files.removed)] {
        for path in paths {
            let _ = writeln!(text, "{verb} {}", Path::new(folder).join(path).display());
        }
    }
    for path in &files.kept {
        let path = Path::new(folder).join(path);
        let _ = writeln!(text, "not wanted any more, but somebody has changed it, so it stays: {}", path.display());
    }
    for row in &report.issued {
        let host = row.host.as_ref().map_or_else(String::new, |host| format!("{host}: "));
        let _ = writeln!(text, "issued {host}{}: {}", row.path, row.reason);
    }
    let counts = [files.new.len(), files.changed.len(), files.removed.len(), files.same];
    let [new, changed, removed, same] = counts;
    let _ = writeln!(text, "{folder}: {new} files new, {changed} changed, {removed} removed, {same} as they were");
    if !report.hosts.is_empty() {
        let _ = writeln!(text, "hosts, one after the other in this order (netdadm apply --host NAME {folder}):");
    }
    for host in report.hosts {
        text += &steps(host);
    }
    text
}

fn steps(host: &HostChanges) -> String {
    let mut text = format!("  {}\n", host.host);
    for (verb, units) in [("stop", &host.stop), ("start", &host.start)] {
        if !units.is_empty() {
            let _ = writeln!(text, "    {verb} {}", units.join(" "));
        }
    }
    for (verb, units) in [("restart", &host.restart), ("reload", &host.reload)] {
        for because in units {
            let files: Vec<String> = because.files.iter().map(|path| path.display().to_string()).collect();
            let _ = writeln!(text, "    {verb} {} for {}", because.unit, files.join(" "));
        }
    }
    if host.stop.is_empty() && host.start.is_empty() && host.restart.is_empty() && host.reload.is_empty() {
        let _ = writeln!(text, "    no unit: {} files are read when they are needed", host.files.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use crate::command;

    #[test]
    fn programs_read_what_is_new_what_was_issued_and_what_hosts_must_do() {
        let top = tempfile::tempdir().unwrap();
        let (file, out) = (top.path().join("cluster.yaml"), top.path().join("out"));
        let render = |text: &str| -> Value {
            fs::write(&file, text).unwrap();
            let words = ["netdadm", "render", "-f", file.to_str().unwrap(), "-o", out.to_str().unwrap(), "--json"];
            let mut printed = Vec::new();
            command::run(words.iter().map(Into::into), &mut printed).unwrap();
            assert!(!String::from_utf8_lossy(&printed).contains("PRIVATE KEY"));
            serde_json::from_slice(&printed).unwrap()
        };
        let reference = include_str!("../../../configs/clusters/reference.yaml");
        let first = render(reference);
        assert_eq!(first["folder"], out.to_str().unwrap());
        let new = first["files"]["new"].as_array().unwrap();
        assert!(
            new.contains(&"hosts/hdss7-12/root/etc/etcd/etcd.conf".into()) && first["files"]["same"] == 0,
            "{first}"
        );
        let issued = first["issued"].as_array().unwrap();
        let server = issued.iter().find(|row| row["host"] == "hdss7-12" && row["path"] == "etcd/server").unwrap();
        assert_eq!(server["reason"], "there is none");
        let again = render(reference);
        assert!(
            ["new", "changed", "removed", "kept"].iter().all(|what| again["files"][what] == Value::Array(Vec::new()))
        );
        assert!(again["issued"] == Value::Array(Vec::new()) && again["hosts"] == Value::Array(Vec::new()), "{again}");
        let changed = render(&format!("{reference}ports: {{etcdMetrics: 2391}}\n"));
        let host = &changed["hosts"][0];
        assert_eq!(
            (&host["host"], &host["restart"][0]["unit"]),
            (&"hdss7-12".into(), &"etcd.service".into()),
            "{changed}"
        );
        assert_eq!(host["restart"][0]["files"], Value::Array(vec!["/etc/etcd/etcd.conf".into()]), "{changed}");
    }
}
