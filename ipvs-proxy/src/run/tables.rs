//! `Tables`: the reconcilers of all kernel tables, the order of a pass, and the drains. Where the kernel has no IPVS there are no
//! link, servers and addresses; where nftables carries everything, and nothing of ours is in IPVS, these rest.
//!
//! Invariants. On the way in a row comes after those that it needs: parameters, link, nft, servers, address. The address
//! comes last, so that it turns local only when a virtual server behind it stands: before that a packet to it goes where
//! it went without us, and is tried again by its sender; with a local address and no virtual server it would be refused.
//! And it comes only when the nft table stands and IPVS has its connections tracked, so that none is balanced without its masquerade.
//! A route that makes a whole network local comes in the same place.
//! On the way out the order is the reverse.
//!
//! A TCP real server that is not desired any more is drained and not removed; one that the kernel still holds from before a
//! restart likewise. Nothing is removed, and nothing begins to drain, before the gate is open. A virtual server that is
//! desired is ours, whoever made it, with all its real servers.

mod adopt;
mod draining;
mod handover;
mod local;
mod made;
mod repair;
mod routes;
mod settling;
mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use daemon::worker::PassLog;
use kernel::nft::forward::{Denying, Forward};
use netstate::ipvs::{Row, VirtualServerKey};
use netstate::{Address, AddressKey, IfName, IpFamily, Protocol, SysctlKey, nft as nft_rows};
use reconcile::{Audited, Handle, Observed, Owner, Pass, Reconciler, Rows, Stack, Stage, Table};

pub(crate) use self::touched::Touched;

use self::handover::Handover;
use self::local::Local;
use self::made::{Footing, OfIpvs};

use super::targets::{AnyTarget, Servers, Sweeper, VirtualAddresses};
use crate::dataplane::drain::Drains;
use crate::dataplane::{Changes, ipvs, nftables, record};
use crate::plan::FrontendKey;

/// The reconcilers; see the module's text.
pub(crate) struct Tables {
    stack: Stack,
    sysctls: Table<AnyTarget<SysctlKey, String>>,
    links: Option<Table<AnyTarget<IfName, netstate::Link>>>,
    nft: Table<AnyTarget<nft_rows::RowKey, nft_rows::Row>>,
    forward: Option<Handle<Forward>>,
    servers: Option<Table<Box<dyn Servers + Send>>>,
    addresses: Option<Table<Box<dyn VirtualAddresses + Send>>>,
    /// The three above, while they rest.
    resting: Option<OfIpvs>,
    /// What must stand before an address turns local.
    footing: Footing,
    /// The families that are served.
    families: Vec<IpFamily>,
    /// The node's own addresses: virtual servers there are node ports'.
    own: BTreeSet<IpAddr>,
    flows: Box<dyn Sweeper + Send>,
    handover: Handover,
    drains: Drains,
    /// It is known which virtual servers are ours from before.
    adopted: bool,
    /// Real servers that the kernel holds and nobody plans: they are desired as they are until they may leave.
    leaving: BTreeMap<VirtualServerKey, BTreeSet<SocketAddr>>,
    /// Listings of the servers after which real servers that nobody plans began to leave.
    searched: u64,
    /// Listings of the servers after which those were kept.
    kept: u64,
    /// Listings of the nft rows after which those that are not there were noted.
    noted: u64,
    /// Frontends whose tracked connections may lead past what is served now.
    pending: BTreeSet<FrontendKey>,
    /// Virtual servers that are to be read again before the next pass.
    unread: BTreeSet<VirtualServerKey>,
    /// Why the last comparison with the kernel failed, if it did.
    audit_failure: Option<String>,
    /// Virtual servers that are not desired any more and stay in the record until they are gone.
    recorded: BTreeSet<VirtualServerKey>,
    /// Addresses that wait for a virtual server to stand.
    waiting: BTreeSet<AddressKey>,
    /// Routes of whole networks in place of addresses.
    local: Local,
    /// Local routes of addresses.
    routes: routes::Compared,
}

impl Tables {
    /// Takes in what a plan changed.
    pub(crate) fn want(&mut self, changes: Changes) {
        let entries = self.want_nft(changes.nft);
        self.want_servers(changes.ipvs);
        for (key, row) in changes.addresses {
            match row {
                Some(_) => {
                    self.waiting.insert(key);
                }
                None => {
                    self.waiting.remove(&key);
                    self.want_address(key, None);
                }
            }
        }
        for (key, route) in changes.routes {
            self.want_route(key, route);
        }
        entries.iter().for_each(|key| self.hold(key));
    }

    /// Takes in rows of the nft tables; returns those that say that a frontend is served.
    fn want_nft(&mut self, mut changes: BTreeMap<nft_rows::RowKey, Option<nft_rows::Row>>) -> Vec<nft_rows::RowKey> {
        let mut entries = Vec::new();
        changes.retain(|key, row| {
            if let Some(frontend) = nftables::frontend(key) {
                self.expect_endpoints(&frontend, key, row.as_ref());
            }
            if self.replaces_held(key, row.as_ref()) {
                return false;
            }
            if nftables::is_frontend(key) {
                entries.push(key.clone());
            }
            let Some(server) = record::server(key) else { return true };
            if row.is_none() {
                self.recorded.insert(server);
                return false;
            }
            self.recorded.remove(&server);
            true
        });
        if let Some(nft) = self.stack.get_mut(self.nft) {
            nft.want_each(changes);
        }
        entries
    }

    fn want_server(&mut self, key: VirtualServerKey, row: Option<Row>) {
        if let Some(servers) = self.servers {
            self.stack.want(servers, key, row);
        }
    }

    fn want_address(&mut self, key: AddressKey, row: Option<Address>) {
        if let Some(addresses) = self.addresses {
            self.stack.want(addresses, key, row);
        }
    }

    /// The servers, where they do not rest.
    fn servers(&self) -> Option<&Reconciler<Box<dyn Servers + Send>>> {
        self.stack.get(self.servers?)
    }

    fn servers_mut(&mut self) -> Option<&mut Reconciler<Box<dyn Servers + Send>>> {
        self.stack.get_mut(self.servers?)
    }

    /// False when the kernel says that no virtual server can have this scheduler.
    pub(crate) fn may_have_scheduler(&mut self, name: &str) -> bool {
        let Some(servers) = self.servers_mut() else { return true };
        servers.target_mut().has_scheduler(name).unwrap_or_else(|error| {
            tracing::warn!(error = %kernel::Chain(&error), name, "whether the kernel has the scheduler cannot be asked");
            true
        })
    }

    fn addresses_mut(&mut self) -> Option<&mut Reconciler<Box<dyn VirtualAddresses + Send>>> {
        self.stack.get_mut(self.addresses?)
    }

    /// Takes over a virtual server that is desired, whoever made it.
    fn claim(&mut self, service: VirtualServerKey) {
        let Some(servers) = self.servers_mut() else { return };
        servers.target_mut().claim(service);
        let row = servers.mirror().and_then(|mirror| mirror.get(&service));
        if row.is_some_and(|row| row.owner == Owner::Foreign) {
            self.unread.insert(service);
        }
    }

    /// The way in: creates and changes, in order of dependency.
    pub(crate) fn arrive(&mut self, now: Duration) -> Pass {
        self.stack.keep_written(PassLog::wants_rows());
        let mut pass = self.adopt(now);
        if !self.adopted {
            return pass;
        }
        self.read_unread();
        self.repair_unrouted();
        pass += self.note_undone(now);
        pass += self.keep_listed(now);
        pass += self.stack.upsert(now);
        pass += self.repair_vanished(now);
        pass += self.admit_addresses(now);
        pass += self.admit_routes(now);
        pass += self.release_held(now);
        pass
    }

    /// Lets addresses turn local behind which a virtual server stands now.
    fn admit_addresses(&mut self, now: Duration) -> Pass {
        let Some(servers) = self.servers() else { return Pass::default() };
        let Some(mirror) = servers.mirror().filter(|_| !self.waiting.is_empty()) else { return Pass::default() };
        let stands = |key: &AddressKey| {
            let of = |protocol, port| VirtualServerKey { protocol, addr: key.addr, port };
            let at = |protocol| mirror.range(of(protocol, 0)..=of(protocol, u16::MAX));
            let is_ours = |(row, found): (&VirtualServerKey, &Observed<Row>)| {
                found.owner == Owner::Ours && servers.desired().contains_key(row)
            };
            Protocol::ALL.into_iter().flat_map(at).any(is_ours)
        };
        let ready: Vec<_> = self.waiting.iter().filter(|key| stands(key)).cloned().collect();
        for key in ready {
            self.waiting.remove(&key);
            self.want_address(key, Some(Address));
        }
        let stands = self.footing.holds(&self.stack);
        let addresses = self.addresses_mut().filter(|_| stands);
        addresses.map(|addresses| addresses.upsert(now)).unwrap_or_default()
    }

    /// The way out: drains begin, and what is not desired goes in the opposite order.
    pub(crate) fn leave(&mut self, now: Duration) -> Pass {
        self.retire_servers(now);
        self.begin_drains(now);
        // Since when a real server drains is written before its weight.
        let mut pass = self.stack.get_mut(self.nft).map(|nft| nft.upsert(now)).unwrap_or_default();
        pass += self.servers_mut().map(|servers| servers.upsert(now)).unwrap_or_default();
        pass += self.repair_vanished(now);
        pass += self.admit_addresses(now);
        let may_go = self.local_stands();
        let addresses = self.addresses_mut().filter(|_| may_go);
        pass += addresses.map(|addresses| addresses.remove(now)).unwrap_or_default();
        pass += self.servers_mut().map(|servers| servers.remove(now)).unwrap_or_default();
        self.release_records();
        pass += self.release_held(now);
        pass += self.remove_unneeded(now);
        pass
    }

    /// True when the kernel's record and servers have been read.
    #[must_use]
    pub(crate) fn is_read(&self) -> bool {
        self.observed_nft().is_some() && (self.servers.is_none() || self.observed_servers().is_some())
    }

    /// Forgets what the kernel held in a table that somebody else changed.
    pub(crate) fn touched(&mut self, touched: Touched) {
        match touched {
            Touched::Links => {
                self.links.into_iter().for_each(|links| self.stack.invalidate(links));
                self.addresses.into_iter().for_each(|addresses| self.stack.invalidate(addresses));
            }
            Touched::Routes => self.invalidate_routes(),
            Touched::Nft => {
                let nft = self.stack.get_mut(self.nft);
                if nft.is_some_and(|nft| !nft.target_mut().is_unchanged()) {
                    self.stack.invalidate(self.nft);
                }
            }
            Touched::ForeignNft => {
                if let Some(forward) = self.forward {
                    self.stack.invalidate(forward);
                }
            }
        }
    }

    /// Begins an audit: every table is compared with the kernel, one after the other.
    pub(crate) const fn begin_audit(&mut self) {
        self.stack.begin_audit();
    }

    /// Compares the next part; `None` when everything has been compared.
    pub(crate) fn audit_part(&mut self) -> Option<Audited> {
        let part = self.stack.audit();
        if part.is_none() {
            // They are listed behind the addresses, and what that takes is the audit's.
            self.repair_unrouted();
        }
        part
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
    pub(crate) fn observed_servers(&self) -> Option<&Rows<VirtualServerKey, Row>> {
        self.stack.mirror(self.servers?)
    }

    /// How many frontends of ours the kernel held when they were last listed, and how many are desired, by either path.
    #[must_use]
    pub(crate) fn frontends(&self) -> (usize, usize) {
        let servers = self.servers();
        let is_ours = |(_, row): &(&VirtualServerKey, &Observed<Row>)| row.owner == Owner::Ours;
        let held = servers.and_then(Reconciler::mirror).into_iter().flatten().filter(is_ours).map(|(key, _)| key);
        let desired = servers.into_iter().flat_map(|servers| servers.desired().keys());
        let nft = self.stack.get(self.nft);
        let listed = nft.and_then(Reconciler::mirror).into_iter().flat_map(|rows| rows.keys());
        let wanted = nft.into_iter().flat_map(|nft| nft.desired().keys());
        (count(held, listed, &self.own), count(desired, wanted, &self.own))
    }

    /// True while the kernel is known to hold fewer rows than so many.
    #[must_use]
    pub(crate) fn hold_few(&self, many: usize) -> bool {
        let held = self.observed_nft().map_or(0, BTreeMap::len) + self.observed_servers().map_or(0, BTreeMap::len);
        held < many
    }

    /// The nft rows likewise.
    #[must_use]
    pub(crate) fn observed_nft(&self) -> Option<&Rows<nft_rows::RowKey, nft_rows::Row>> {
        self.stack.mirror(self.nft)
    }
}

/// Frontends among rows of either path.
fn count<'a>(
    servers: impl Iterator<Item = &'a VirtualServerKey>,
    nft: impl Iterator<Item = &'a nft_rows::RowKey>,
    own: &BTreeSet<IpAddr>,
) -> usize {
    let balanced = servers.map(|key| ipvs::frontend(key, own));
    let chosen = nft.filter(|key| nftables::is_frontend(key)).filter_map(nftables::frontend);
    balanced.chain(chosen).collect::<BTreeSet<_>>().len()
}
