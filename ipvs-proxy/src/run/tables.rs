//! `Tables`: the reconcilers of all kernel tables, the order of a pass, and the drains.
//!
//! Invariants. On the way in a row comes after those that it needs: parameters, link, nft, servers, address. The address
//! comes last, so that it turns local only when a virtual server behind it stands: before that a packet to it goes where
//! it went without us, and is tried again by its sender; with a local address and no virtual server it would be refused.
//! And it comes only when the nft table stands, so that no connection is balanced without its masquerade. On the way out
//! the order is the reverse.
//!
//! A TCP real server that is not desired any more is drained and not removed; one that the kernel still holds from before a
//! restart likewise. Nothing is removed, and nothing begins to drain, before the gate is open. A virtual server that is
//! desired is ours, whoever made it, with all its real servers.

mod adopt;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kernel::nft::Change;
use kernel::nft::forward::{Denying, Forward};
use kernel::watch::Event;
use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServerKey};
use netstate::{Address, AddressKey, IfName, Protocol, SysctlKey, nft as nft_rows};
use reconcile::{Handle, Observed, Owner, Pass, Reconciler, Rows, Stack, Stage, Table};

use super::flows::Pending;
use super::targets::{AnyTarget, Flows, Servers, Targets};
use crate::dataplane::drain::{Drains, Ended};
use crate::dataplane::{Changes, ipvs, record, table as nft, vip};

/// The reconcilers; see the module's text.
pub(crate) struct Tables {
    stack: Stack,
    sysctls: Table<AnyTarget<SysctlKey, String>>,
    links: Table<AnyTarget<IfName, netstate::Link>>,
    nft: Table<AnyTarget<nft_rows::RowKey, nft_rows::Row>>,
    forward: Option<Handle<Forward>>,
    servers: Table<Box<dyn Servers + Send>>,
    addresses: Table<AnyTarget<AddressKey, Address>>,
    flows: Box<dyn Flows + Send>,
    drains: Drains,
    /// It is known which virtual servers are ours from before.
    adopted: bool,
    /// Real servers that stopped being desired since the gate was last open.
    leaving: BTreeSet<RealServerKey>,
    /// Listings of the servers after which orphans, rows of ours that nobody desires, were listed.
    searched: u64,
    pending: Pending,
    /// Virtual servers that are to be read again before the next pass.
    unread: BTreeSet<VirtualServerKey>,
    /// Why the last comparison with the kernel failed, if it did.
    audit_failure: Option<String>,
    /// Virtual servers that are not desired any more and stay in the record until they are gone.
    recorded: BTreeSet<VirtualServerKey>,
    /// Addresses that wait for a virtual server to stand.
    waiting: BTreeSet<AddressKey>,
}

/// A table that somebody else may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touched {
    /// Links or addresses.
    Links,
    /// The nft table.
    Nft,
    /// Tables of others.
    ForeignNft,
}

impl Touched {
    /// What a notification of rtnetlink is about.
    pub(crate) fn by_rtnl(event: Event) -> Vec<Self> {
        match event {
            Event::Link | Event::Address | Event::NewAddress | Event::OtherLink | Event::Resync => vec![Self::Links],
            _ => Vec::new(),
        }
    }

    /// What a notification of nftables is about.
    pub(crate) fn by_nft(change: &Change) -> Vec<Self> {
        match change {
            Change::Table { table, .. } if *table != nft::table_key() => vec![Self::ForeignNft],
            Change::Table { .. } => vec![Self::Nft],
            Change::Lost => vec![Self::Nft, Self::ForeignNft],
        }
    }
}

impl Tables {
    /// The tables behind `targets`, with no desired rows but the static ones; drains last `grace` at most.
    pub(crate) fn new(
        targets: Targets,
        grace: Duration,
        sysctls: &BTreeMap<SysctlKey, String>,
        pods: netstate::Prefix,
        link: &IfName,
    ) -> Self {
        let (key, row) = nft::table(pods);
        let masquerade = key.clone();
        let mut stack = Stack::new();
        let parameters = stack.push(Reconciler::new("sysctl", targets.sysctls));
        let links = stack.push(Reconciler::new("link", targets.links));
        let nft = stack.push(Reconciler::new("nft", targets.nft));
        let forward = targets.forward.map(|forward| stack.push(forward));
        let servers = stack.push(Reconciler::new("ipvs", targets.servers));
        let addresses = Reconciler::new("address", targets.addresses);
        let addresses = stack.push_when(addresses, move |stack| stack.holds(nft, &masquerade));
        stack.want_all(parameters, sysctls.clone());
        stack.want(links, link.clone(), Some(vip::link()));
        stack.want(nft, key, Some(row));
        Self {
            stack,
            sysctls: parameters,
            links,
            nft,
            forward,
            servers,
            addresses,
            flows: targets.flows,
            drains: Drains::new(grace),
            adopted: false,
            leaving: BTreeSet::new(),
            searched: 0,
            pending: Pending::default(),
            unread: BTreeSet::new(),
            audit_failure: None,
            recorded: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Takes in what a plan changed.
    pub(crate) fn want(&mut self, changes: Changes) {
        for (key, row) in changes.nft {
            match record::server(&key) {
                Some(server) if row.is_none() => {
                    self.recorded.insert(server);
                }
                server => {
                    server.map(|server| self.recorded.remove(&server));
                    self.stack.want(self.nft, key, row);
                }
            }
        }
        // In key order: virtual servers before their real servers.
        for (key, row) in changes.ipvs {
            match (key, row) {
                (RowKey::Virtual(service), row) => {
                    self.pending.note(service);
                    if row.is_some() {
                        self.claim(service);
                    }
                    self.stack.want(self.servers, key, row);
                }
                (RowKey::Real(real), Some(row)) => {
                    self.leaving.remove(&real);
                    if self.drains.cancel(&real) {
                        tracing::info!(server = %real, "endpoint is back, its drain ends");
                    }
                    self.settle_later(&real);
                    self.stack.want(self.servers, key, Some(row));
                }
                (RowKey::Real(real), None) => {
                    self.drains.cancel(&real);
                    self.leaving.insert(real);
                    self.settle_later(&real);
                    self.stack.want(self.servers, key, None);
                }
            }
        }
        for (key, row) in changes.addresses {
            match row {
                Some(_) => {
                    self.waiting.insert(key);
                }
                None => {
                    self.waiting.remove(&key);
                    self.stack.want(self.addresses, key, None);
                }
            }
        }
    }

    /// Takes over a virtual server that is desired, whoever made it.
    fn claim(&mut self, service: VirtualServerKey) {
        let Some(servers) = self.stack.get_mut(self.servers) else { return };
        servers.target_mut().claim(service);
        let row = servers.mirror().and_then(|mirror| mirror.get(&RowKey::Virtual(service)));
        if row.is_some_and(|row| row.owner == Owner::Foreign) {
            self.unread.insert(service);
        }
    }

    /// Flows of UDP stick to an endpoint as long as packets come; TCP connections end by themselves.
    fn settle_later(&mut self, real: &RealServerKey) {
        if real.service.protocol == Protocol::Udp {
            self.pending.note(real.service);
        }
    }

    /// The way in: creates and changes, in order of dependency.
    pub(crate) fn arrive(&mut self, now: Duration) -> Pass {
        let mut pass = self.adopt(now);
        if !self.adopted {
            return pass;
        }
        self.read_unread();
        pass += self.stack.upsert(now);
        pass += self.repair_vanished(now);
        pass += self.admit_addresses(now);
        pass
    }

    /// Lets addresses turn local behind which a virtual server stands now.
    fn admit_addresses(&mut self, now: Duration) -> Pass {
        let Some(servers) = self.stack.get(self.servers) else { return Pass::default() };
        let Some(mirror) = servers.mirror().filter(|_| !self.waiting.is_empty()) else { return Pass::default() };
        let stands = |key: &AddressKey| {
            let of = |protocol, port| RowKey::Virtual(VirtualServerKey { protocol, addr: key.addr, port });
            let at = |protocol| mirror.range(of(protocol, 0)..=of(protocol, u16::MAX));
            Protocol::ALL.into_iter().flat_map(at).any(|(row, _)| servers.desired().contains_key(row))
        };
        let ready: Vec<_> = self.waiting.iter().filter(|key| stands(key)).cloned().collect();
        for key in ready {
            self.waiting.remove(&key);
            self.stack.want(self.addresses, key, Some(Address));
        }
        let masquerades = self.stack.holds(self.nft, &nft_rows::RowKey::Table(nft::table_key()));
        let addresses = self.stack.get_mut(self.addresses).filter(|_| masquerades);
        addresses.map(|addresses| addresses.upsert(now)).unwrap_or_default()
    }

    /// The way out: drains begin, and what is not desired goes in the opposite order.
    pub(crate) fn leave(&mut self, now: Duration) -> Pass {
        self.begin_drains(now);
        let mut pass = self.stack.get_mut(self.servers).map(|servers| servers.upsert(now)).unwrap_or_default();
        pass += self.repair_vanished(now);
        pass += self.admit_addresses(now);
        pass += self.stack.get_mut(self.addresses).map(|addresses| addresses.remove(now)).unwrap_or_default();
        pass += self.stack.get_mut(self.servers).map(|servers| servers.remove(now)).unwrap_or_default();
        self.release_records();
        pass += self.stack.remove(now);
        pass
    }

    /// Deletes tracked connections that lead past the servers as they are now; belongs behind a pass.
    pub(crate) fn settle_flows(&mut self) {
        if let Some(mirror) = self.stack.mirror(self.servers) {
            self.pending.settle(mirror, self.flows.as_mut());
        }
    }

    /// Keeps the marker of a record that was found whole; returns whether it was.
    pub(crate) fn keep_marker(&mut self) -> bool {
        let found = self.observed_nft().and_then(|rows| rows.get(&record::marker_key())).map(|row| row.value.clone());
        let is_whole = found.is_some();
        self.stack.want(self.nft, record::marker_key(), found);
        is_whole
    }

    /// Marks the record as whole, once whatever was adopted is in order: desired, or gone. Returns whether it is.
    pub(crate) fn mark_whole(&mut self, since: u64) -> bool {
        let Some(servers) = self.stack.get(self.servers) else { return false };
        let in_order = |(key, row): (&RowKey, &Observed<Row>)| {
            row.owner == Owner::Foreign || matches!(key, RowKey::Real(_)) || servers.desired().contains_key(key)
        };
        let recorded = self.stack.get(self.nft).is_some_and(|nft| nft.status().is_done());
        let is_whole = recorded && servers.mirror().is_some_and(|rows| rows.iter().all(in_order));
        if is_whole {
            let (key, row) = record::marker(since);
            self.stack.want(self.nft, key, Some(row));
        }
        is_whole
    }

    /// True when the kernel's record and servers have been read.
    #[must_use]
    pub(crate) fn is_read(&self) -> bool {
        self.observed_nft().is_some() && self.observed_servers().is_some()
    }

    /// Turns removals of TCP real servers into drains.
    fn begin_drains(&mut self, now: Duration) {
        let Some(servers) = self.stack.get(self.servers) else { return };
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
            self.stack.want(self.servers, RowKey::Real(real), Some(Row::Real(ipvs::DRAINING)));
        }
    }

    /// Counts the connections of drains that are due and lets go of those that have ended. Returns whether one has.
    pub(crate) fn look_at_drains(&mut self, now: Duration) -> bool {
        let mut any = false;
        let Some(servers) = self.stack.get_mut(self.servers) else { return any };
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

    /// Forgets what the kernel held in a table that somebody else changed.
    pub(crate) fn touched(&mut self, touched: Touched) {
        match touched {
            Touched::Links => {
                self.stack.invalidate(self.links);
                self.stack.invalidate(self.addresses);
            }
            Touched::Nft => self.stack.invalidate(self.nft),
            Touched::ForeignNft => {
                if let Some(forward) = self.forward {
                    self.stack.invalidate(forward);
                }
            }
        }
    }

    /// When something is due again: a failed row, a look at a drain.
    #[must_use]
    pub(crate) fn next(&self) -> Option<Duration> {
        self.stack.next_try().into_iter().chain(self.drains.next()).min()
    }

    /// The tables in order of dependency.
    #[must_use]
    pub(crate) const fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Foreign chains that drop what is forwarded.
    pub(crate) fn denying(&self) -> &[Denying] {
        self.forward.and_then(|forward| self.stack.get(forward)).map_or(&[], Forward::denying)
    }

    /// The drains.
    #[must_use]
    pub(crate) const fn drains(&self) -> &Drains {
        &self.drains
    }

    /// The servers as the kernel held them when they were last listed or changed.
    #[must_use]
    pub(crate) fn observed_servers(&self) -> Option<&Rows<RowKey, Row>> {
        self.stack.mirror(self.servers)
    }

    /// How many virtual servers of ours the kernel held when they were last listed, and how many are desired.
    #[must_use]
    pub(crate) fn virtual_servers(&self) -> (usize, usize) {
        let Some(servers) = self.stack.get(self.servers) else { return (0, 0) };
        let is_virtual = |key: &RowKey| matches!(key, RowKey::Virtual(_));
        let ours = |(key, row): (&RowKey, &Observed<Row>)| is_virtual(key) && row.owner == Owner::Ours;
        let held = servers.mirror().map_or(0, |mirror| mirror.iter().filter(|row| ours(*row)).count());
        (held, servers.desired().keys().filter(|key| is_virtual(key)).count())
    }

    /// The nft rows likewise.
    #[must_use]
    pub(crate) fn observed_nft(&self) -> Option<&Rows<nft_rows::RowKey, nft_rows::Row>> {
        self.stack.mirror(self.nft)
    }
}
