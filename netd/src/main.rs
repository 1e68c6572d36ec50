//! `netd`: reads the command line, sets up the log, runs.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::http::ask;
use daemon::lifecycle::Exit;
use daemon::log::Log;
use netd::command::args::{Invocation, Verb};
use netd::command::config::{Config, run_dir};
use netd::run;

/// Longest wait for the daemon.
const LIMIT: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
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
            let config = Config::read(flags)?;
            let log = Log::start(run::NAME, run::VERSION, config.log).context("start the log")?;
            run::run(config, log)?;
        }
    }
    Ok(Exit::Success)
}

fn show_status(run_dir: &Path, json: bool) -> Result<Exit> {
    let stored = run::read_status(run_dir)?;
    let warning = stored.warning(run::NAME);
    if let Some(warning) = &warning {
        eprintln!("{warning}");
    }
    let status = if warning.is_some() { run::status::outdated(stored.status) } else { stored.status };
    if json {
        println!("{status:#}");
    } else {
        print!("{}", run::status::text(&status));
    }
    Ok(if warning.is_none() { Exit::Success } else { Exit::Failure })
}
