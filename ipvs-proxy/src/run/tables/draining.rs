//! Real servers on their way out: their drains begin, are checked, and end.
//!
//! Invariant: a TCP real server that is not desired any more is drained before it is removed, one that the kernel still holds from
//! before a restart likewise.

use std::time::Duration;

use netstate::ipvs::{Row, RowKey};
use reconcile::Owner;

use super::Tables;
use crate::dataplane::drain::Ended;
use crate::dataplane::ipvs;

impl Tables {
    /// Turns removals of TCP real servers into drains.
    pub(super) fn begin_drains(&mut self, now: Duration) {
        let Some(servers) = self.servers.and_then(|servers| self.stack.get(servers)) else { return };
        let Some(mirror) = servers.mirror() else { return };
        let mut candidates = std::mem::take(&mut self.leaving);
        if std::mem::replace(&mut self.searched, servers.listings()) != servers.listings() {
            candidates.extend(mirror.iter().filter(|(_, row)| row.owner == Owner::Ours).filter_map(
                |(key, _)| match key {
                    RowKey::Real(real) => Some(*real),
                    RowKey::Virtual(_) => None,
                },
            ));
        }
        let desired = servers.desired();
        candidates.retain(|real| {
            mirror.contains_key(&RowKey::Real(*real))
                && !desired.contains_key(&RowKey::Real(*real))
                && desired.contains_key(&RowKey::Virtual(real.service))
                && self.drains.apply_to(real.service.protocol)
        });
        for real in candidates {
            tracing::info!(server = %real, "endpoint takes no new connections and goes when its last one has ended");
            self.drains.begin(real, now);
            self.want_server(RowKey::Real(real), Some(Row::Real(ipvs::DRAINING)));
        }
    }

    /// Counts the connections of drains that are due and lets go of those that have ended. Returns whether one has.
    pub(crate) fn look_at_drains(&mut self, now: Duration) -> bool {
        let mut any = false;
        let Some(servers) = self.servers.and_then(|servers| self.stack.get_mut(servers)) else { return any };
        for service in self.drains.due(now) {
            let idle = match servers.target_mut().idle(&service) {
                Ok(idle) => idle,
                Err(error) => {
                    tracing::warn!(error = %kernel::Chain(&error), "connections of a draining endpoint cannot be counted");
                    self.drains.postpone(service, now);
                    continue;
                }
            };
            for (real, ended) in self.drains.look(service, &idle, now) {
                match ended {
                    Ended::Expired => {
                        tracing::warn!(server = %real, "drain has lasted its whole grace period, connections break")
                    }
                    Ended::Idle | Ended::Gone => tracing::info!(server = %real, "drained endpoint goes"),
                }
                servers.want(RowKey::Real(real), None);
                any = true;
            }
        }
        any
    }
}
