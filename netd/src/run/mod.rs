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
mod status;
mod subnet_file;
mod tables;
mod witness;
mod worker;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ::daemon::http::ask;
use ::daemon::lifecycle::Exit;
use ::daemon::log::Log;
use ::daemon::monitors::{NFTABLES, RTNETLINK};
use ::daemon::shell::{self, Places, Program, seed};
use ::daemon::status::{FILE, Stored};
use anyhow::{Context, Result};

use self::claim::Claimed;
use crate::command::args::{Invocation, Verb};
use crate::command::config::{Config, run_dir};

/// This program's name.
const NAME: &str = "netd";

/// Its version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

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

/// Longest wait for the daemon.
const LIMIT: Duration = Duration::from_secs(15);

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let invocation = match Invocation::read(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    match act(&invocation) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("netd: {error:#}");
            Exit::Failure.into()
        }
    }
}

fn act(invocation: &Invocation) -> Result<Exit> {
    let flags = &invocation.flags;
    let run_dir = &run_dir(flags);
    match invocation.verb {
        Some(Verb::Status { json }) => return show_status(run_dir, json),
        Some(Verb::Tables { json }) => {
            print!("{}", ask(run_dir, if json { "/tables?format=json" } else { "/tables" }, LIMIT)?);
        }
        None => {
            let seed = seed();
            let config = Config::read(flags, flags.etcd.tls_files().read(), seed)?;
            let log = Log::start(NAME, VERSION, config.log).context("start the log")?;
            run(config, seed, log)?;
        }
    }
    Ok(Exit::Success)
}

fn show_status(run_dir: &Path, json: bool) -> Result<Exit> {
    let mut stored = read_status(run_dir)?;
    let warning = stored.warning(NAME);
    if let Some(warning) = &warning {
        eprintln!("{warning}");
    } else {
        // The file has the leases' number only.
        match ask(run_dir, "/status?format=json", LIMIT) {
            Ok(text) => stored.refresh(serde_json::from_str(&text).context("read the daemon's status")?),
            Err(error) => eprintln!("netd: the leases are not shown: {error}"),
        }
    }
    let status = if warning.is_some() { status::outdated(stored.status) } else { stored.status };
    if json {
        println!("{status:#}");
    } else {
        print!("{}", status::text(&status));
    }
    Ok(if warning.is_none() { Exit::Success } else { Exit::Failure })
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the configuration of the network, the interface or the kernel is not as needed.
fn run(config: Config, seed: u64, log: Log) -> Result<()> {
    let places = Places { run_dir: config.run_dir.clone(), listeners: config.listeners.clone() };
    // Before anything of another daemon's is replaced, its socket in the folder included.
    let claimed = Claimed::take(&config.subnet_file, &config.run_dir)?;
    shell::run(&PROGRAM, &places, log, |shell| start::run(config, seed, shell, claimed))
}

/// Reads the status file of a daemon.
///
/// # Errors
/// When there is none, or it is not this program's.
fn read_status(run_dir: &Path) -> Result<Stored> {
    let path = run_dir.join(FILE);
    Stored::read(run_dir).with_context(|| format!("read {}: is netd running, with this --run-dir?", path.display()))
}

#[cfg(test)]
mod tests;
