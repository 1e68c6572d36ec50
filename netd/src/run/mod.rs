//! The shell around the pure parts: it starts, listens, plans and reports.
//!
//! One thread runs everything that waits for the network (this module and `source`), another everything that waits for
//! the kernel (`worker`). Invariants: nothing on the way from a lease to the kernel waits for the store, so a store that
//! is out of reach costs no repair; ending, in whatever way, leaves the kernel as it is.

mod claim;
mod daemon;
mod external;
mod facts;
mod files;
mod forward;
mod health;
mod leases;
mod planning;
mod report;
mod start;
pub mod status;
mod subnet_file;
mod tables;
mod witness;
mod worker;

use std::path::Path;

use ::daemon::log::Log;
use ::daemon::monitors::{NFTABLES, RTNETLINK};
use ::daemon::shell::{self, Places, Program, seed};
use ::daemon::status::{FILE, Stored};
use anyhow::{Context, Result};

use self::claim::Claimed;
use crate::command::config::Config;

/// This program's name.
pub const NAME: &str = "netd";

/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Gates of readiness beside those of the monitors: every lease is known, rows are in.
const LEASES: &str = "leases";
const TABLES: &str = "tables";

const PROGRAM: Program = Program {
    name: NAME,
    version: VERSION,
    gates: &[LEASES, RTNETLINK, NFTABLES, TABLES],
    render: status::text,
    health: health::page,
    others: &[],
};

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the configuration of the network, the interface or the kernel is not as needed.
pub fn run(config: Config, log: Log) -> Result<()> {
    let places = Places { run_dir: config.run_dir.clone(), listeners: config.listeners.clone() };
    // Before anything of another daemon's is replaced, its socket in the folder included.
    let claimed = Claimed::take(&config.subnet_file, &config.run_dir)?;
    shell::run(&PROGRAM, &places, log, |shell| start::run(config, seed(), shell, claimed))
}

/// Reads the status file of a daemon.
///
/// # Errors
/// When there is none, or it is not this program's.
pub fn read_status(run_dir: &Path) -> Result<Stored> {
    let path = run_dir.join(FILE);
    Stored::read(run_dir).with_context(|| format!("read {}: is netd running, with this --run-dir?", path.display()))
}

#[cfg(test)]
mod tests;
