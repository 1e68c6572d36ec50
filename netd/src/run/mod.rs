//! The shell around the pure parts: it starts, listens, plans and reports.
//!
//! One thread runs everything that waits for the network (this module and `source`), another everything that waits for
//! the kernel (`worker`), a third serves pages and judges the heartbeats of all loops (`daemon::shell`). Invariants: nothing on the way from a lease to the kernel waits for the store, so a store that
//! is out of reach costs no repair; ending, in whatever way, leaves the kernel as it is.

pub(crate) mod claim;
mod counted;
mod daemon;
mod extension;
mod external;
mod facts;
mod families;
mod file_contest;
pub(crate) mod forward;
mod health;
mod identity;
mod indexes;
mod leases;
pub(crate) mod needs;
mod notification;
mod outer;
mod page;
mod planning;
mod published;
mod reach;
mod reconfigure;
pub(crate) mod records;
mod report;
mod responder;
mod rivals;
mod silent;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod subnet_file;
mod tables;
mod targets;
mod unannounced;
mod vrf;
mod witness;
mod worker;

use std::path::Path;

use ::daemon::log::Log;
use ::daemon::monitors::{NFTABLES, RTNETLINK};
use ::daemon::shell::{self, Places, Program, seed};
use anyhow::{Context, Result};

use self::claim::Claimed;
use self::counted::PluginCalls;
use crate::command::args::Invocation;
use crate::command::config::Config;

/// This program's name.
pub(crate) const NAME: &str = "netd";

/// Its version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Gates of readiness beside those of the monitors: every lease is known, rows are in.
const LEASES: &str = "leases";
const TABLES: &str = "tables";

const PROGRAM: Program = Program {
    name: NAME,
    version: VERSION,
    gates: &[LEASES, RTNETLINK, NFTABLES, TABLES],
    render: status::text,
    health: health::page,
};

/// Runs the daemon that the flags describe.
///
/// # Errors
/// Every problem of the flags, and what keeps it from starting.
pub(crate) fn serve(invocation: &Invocation) -> Result<()> {
    let (flags, seed) = (&invocation.flags, seed());
    let config = Config::read(flags, flags.etcd.tls_files().read(), seed)?;
    let log = Log::start(NAME, VERSION, config.log.clone()).context("start the log")?;
    if !invocation.ignored.is_empty() {
        tracing::warn!(words = ?invocation.ignored, "ignored, as flanneld does: a value of a switch stands behind `=`");
    }
    run(config, seed, log)
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the configuration of the network, the interface or the kernel is not as needed.
fn run(config: Config, seed: u64, log: Log) -> Result<()> {
    let files = [&config.subnet_file, &config.wireguard_key_file];
    let folders = files.into_iter().filter_map(|file| file.parent()).chain([Path::new(claim::FOLDER)]);
    let written = folders.map(Path::to_path_buf).collect();
    let places = Places { run_dir: config.run_dir.clone(), written, listeners: config.listeners.clone() };
    // Before anything of another daemon's is replaced, its socket in the folder included.
    let claimed = Claimed::take(&config.subnet_file, &config.run_dir)?;
    let calls = PluginCalls::open(&config.run_dir, &config.subnet_file);
    shell::run(&PROGRAM, &places, log, |shell| {
        shell.metrics.extend(|registry| registry.register_collector(Box::new(calls)));
        page::show(&shell, &config.page);
        start::run(config, seed, shell, claimed)
    })
}

#[cfg(test)]
mod tests;
