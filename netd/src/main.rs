//! `netd`: reads the command line, sets up the log, runs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use netd::command::args::{Invocation, Verb};
use netd::command::config::{Config, Log};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let invocation = match Invocation::read(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    match act(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(invocation: Invocation) -> Result<()> {
    if let Some(Verb::Status { json, run_dir }) = invocation.verb {
        let (text, status) = netd::run::read_status(Path::new(&run_dir))?;
        print!("{}", if json { text } else { status.render() });
        return Ok(());
    }
    let (config, log) = Config::read(&invocation.flags)?;
    set_up(log);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "netd starts");
    netd::run::run(config, seed())
}

/// Logs to standard error. RUST_LOG, when set, says what instead of `--v`.
fn set_up(log: Log) {
    let level =
        if log.debug { "debug,netlink_proto=info,h2=info,hyper=info,tower=info" } else { "info,netlink_proto=warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if log.json { builder.json().init() } else { builder.with_ansi(false).init() }
}

/// A seed that differs from node to node and from start to start; for spreading load, never for secrets.
fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().wrapping_mul(1_000_000_007) ^ u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32)
}
