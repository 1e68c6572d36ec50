//! Whether the daemon runs and says that everything is in place.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let Some(daemon) = &facts.daemon else {
        let silence = facts.silence.as_deref().unwrap_or("it does not answer");
        let fix = "systemctl start netd, and read its log; nothing else can be said of the other nodes meanwhile";
        return vec![Trouble::problem(format!("no daemon: {silence}"), fix)];
    };
    let mut troubles = Vec::new();
    if daemon.node.subnet.is_none() {
        troubles.push(Trouble::problem("this node has no subnet", "see `netd status` for what the lease waits for"));
    }
    for (name, table) in daemon.tables.iter().filter(|(_, table)| !table.is_done()) {
        troubles.push(Trouble::of_table(name, table, "netd"));
    }
    let lost = [&daemon.store.lost, &daemon.store.lease_trouble];
    for trouble in lost.into_iter().flatten() {
        let fix = "packets still pass; make the store reachable before the lease ends (`netd lease list`)";
        troubles.push(Trouble::note(format!("store: {trouble}"), fix));
    }
    troubles.extend(daemon.warnings.iter().map(|warning| Trouble::note(warning.clone(), "")));
    troubles
}
