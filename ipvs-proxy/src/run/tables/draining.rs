//! Real servers on their way out: their drains begin, are checked, and end.
//!
//! Invariants. A TCP real server that is not desired any more is drained before it is removed, one that the kernel still holds from
//! before a restart likewise, and its time goes on from when it began. A virtual server that is not desired any more goes at once, with
//! everything that drains behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServerKey};
use reconcile::Owner;

use super::Tables;
use crate::dataplane::drain::Ended;
use crate::dataplane::{ipvs, since};

impl Tables {
    /// Takes in virtual servers and their real servers.
    pub(super) fn want_servers(&mut self, changes: BTreeMap<RowKey, Option<Row>>) {
        // In key order: virtual servers before their real servers.
        for (key, row) in &changes {
            match (key, row) {
                (RowKey::Virtual(service), row) => {
                    self.pending.insert(ipvs::frontend(service, &self.own));
                    if row.is_some() {
                        self.handover.stays(service);
                        self.claim(*service);
                    } else {
                        self.handover.leaves(*service);
                        self.abandon_drains(*service);
                    }
                }
                (RowKey::Real(real), Some(_)) => {
                    self.leaving.remove(real);
                    if self.end_drain(real) {
                        tracing::info!(server = %real, "endpoint is back, its drain ends");
                    }
                    self.settle_later(real, true);
                }
                (RowKey::Real(real), None) => {
                    self.end_drain(real);
                    self.leaving.insert(*real);
                    self.settle_later(real, false);
                }
            }
        }
        if let Some(servers) = self.servers_mut() {
            servers.want_each(changes);
        }
    }

    /// Turns removals of TCP real servers into drains.
    pub(super) fn begin_drains(&mut self, now: Duration) {
        let Some(servers) = self.servers.and_then(|servers| self.stack.get(servers)) else { return };
        let Some(mirror) = servers.mirror() else { return };
        let mut candidates = std::mem::take(&mut self.leaving);
        let listed = std::mem::replace(&mut self.searched, servers.listings()) != servers.listings();
        if listed {
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
            let (key, row) = since::element(&real, self.drains.begin(real, now));
            self.stack.want(self.nft, key, Some(row));
            self.want_server(RowKey::Real(real), Some(Row::Real(ipvs::DRAINING)));
        }
        if listed {
            self.drains.forget_earlier();
        }
    }

    /// Ends the drain of a real server; returns whether there was one.
    pub(super) fn end_drain(&mut self, real: &RealServerKey) -> bool {
        let ended = self.drains.cancel(real);
        if ended {
            self.stack.want(self.nft, since::key(real), None);
        }
        ended
    }

    /// Lets everything go that drains behind a virtual server which is not desired any more: the kernel takes it along.
    pub(super) fn abandon_drains(&mut self, service: VirtualServerKey) {
        for real in self.drains.of(service) {
            self.end_drain(&real);
            self.want_server(RowKey::Real(real), None);
        }
    }

    /// Counts the connections of drains that are due and lets go of those that have ended. Returns whether one has.
    pub(crate) fn look_at_drains(&mut self, now: Duration) -> bool {
        let mut over = Vec::new();
        let Some(servers) = self.servers.and_then(|servers| self.stack.get_mut(servers)) else { return false };
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
                over.push(real);
            }
        }
        for real in &over {
            self.stack.want(self.nft, since::key(real), None);
        }
        !over.is_empty()
    }
}
