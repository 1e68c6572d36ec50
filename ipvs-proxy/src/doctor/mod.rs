//! `ipvs-proxy doctor`: what keeps clients from Services on this node, each finding with its fix.
//!
//! One function per check, which judges [`Facts`] and does nothing else; [`facts`] gathers them. Invariants: a finding names its object
//! and what to do; what could not be found out is said, never taken for well.

mod daemon;
mod facts;
mod host;
mod kernel;
mod objects;
#[cfg(test)]
mod tests;

use ::daemon::doctor::{self, Check, Finding};
use ::daemon::lifecycle::Exit;
use anyhow::Result;

use self::facts::Facts;
use crate::command::args::Invocation;

/// The checks in the order in which they are made.
const CHECKS: [Check<Facts>; 18] = [
    Check { name: "daemon", well: "ipvs-proxy runs, and every row is in the kernel", judge: daemon::judge },
    Check { name: "objects", well: "every object is read and served", judge: daemon::objects },
    Check { name: "node", well: "flags, Node object and this machine say the same", judge: objects::node },
    Check { name: "forwarding", well: "packets are forwarded", judge: host::forwarding },
    Check { name: "rp_filter", well: "no packet was dropped for its source address", judge: host::reverse_path },
    Check { name: "br_netfilter", well: "bridged packets pass the rules", judge: host::bridges },
    Check { name: "conntrack", well: "the table of connections has room", judge: host::conntrack },
    Check { name: "ipvs", well: "the kernel has what the data path needs", judge: kernel::ipvs },
    Check { name: "rival", well: "no kube-proxy runs, and none has left rules", judge: kernel::rival },
    Check { name: "forward", well: "no chain of others drops what is forwarded", judge: kernel::forward },
    Check { name: "addresses", well: "no virtual address is one of a host's", judge: kernel::addresses },
    Check { name: "local", well: "the networks that are to be local are", judge: kernel::local },
    Check { name: "route", well: "this node has a way to the virtual addresses", judge: kernel::route },
    Check { name: "networks", well: "no network overlaps another", judge: objects::networks },
    Check { name: "endpoints", well: "every endpoint has a route", judge: objects::endpoints },
    Check { name: "conflicts", well: "no two Services claim one place", judge: objects::conflicts },
    Check { name: "ports", well: "node ports are none of this host's own", judge: objects::ports },
    Check { name: "listeners", well: "no Service hides a process of this host", judge: objects::listeners },
];

/// Makes every check and prints what it found; exit status 1 when there is a problem.
///
/// # Errors
/// When the settings are wrong, or the kernel cannot be read.
pub(crate) fn act(invocation: &Invocation, json: bool) -> Result<Exit> {
    Ok(doctor::print(&examine(&facts::gather(invocation)?), json)?)
}

fn examine(facts: &Facts) -> Vec<Finding> {
    doctor::examine(&CHECKS, facts)
}
