//! The verbs: what an operator asks for besides running the daemon.
//!
//! One room per verb. Invariants: what a verb finds out is apart from what it prints; one that changes something says
//! first what it will change, and refuses while a running daemon would change it back.

mod cleanup;
mod config;
pub(crate) mod docker_opts;
mod etcd;
mod lease;
mod status;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use cluster::ClusterError;
use daemon::http::ask;
use daemon::lifecycle::Exit;
use daemon::terminal;

use crate::command::args::{self, Flags};
use crate::command::config::{Config, Store, probe_port, run_dir};
use crate::command::verbs::Verb;

/// Longest wait for the daemon.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// Does what `verb` says.
///
/// # Errors
/// What keeps it from being done.
pub(crate) fn act(verb: &Verb, flags: &Flags) -> Result<Exit> {
    let run_dir = &run_dir(flags);
    match verb {
        Verb::Status { json, watch } => status::show(run_dir, *json, *watch),
        Verb::Tables { json } => {
            terminal::put(&ask(run_dir, if *json { "/tables?format=json" } else { "/tables" }, LIMIT)?)?;
            Ok(Exit::Success)
        }
        Verb::Config(verb) => config::act(verb, flags),
        Verb::Lease(verb) => lease::act(verb, flags),
        Verb::Doctor { json } => crate::doctor::act(flags, probe_port(flags)?, *json),
        Verb::Trace(options) => crate::trace::act(options, flags, probe_port(flags)?),
        Verb::Cleanup(options) => cleanup::act(options, flags),
        Verb::Completions(wanted) => {
            terminal::put_unchanged(&wanted.render(args::command()))?;
            Ok(Exit::Success)
        }
        Verb::Man(pages) => {
            pages.write(&args::command()).with_context(|| format!("write to {}", pages.folder.display()))?;
            Ok(Exit::Success)
        }
        Verb::DockerOpts(options) => {
            docker_opts::write(options, std::path::Path::new(&flags.subnet_file)).map(|()| Exit::Success)
        }
    }
}

/// Where the flags say that the network's configuration and the leases are.
fn store(flags: &Flags) -> Result<Store> {
    Ok(Config::read(flags, flags.etcd.tls_files().read(), daemon::shell::seed())?.store)
}

/// Waits for `work`, which asks the store.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(work).map_err(asked_once)
}

/// A verb ends where the daemon would try again.
fn asked_once(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<ClusterError>() {
        Ok(store) => anyhow!(store.asked_once()),
        Err(other) => other,
    }
}
