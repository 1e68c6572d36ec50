//! `tables`: the rows of every kernel table, from the running daemon.

use std::path::Path;
use std::time::Duration;

use daemon::http::ask;
use daemon::terminal;

/// Longest wait for the daemon.
const LIMIT: Duration = Duration::from_secs(15);

/// Prints the rows, desired against actual.
///
/// # Errors
/// When the daemon does not run or does not answer.
pub(crate) fn tables(run_dir: &Path, json: bool) -> anyhow::Result<()> {
    Ok(terminal::put(&ask(run_dir, if json { "/tables?format=json" } else { "/tables" }, LIMIT)?)?)
}
