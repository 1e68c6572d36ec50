//! Real servers on their way out: their drains begin, are checked, and end.
//!
//! Invariants. A TCP real server that is not desired any more is drained before it is removed, one that the kernel still holds from
//! before a restart likewise, and its time goes on from when it began. A virtual server that is not desired any more goes at once, with
//! everything that drains behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use netstate::ipvs::{RealServer, RealServerKey, RealServers, Row, VirtualServerKey};
use reconcile::{Owner, Pass};

use super::Tables;
use crate::dataplane::drain::Ended;
use crate::dataplane::{ipvs, since};

impl Tables {
    /// Takes in virtual servers with their real servers as they are planned.
    pub(super) fn want_servers(&mut self, changes: BTreeMap<VirtualServerKey, Option<Row>>) {
        let mut wanted = BTreeMap::new();
        for (service, planned) in changes {
            let row = match planned {
                Some(planned) => Some(self.replace(service, &planned)),
                None => {
                    self.give_up(service);
                    None
                }
            };
            wanted.insert(service, row);
        }
        if let Some(servers) = self.servers_mut() {
            servers.want_each(wanted);
        }
    }

    /// Notes what is planned of a virtual server in place of what is desired; returns the row with what the kernel holds beyond it.
    fn replace(&mut self, service: VirtualServerKey, planned: &Row) -> Row {
        let desired = self.servers().and_then(|servers| servers.desired().get(&service)).cloned();
        if desired.as_ref().is_none_or(|row| row.server != planned.server) {
            self.pending.insert(ipvs::frontend(&service, &self.own));
            self.handover.stays(&service);
            self.claim(service);
        }
        let before = desired.map(|row| row.reals).unwrap_or_default();
        for (at, real) in planned.reals.iter() {
            let key = service.real(at);
            let is_back = self.end_drain(&key);
            if is_back {
                tracing::info!(server = %key, "endpoint is back, its drain ends");
            }
            if is_back || before.get(at) != Some(real) {
                self.settle_later(&key, true);
            }
        }
        for (at, _) in before.iter().filter(|(at, _)| planned.reals.get(*at).is_none()) {
            self.settle_later(&service.real(at), false);
        }
        self.beyond(service, planned)
    }

    /// Notes that a virtual server is not desired any more.
    fn give_up(&mut self, service: VirtualServerKey) {
        self.pending.insert(ipvs::frontend(&service, &self.own));
        self.handover.leaves(service);
        self.abandon_drains(service);
    }

    /// The row `planned` with the real servers that the kernel holds beyond it: those that drain, and those that may not leave yet.
    fn beyond(&mut self, service: VirtualServerKey, planned: &Row) -> Row {
        self.leaving.remove(&service);
        let held = self.observed_servers().and_then(|rows| rows.get(&service)).filter(|row| row.owner == Owner::Ours);
        match held.map(|row| row.value.reals.clone()) {
            Some(held) => self.with_those_of(service, planned, &held),
            None => planned.clone(),
        }
    }

    /// The row `wanted` with those of `held` that it has not.
    fn with_those_of(&mut self, service: VirtualServerKey, wanted: &Row, held: &RealServers) -> Row {
        let others: Vec<_> = held.iter().filter(|(at, _)| wanted.reals.get(*at).is_none()).collect();
        if others.is_empty() {
            return wanted.clone();
        }
        let mut kept: Vec<(SocketAddr, RealServer)> = Vec::with_capacity(others.len());
        for (at, real) in others {
            if self.drains.has(&service.real(at)) {
                kept.push((at, ipvs::DRAINING));
            } else {
                self.leaving.entry(service).or_default().insert(at);
                kept.push((at, real));
            }
        }
        wanted.with(wanted.reals.iter().chain(kept).collect())
    }

    /// Lists the servers if they are not known; whatever they show beyond what is desired stays until it may leave.
    pub(super) fn keep_listed(&mut self, now: Duration) -> Pass {
        let kept = self.kept;
        let Some(servers) = self.servers_mut() else { return Pass::default() };
        let pass = servers.list(now);
        let (listings, desired) = (servers.listings(), servers.desired());
        let Some(mirror) = servers.mirror().filter(|_| kept != listings) else { return pass };
        let has_more = |(key, row): &(&VirtualServerKey, &reconcile::Observed<Row>)| {
            let wanted = desired.get(*key).filter(|_| row.owner == Owner::Ours);
            wanted.is_some_and(|wanted| wanted.reals != row.value.reals)
        };
        let more: Vec<_> = mirror.iter().filter(has_more).map(|(key, row)| (*key, row.value.clone())).collect();
        self.kept = listings;
        for (key, row) in more {
            self.keep(key, &row.reals);
        }
        pass
    }

    /// Has the desired row of `service` keep what the kernel holds beyond what is planned, which is `held`, until it may leave.
    pub(super) fn keep(&mut self, service: VirtualServerKey, held: &RealServers) {
        let Some(desired) = self.servers().and_then(|servers| servers.desired().get(&service)).cloned() else { return };
        let leaving = self.leaving.remove(&service).unwrap_or_default();
        let is_planned = |at: &SocketAddr| !leaving.contains(at) && !self.drains.has(&service.real(*at));
        let planned = desired.with(desired.reals.iter().filter(|(at, _)| is_planned(at)).collect());
        let row = self.with_those_of(service, &planned, held);
        self.want_server(service, Some(row));
    }

    /// Lets those leave that the kernel holds and nobody plans: TCP real servers drain, others go.
    pub(super) fn begin_drains(&mut self, now: Duration) {
        let Some(servers) = self.servers().filter(|servers| servers.mirror().is_some()) else { return };
        let listings = servers.listings();
        for (service, reals) in std::mem::take(&mut self.leaving) {
            self.let_leave(service, &reals, now);
        }
        if std::mem::replace(&mut self.searched, listings) != listings {
            self.drains.forget_earlier();
        }
    }

    fn let_leave(&mut self, service: VirtualServerKey, reals: &BTreeSet<SocketAddr>, now: Duration) {
        let Some(row) = self.servers().and_then(|servers| servers.desired().get(&service)).cloned() else { return };
        let drains = self.drains.apply_to(service.protocol);
        for at in reals {
            let real = service.real(*at);
            if drains {
                tracing::info!(server = %real, "endpoint takes no new connections and goes when its last one has ended");
                self.begin_drain(real, now);
            }
        }
        let others = row.reals.iter().filter(|(at, _)| !reals.contains(at));
        let draining = reals.iter().filter(|_| drains).map(|at| (*at, ipvs::DRAINING));
        let after = row.with(others.chain(draining).collect());
        self.want_server(service, Some(after));
    }

    /// Begins the drain of a real server, whose weight is to be 0.
    pub(super) fn begin_drain(&mut self, real: RealServerKey, now: Duration) {
        let (key, row) = since::element(&real, self.drains.begin(real, now));
        self.stack.want(self.nft, key, Some(row));
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
        self.leaving.remove(&service);
        for real in self.drains.of(service) {
            self.end_drain(&real);
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
                over.push(real);
            }
        }
        for real in &over {
            self.stack.want(self.nft, since::key(real), None);
            self.let_go(real);
        }
        !over.is_empty()
    }

    /// Desires a real server no more. The last ones of a virtual server that retires go with it, for its address goes before them.
    fn let_go(&mut self, real: &RealServerKey) {
        let service = real.service;
        if self.handover.is_retiring(&service) && self.drains.of(service).is_empty() {
            return;
        }
        let row = self.servers().and_then(|servers| servers.desired().get(&service));
        let row = row.map(|row| row.with(row.reals.with(real.at(), None)));
        if row.is_some() {
            self.want_server(service, row);
        }
    }
}
