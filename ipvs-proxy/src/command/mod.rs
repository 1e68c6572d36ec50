//! The command line: what was typed ([`args`]) and what it means ([`config`]).

pub(crate) mod args;
pub(crate) mod config;
mod duration;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use self::args::{Flags, Invocation, Verb};
use self::config::Config;
use crate::{commands, run};

/// Does what the command line asks for; the exit status is 0 when it is done.
pub fn main() -> ExitCode {
    match begin(&Invocation::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The whole chain: what failed, and why, to the cause.
            eprintln!("ipvs-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin(invocation: &Invocation) -> anyhow::Result<ExitCode> {
    let flags = &invocation.flags;
    start_log(flags)?;
    let seed = std::process::id().into();
    match &invocation.verb {
        None if flags.cleanup => {
            let rows = run::cleanup()?;
            println!("removed {rows} rows of IPVS, the link of virtual addresses and the nft table");
        }
        None => {
            let hostname = nix::unistd::gethostname().context("read the host name")?;
            run::run(Config::read(flags, &hostname.to_string_lossy(), seed)?, seed)?;
        }
        Some(Verb::Status { json }) => return commands::status(flags, *json),
        Some(verb) => commands::on_store(config::read_store(flags, seed)?, verb)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn start_log(flags: &Flags) -> anyhow::Result<()> {
    let level = match flags.verbosity.as_str() {
        "0" => "info",
        "1" => "debug",
        text if text.parse::<u8>().is_ok() => "trace",
        text => anyhow::bail!("--v: {text:?}; accepted: a level from 0 to 255"),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match flags.log_format.as_str() {
        "text" => log.init(),
        "json" => log.json().init(),
        text => anyhow::bail!("--log-format: {text:?}; accepted: text or json"),
    }
    Ok(())
}
