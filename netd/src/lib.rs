//! `netd` leases this node's Pod subnet and keeps the kernel's inter-node network equal to the leases.
//!
//! | module | what it is |
//! |---|---|
//! | [`command`] | what was typed, what is meant |
//! | [`mod@format`] | flannel's formats |
//! | [`choose`] | choices: the interface, the subnet |
//! | [`plan`] | leases in, kernel tables out |
//! | [`source`] | where leases come from: acquire, keep and watch them |
//! | [`run`] | the shell: starts, listens, plans, reports |
//! | [`page`] | what an operator's browser shows: facts in, HTML out |
//! | [`tools`] | the verbs beside the daemon |
//! | [`doctor`] | what keeps Pods from reaching each other: facts, checks, probes |
//! | [`trace`] | what a packet meets on its way, and where a real one was last seen |
//!
//! Invariants of the crate: `format`, `choose`, `plan` and `page` are pure; a plan never imports `run`. The kernel is written by
//! one thread only. No program is executed. Ending leaves the data path as it is.

// They panic where nobody takes what they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod choose;
mod command;
mod doctor;
mod format;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod page;
mod plan;
mod run;
mod source;
mod tools;
mod trace;

#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;

use std::process::ExitCode;

use ::daemon::lifecycle::Exit;
use ::daemon::terminal;
use clap::error::ErrorKind;

use command::args::Invocation;
use command::go::Role;

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let role = Role::of(&std::env::args_os().next().unwrap_or_default().to_string_lossy());
    let invocation = match Invocation::read(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(invocation) => invocation,
        Err(error) => return explain(&error, role),
    };
    let done = match &invocation.verb {
        Some(verb) => tools::act(verb, &invocation.flags),
        None => run::serve(&invocation).map(|()| Exit::Success),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            terminal::note(&format!("netd: {error:#}"));
            Exit::Failure.into()
        }
    }
}

/// Prints what there is to say of a command line: on standard error under names of flannel, as its programs do.
fn explain(error: &clap::Error, role: Role) -> ExitCode {
    if role == Role::Netd {
        error.exit();
    }
    match error.kind() {
        ErrorKind::DisplayVersion => terminal::note(&format!("v{}", run::VERSION)),
        _ => terminal::aside(&error.to_string()),
    }
    if error.use_stderr() { Exit::Failure.into() } else { Exit::Success.into() }
}
