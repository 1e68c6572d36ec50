//! Whether the nodes' clocks agree: leases and certificates are judged by them.

use std::collections::BTreeSet;

use super::{Facts, Trouble};

/// The most that they may differ, in milliseconds; probes may take a second themselves.
const MOST: u64 = 10_000;

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let (mut troubles, mut named) = (Vec::new(), BTreeSet::new());
    for (peer, paths) in &facts.paths {
        let Some(ahead) = paths.direct.ahead().or_else(|| paths.tunnel?.ahead()) else { continue };
        // A node with two families has one clock.
        if ahead.unsigned_abs() > MOST && named.insert(&peer.name) {
            let side = if ahead > 0 { "ahead of" } else { "behind" };
            let found = format!("{}: its clock is {} s {side} this one's", peer.name, ahead.unsigned_abs() / 1000);
            troubles.push(Trouble::problem(found, "synchronise both nodes' clocks (timedatectl, chronyc tracking)"));
        }
    }
    troubles
}
