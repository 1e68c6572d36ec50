//! How this node stands, for a source that says so to others (the Node of Kubernetes).
//!
//! Invariant: a data path is broken only when the worker has carried the latest plan out and rows that this node's own Pods need
//! are missing; until then nothing is said of it.

use std::collections::BTreeMap;

use reconcile::{State, TableStatus};

use super::daemon::Daemon;
use super::report::LOCAL;
use crate::source::{LeaseSource, NodeState, Trouble};

impl<S: LeaseSource> Daemon<S> {
    /// How this node stands now.
    pub(super) fn node_state(&self) -> NodeState {
        let (reporter, planner) = (&self.reporter, &self.planning.planner);
        let stands = if reporter.withdrawn {
            Some(Err("another node holds the subnet that this node's Pods had".to_owned()))
        } else {
            reporter.stands.clone()
        };
        let broken = stands.as_ref().and_then(|stands| stands.as_ref().err()).cloned();
        let of = |reason: &'static str| move |message: String| Trouble { reason, message };
        let troubles = broken.map(of("DataPathBroken")).into_iter();
        let troubles = troubles
            .chain(reporter.lease_trouble.clone().map(of("NoSubnet")))
            .chain(self.change.problem.clone().map(of("InvalidNetConf")))
            .chain(planner.local().refuses_mtu(planner.pod_mtu()).map(of("MTUTooSmall")))
            .chain(reporter.refused_family.clone().map(of("FamilyRefused")))
            .chain(reporter.clashes.iter().cloned().map(of("NetworkOverlap")));
        NodeState { stands, troubles: troubles.collect() }
    }
}

/// Whether the rows are in place that this node's own Pods need, or which are not.
pub(super) fn stands(tables: &BTreeMap<&'static str, TableStatus>) -> Result<(), String> {
    let mut missing = Vec::new();
    for name in LOCAL {
        match tables.get(name) {
            Some(table) if table.is_done() => {}
            Some(table) => {
                let open = table.open.first().map(|row| match &row.state {
                    State::Failed { reason, .. } => format!("{}: {reason}", row.key),
                    State::Pending | State::Done => row.key.clone(),
                });
                let why = table.observe_error.clone().or(open);
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                missing.push(format!("{name}: {} of {} rows in place{why}", table.done, table.desired));
            }
            None => missing.push(format!("{name}: not read yet")),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_path_stands_when_every_row_of_the_own_tables_does() {
        let done = TableStatus { desired: 1, done: 1, ..TableStatus::default() };
        let mut tables: BTreeMap<&'static str, TableStatus> = LOCAL.map(|name| (name, done.clone())).into();
        tables.insert("routes", TableStatus { desired: 9, done: 3, ..TableStatus::default() });
        assert_eq!(stands(&tables), Ok(()), "other nodes' rows are not this node's");
        let unread = TableStatus { desired: 1, observe_error: Some("no netlink".to_owned()), ..TableStatus::default() };
        tables.insert("links", unread);
        assert_eq!(stands(&tables), Err("links: 0 of 1 rows in place: no netlink".to_owned()));
    }
}
