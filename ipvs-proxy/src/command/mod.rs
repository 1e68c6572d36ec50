//! The command line: what was typed ([`args`]), kube-proxy's settings in it and in a file ([`settings`]), and what it
//! means ([`config`]).

pub(crate) mod args;
pub(crate) mod config;
pub(crate) mod duration;
pub(crate) mod load;
mod node;
pub(crate) mod service_metrics;
pub(crate) mod settings;

use std::process::ExitCode;

use anyhow::Context;
use daemon::lifecycle::Exit;
use daemon::log::Log;
use daemon::shell::seed;
use daemon::status::Lines;
use daemon::terminal;

use self::args::{Invocation, Verb};
use self::config::of_the_command_line;
use crate::run::cleanup::Cleaned;
use crate::run::cleanup::kube_proxy::Leftovers;
use crate::{commands, doctor, explain, run};

/// Does what the command line asks for; the exit status is 0 when it is done.
pub fn main() -> ExitCode {
    let invocation = match Invocation::read(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    match begin(&invocation) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // The whole chain: what failed, and why, to the cause.
            terminal::note(&format!("ipvs-proxy: {error:#}"));
            Exit::Failure.into()
        }
    }
}

fn begin(invocation: &Invocation) -> anyhow::Result<Exit> {
    let flags = &invocation.flags;
    let start_log = |settings| Log::start(run::NAME, run::VERSION, settings).context("start the log");
    if let Some(file) = &flags.write_config_to {
        load::write(invocation, file)?;
        return Ok(Exit::Success);
    }
    if invocation.verb.is_none() && !flags.cleanup && !flags.cleanup_kube_proxy {
        let config = load::config(invocation)?;
        let log = start_log(config.log.clone())?;
        config.notes.log();
        if flags.init_only {
            return run::init_only(&config);
        }
        run::run(invocation.clone(), config, log)?;
        return Ok(Exit::Success);
    }
    let mut problems = Vec::new();
    let settings = flags.log.read(&mut problems);
    if !problems.is_empty() {
        return Err(of_the_command_line(problems).into());
    }
    start_log(settings)?;
    match &invocation.verb {
        None if flags.cleanup_kube_proxy => {
            terminal::put(&report(&run::cleanup::kube_proxy::remove(&load::excluded(invocation)?)?))?;
        }
        None => terminal::put(&match run::cleanup(&load::excluded(invocation)?)? {
            Some(Cleaned::All(rows)) => format!(
                "removed {rows} of IPVS (virtual servers with all behind them), their addresses, and the nft tables\n"
            ),
            Some(Cleaned::LeftTo(rival)) => {
                format!("removed the nft tables; virtual servers and their addresses are left to {rival}\n")
            }
            None => "this program has put nothing into the kernel; nothing is removed\n".to_owned(),
        })?,
        Some(Verb::Completions(wanted)) => terminal::put_unchanged(&wanted.render(args::command()))?,
        Some(Verb::Man(pages)) => pages.write(&args::command()).context("write the manual pages")?,
        Some(Verb::Status { json, watch }) => return commands::status(&config::run_dir(flags), *json, *watch),
        Some(Verb::Doctor { json }) => return doctor::act(invocation, *json),
        Some(Verb::Explain(asked)) => return explain::act(invocation, asked),
        Some(Verb::Tables { json }) => commands::tables(&config::run_dir(flags), *json)?,
        Some(verb) => commands::on_store(config::read_store(flags, flags.etcd.tls_files().read(), seed())?, verb)?,
    }
    Ok(Exit::Success)
}

/// What was taken away of a kube-proxy, and what is left to do.
fn report(found: &Leftovers) -> String {
    let mut lines = Lines::new();
    if found.removed.is_empty() && found.kept.is_empty() {
        lines.push(format_args!("nothing of a kube-proxy was found in nft and IPVS"));
    }
    found.removed.iter().for_each(|removed| lines.push(format_args!("removed {removed}")));
    if !found.kept.is_empty() {
        lines.push(format_args!("connections of these are open; run this again when they have ended:"));
        found.kept.iter().for_each(|kept| lines.push(format_args!("  {kept}")));
    }
    if !found.commands.is_empty() {
        lines.push(format_args!("tables of iptables-legacy are in use; what kube-proxy has there goes with:"));
        found.commands.iter().for_each(|command| lines.push(format_args!("  {command}")));
    }
    lines.into_text()
}
