//! `status`: asks every component of every host.
//!
//! Invariant: the answer comes within the time that was given, whatever hangs; status 0 is a cluster of which nothing is known to fail.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum as _;
use daemon::json;
use daemon::lifecycle::Exit;
use daemon::terminal::{self, Shown, Text, Tone, Waiting};

use super::args::Asked;
use super::{verify, written};
use crate::check::{self, Checked};
use crate::status::{self, Component, Keys, Question, State};

/// Asks all of them, once or again and again.
///
/// # Errors
/// When the topology or the keys cannot be read, or what was found cannot be written.
pub(super) fn run(asked: &Asked, out: &mut impl Write) -> Result<ExitCode, String> {
    if asked.watch.watch.is_some() {
        let make = || shown(asked).map_err(Box::<dyn Error>::from);
        return terminal::show(asked.watch, tone, make).map(ExitCode::from).map_err(|cause| cause.to_string());
    }
    let waiting = Waiting::on("asking every component");
    let Shown { text, exit, .. } = shown(asked)?;
    drop(waiting);
    written(out, terminal::painted(&text, tone).as_bytes())?;
    Ok(exit.into())
}

/// A line of the table, by its third column.
fn tone(line: &str) -> Tone {
    match line.split_whitespace().nth(2) {
        _ if line.starts_with(' ') => Tone::Plain,
        Some("ok") => Tone::Good,
        Some("waiting" | "?") => Tone::Note,
        Some("FAILED") => Tone::Bad,
        _ => Tone::Plain,
    }
}

fn shown(asked: &Asked) -> Result<Shown, String> {
    let name = asked.file.display();
    let text = verify::read(&asked.file).map_err(|cause| format!("read {name}: {cause}"))?;
    let Checked { topology, .. } = check::text(&text);
    let topology = topology.ok_or_else(|| format!("{name} has errors: see `netdadm check -f {name}`"))?;
    let given = topology.deviations.pki.as_ref().map(|folder| PathBuf::from(folder.value.to_string()));
    let keys = asked.output.as_deref().map(|out| Keys::read(out, given.as_deref())).transpose()?.unwrap_or_default();
    let all = Component::value_variants();
    let only: BTreeSet<Component> = if asked.only.is_empty() { all } else { &asked.only }.iter().copied().collect();
    let limit = Duration::from_secs(asked.timeout.into());
    let rows = status::ask(Question { topology, keys, only, limit });
    let text = if asked.json {
        Text::Json(json::pretty(&rows).map_err(|cause| format!("print rows: {cause}"))?)
    } else {
        Text::Lines(status::table(&rows))
    };
    let is_well = rows.iter().all(|row| matches!(row.state, State::Ok | State::Unknown));
    Ok(Shown { notes: Vec::new(), text, exit: if is_well { Exit::Success } else { Exit::Failure } })
}
