//! `netd doctor`: what keeps Pods from reaching each other, each finding with its fix.
//!
//! One file per check, which judges [`Facts`] and does nothing else; [`facts`] and [`probing`] gather them. Invariants: a
//! finding names its object and what to do; what could not be found out is said, never taken for well.

mod bridge;
mod clock;
mod daemon;
mod duplicates;
mod entrance;
pub(crate) mod facts;
mod features;
mod firewall;
mod forwarding;
mod holders;
pub(crate) mod kept;
mod networks;
mod outer;
pub(crate) mod packet;
mod paths;
pub(crate) mod probing;
mod reverse_path;

use ::daemon::doctor::{self, Check, Finding, Severity, Trouble};
use ::daemon::lifecycle::Exit;
use ::daemon::terminal::Waiting;
use anyhow::Result;

use crate::command::args::Flags;
pub(crate) use facts::{Facts, ask, vrf};

/// The checks in the order in which they are made.
const CHECKS: [Check<Facts>; 13] = [
    Check { name: "daemon", well: "netd runs, and every row is in the kernel", judge: daemon::judge },
    Check { name: "kernel", well: "it has what the backend needs", judge: features::judge },
    Check { name: "forwarding", well: "packets are forwarded", judge: forwarding::judge },
    Check { name: "rp_filter", well: "no packet was dropped for its source address", judge: reverse_path::judge },
    Check { name: "br_netfilter", well: "bridged packets pass the rules", judge: bridge::judge },
    Check { name: "networks", well: "no network overlaps another", judge: networks::judge },
    Check { name: "duplicates", well: "every node has an address and a subnet of its own", judge: duplicates::judge },
    Check { name: "outer", well: "tunnels have a route to every node", judge: outer::judge },
    Check { name: "port", well: "every node answers", judge: paths::reachability },
    Check { name: "checksum", well: "packets with checksums arrive", judge: paths::checksums },
    Check { name: "mtu", well: "packets of the Pods' size arrive whole", judge: paths::sizes },
    Check { name: "firewall", well: "no rule dropped a packet meanwhile", judge: firewall::judge },
    Check { name: "clock", well: "the nodes' clocks agree", judge: clock::judge },
];

/// Makes every check and prints what it found; exit status 1 when there is a problem.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn act(flags: &Flags, probe_port: Option<u16>, json: bool) -> Result<Exit> {
    let waiting = Waiting::on("asking every node");
    let facts = facts::gather(flags, probe_port)?;
    drop(waiting);
    Ok(doctor::print(&examine(&facts), json)?)
}

/// Checks that find something out without a daemon; the others judge what it says, and what other nodes answer to its kind of probe.
const ALONE: [&str; 4] = ["daemon", "kernel", "forwarding", "br_netfilter"];

fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = doctor::examine(&CHECKS, facts);
    if facts.daemon.is_none() {
        findings.retain(|finding| finding.severity != Severity::Ok || ALONE.contains(&finding.check));
    }
    findings
}

#[cfg(test)]
mod tests;
