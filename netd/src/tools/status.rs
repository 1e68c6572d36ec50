//! `netd status`: the daemon's own words, or the file that it left.
//!
//! Invariant: a status that may be old never says that all is well; its exit status says so as well.

use std::path::Path;

use anyhow::{Context, Result};
use daemon::http::ask;
use daemon::json;
use daemon::lifecycle::Exit;
use daemon::status::{FILE, Stored};
use daemon::terminal::{self, Shown, Text, Tone, Watch};

use super::LIMIT;
use crate::doctor::kept;
use crate::run::{NAME, status};

/// Prints the status of the daemon whose run-time files are in `run_dir`, once or again and again.
///
/// # Errors
/// When there is none, or it is not this program's.
pub(super) fn show(run_dir: &Path, json: bool, watch: Watch) -> Result<Exit> {
    terminal::show(watch, tone, || shown(run_dir, json))
}

fn shown(run_dir: &Path, json: bool) -> Result<Shown> {
    let mut stored = read(run_dir)?;
    let warning = stored.warning(NAME);
    let mut notes: Vec<String> = warning.iter().cloned().collect();
    if warning.is_none() {
        // The file has the leases' number only.
        match ask(run_dir, "/status?format=json", LIMIT) {
            Ok(text) => stored.refresh(serde_json::from_str(&text).context("read the daemon's status")?),
            Err(error) => notes.push(format!("netd: the leases are not shown: {error}")),
        }
    }
    for (subnet, probe) in kept::read(run_dir) {
        if let Some(peer) = stored.status.pointer_mut("/leases").and_then(|leases| leases.get_mut(&subnet)) {
            peer["probe"] = serde_json::to_value(probe)?;
        }
    }
    let status = if warning.is_some() { status::outdated(stored.status) } else { stored.status };
    let exit = if warning.is_none() { Exit::Success } else { Exit::Failure };
    let text = if json { Text::Json(json::pretty(&status)?) } else { Text::Lines(status::text(&status)) };
    Ok(Shown { notes, text, exit })
}

fn tone(line: &str) -> Tone {
    match line {
        _ if line.starts_with('!') => Tone::Bad,
        _ if line.starts_with("node ") && line.ends_with(": in sync") => Tone::Good,
        _ if line.starts_with("node ") => Tone::Bad,
        _ if line.starts_with("repaired ") => Tone::Note,
        _ => Tone::Plain,
    }
}

fn read(run_dir: &Path) -> Result<Stored> {
    let path = run_dir.join(FILE);
    Stored::read(run_dir).with_context(|| format!("read {}: is netd running, with this --run-dir?", path.display()))
}
