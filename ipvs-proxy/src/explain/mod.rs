//! `explain`: what becomes of a connection to a Service, and why.
//!
//! | module | what it does |
//! |---|---|
//! | [`target`] | reads what is asked about |
//! | [`walk`] | follows rows as the kernel does |
//! | [`sites`] | finds the places that are asked about, with the Service behind them |
//! | [`report`] | puts together what is to be said of each |
//! | [`text`] | writes it for a terminal |
//!
//! [`crate::facts`] reads objects and kernel, and plans.
//!
//! Invariants. What the rows of the kernel do is said, not what is planned; where the two differ both are. It works without a daemon:
//! objects and rows are read anew.

mod report;
mod sites;
mod target;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod walk;

use anyhow::Result;
use daemon::json;
use daemon::lifecycle::Exit;
use daemon::terminal;

pub(crate) use self::target::Target;

use self::report::Report;
use crate::command::args::{Explain, Invocation};
use crate::facts;

/// Explains what is asked; exit status 0 when every client reaches an endpoint as planned, 1 when one does not, 2 when nobody knows
/// the Service.
///
/// # Errors
/// When the settings are wrong, or the kernel cannot be read.
pub(crate) fn act(invocation: &Invocation, asked: &Explain) -> Result<Exit> {
    let mut facts = facts::gather(invocation)?;
    let sites = match sites::find(&asked.target, &facts).and_then(|found| sites::within_reach(found, asked.from)) {
        Ok(sites) => sites,
        Err(reason) => {
            terminal::note(&format!("ipvs-proxy: {reason}"));
            return Ok(Exit::Usage);
        }
    };
    facts.read_servers(&sites.iter().map(sites::Site::server).collect())?;
    let report = Report::of(&facts, &sites, asked.from);
    terminal::put(&if asked.json { json::pretty(&report)? } else { text::text(&report) })?;
    Ok(if report.is_well() { Exit::Success } else { Exit::Failure })
}
