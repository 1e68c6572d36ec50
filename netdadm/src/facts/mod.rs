//! What this host is like, read once: files below a root, and what the kernel answers.
//!
//! Invariants: no program is executed and nothing of the host is changed, but for modules that the kernel loads when it is asked for
//! what they do; what cannot be read is said by the check that needs it.

mod disks;
mod features;
mod network;
mod own;
mod resolver;
mod rules;
mod sockets;
mod texts;

use std::path::Path;

use kernel::{Chain, KernelError};

use crate::preflight::{Clock, Facts, Plan};
pub(crate) use own::is_own;

/// Reads them.
pub(crate) fn gather(root: &Path, plan: Option<&Plan>) -> Facts {
    let mut facts = Facts { texts: texts::below(root), paths: texts::paths(root), ..Facts::default() };
    facts.sockets = sockets::waiting();
    facts.disks = disks::all(root);
    facts.features = features::ask();
    note(&mut facts, &["clock"], clock);
    note(&mut facts, &["routes", "mtu", "overlaps"], |facts| network::read(facts, plan));
    note(&mut facts, &["firewall", "iptables"], |facts| rules::read(facts, plan));
    if let Some(plan) = plan {
        facts.resolved = resolver::ask(plan, facts.text("/etc/hosts").unwrap_or_default());
    }
    facts
}

/// Reads a part, or writes down for which checks it is missing.
fn note(facts: &mut Facts, checks: &[&'static str], read: impl FnOnce(&mut Facts) -> Result<(), KernelError>) {
    if let Err(error) = read(facts) {
        let reason = Chain(&error).to_string();
        facts.unread.extend(checks.iter().map(|check| (*check, reason.clone())));
    }
}

fn clock(facts: &mut Facts) -> Result<(), KernelError> {
    let clock = kernel::clock::Clock::read()?;
    facts.clock = Some(Clock { synchronized: clock.synchronized, error: clock.error });
    Ok(())
}
