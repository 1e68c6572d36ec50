//! The shell around the pure parts: it starts, listens, plans and reports.
//!
//! One thread runs everything that waits for the network (this module and `source`), another everything that waits for
//! the kernel (`worker`). Invariants: nothing on the way from a lease to the kernel waits for the store, so a store that
//! is out of reach costs no repair; ending, in whatever way, leaves the kernel as it is.

mod daemon;
mod external;
mod facts;
mod files;
mod forward;
mod leases;
mod monitors;
mod planning;
mod report;
mod start;
pub mod status;
mod subnet_file;
mod tables;
mod witness;
mod worker;

use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::config::Config;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the configuration of the network, the interface or the kernel is not as needed.
pub fn run(config: Config, seed: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let end = async {
            tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" }
        };
        let daemon = start::run(config, seed);
        tokio::select! {
            ended = daemon => ended,
            signal = end => {
                tracing::info!(signal, "ending; the data path stays as it is");
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                Ok(())
            }
        }
    })
}

/// Reads the status file of a running daemon.
///
/// # Errors
/// When there is none, or it is not this program's.
pub fn read_status(run_dir: &Path) -> Result<(String, status::Status)> {
    let path = run_dir.join(status::FILE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("read {}: is netd running, with this --run-dir?", path.display()))?;
    let status = serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))?;
    Ok((text, status))
}
