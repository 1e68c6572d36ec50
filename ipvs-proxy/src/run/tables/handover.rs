//! From one data path to the other: what the old one carries goes on, and no new connection falls between the two.
//!
//! To nftables, the nft rows come first and take all new connections, for they stand before IPVS in the path of packets. The virtual
//! servers of frontends that nftables serves then *retire*: they stay, with weight 0, their address and their record, until their
//! connections have ended or the grace period has. To IPVS, the element by which nftables chooses is *held* as it is until the virtual
//! server, its real servers and its address stand; connections that it has chosen for go on by connection tracking.
//!
//! Invariant: both follow from the rows that are desired and those that the kernel holds, never from what was before: a change of mode
//! that was interrupted goes on with the next start, in either mode.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netstate::ipvs::{RealServers, VirtualServerKey};
use netstate::{Address, IfName, nft as nft_rows};
use reconcile::{Owner, Pass, Stage};

use super::Tables;
use crate::dataplane::ipvs;
use crate::dataplane::{Mode, nftables, record, vip};
use crate::plan::FrontendKey;

/// What is between the two data paths.
#[derive(Debug)]
pub(super) struct Handover {
    mode: Mode,
    link: IfName,
    /// Virtual servers that stay until their connections have ended; those that drain already have true.
    retiring: BTreeMap<VirtualServerKey, bool>,
    /// Rows by which nftables chooses still, each with its frontend and what is desired in its place.
    held: BTreeMap<nft_rows::RowKey, (FrontendKey, Option<nft_rows::Row>)>,
    /// Listings of the servers after which those that nobody desires were searched.
    searched: u64,
    /// Virtual servers that stopped being desired.
    leaving: BTreeSet<VirtualServerKey>,
}

impl Handover {
    /// Nothing is between the paths.
    pub(super) const fn new(mode: Mode, link: IfName) -> Self {
        Self { mode, link, retiring: BTreeMap::new(), held: BTreeMap::new(), searched: 0, leaving: BTreeSet::new() }
    }

    /// The link that virtual addresses are on.
    pub(super) const fn link(&self) -> &IfName {
        &self.link
    }

    /// True while this virtual server stays until its connections have ended.
    pub(super) fn is_retiring(&self, server: &VirtualServerKey) -> bool {
        self.retiring.contains_key(server)
    }

    /// Notes that a virtual server is not desired any more.
    pub(super) fn leaves(&mut self, server: VirtualServerKey) {
        self.leaving.insert(server);
    }

    /// Takes back what was noted of a virtual server that is desired.
    pub(super) fn stays(&mut self, server: &VirtualServerKey) {
        self.leaving.remove(server);
        self.retiring.remove(server);
    }
}

impl Tables {
    /// Lets virtual servers stay for a while whose frontends nftables serves now, and those go that have no connections left.
    pub(super) fn retire_servers(&mut self, now: Duration) {
        if self.handover.mode != Mode::Nftables || self.servers.is_none() {
            return;
        }
        for server in self.undesired_servers() {
            self.retire(server);
        }
        for (server, drains) in self.handover.retiring.clone() {
            let frontend = ipvs::frontend(&server, &self.own);
            if !self.is_served_by_nft(&frontend) || drains && self.drains.of(server).is_empty() {
                self.dismiss(server);
            } else if !drains && self.is_in_place(&frontend) {
                self.drain_all(server, now);
            }
        }
        let is_empty = self.handover.retiring.is_empty() && self.observed_servers().is_some();
        let addresses = self.addresses.and_then(|addresses| self.stack.mirror(addresses));
        let is_shared = addresses.is_some_and(|rows| rows.values().any(|row| row.owner == Owner::Foreign));
        if let Some(links) = self.links.filter(|_| is_empty && !is_shared) {
            self.stack.want(links, self.handover.link.clone(), None);
        }
    }

    /// True while virtual servers stay that nftables has taken over from.
    pub(super) fn is_retiring(&self) -> bool {
        !self.handover.retiring.is_empty()
    }

    /// Virtual servers of ours that nobody desires, each once.
    fn undesired_servers(&mut self) -> BTreeSet<VirtualServerKey> {
        let mut found = std::mem::take(&mut self.handover.leaving);
        let Some(servers) = self.servers() else { return found };
        let Some(mirror) = servers.mirror() else { return found };
        let is_ours = |server: &VirtualServerKey| {
            mirror.get(server).is_some_and(|row| row.owner == Owner::Ours) && !servers.desired().contains_key(server)
        };
        let listings = servers.listings();
        if self.handover.searched != listings {
            found.extend(mirror.keys());
        }
        found.retain(is_ours);
        self.handover.searched = listings;
        found
    }

    /// True when nftables leads, or refuses, what comes to a frontend.
    fn is_served_by_nft(&self, frontend: &FrontendKey) -> bool {
        let rows = nftables::entries(frontend);
        self.stack.get(self.nft).is_some_and(|nft| rows.iter().any(|row| nft.desired().contains_key(row)))
    }

    /// Keeps a virtual server, if it has anything to keep, as it stands.
    fn retire(&mut self, server: VirtualServerKey) {
        let Some(mirror) = self.observed_servers() else { return };
        let Some(row) = mirror.get(&server).map(|row| row.value.clone()) else { return };
        let is_served = self.is_served_by_nft(&ipvs::frontend(&server, &self.own));
        if row.reals.is_empty() || !self.drains.are_given() || !is_served {
            return;
        }
        tracing::info!(%server, "virtual server takes no new connections and goes when its last one has ended");
        self.want_server(server, Some(row));
        let element = record::key(&server);
        let recorded = self.observed_nft().and_then(|rows| rows.get(&element)).map(|row| row.value.clone());
        if recorded.is_some() {
            self.stack.want(self.nft, element, recorded);
        }
        self.recorded.insert(server);
        let address = vip::address(&self.handover.link, server.addr);
        let is_local =
            self.addresses.and_then(|table| self.stack.mirror(table)).is_some_and(|rows| rows.contains_key(&address));
        if is_local {
            self.want_address(address, Some(Address));
        }
        self.handover.retiring.insert(server, false);
    }

    /// Begins the drains of everything behind a virtual server that retires, whatever its protocol.
    fn drain_all(&mut self, server: VirtualServerKey, now: Duration) {
        let Some(row) = self.observed_servers().and_then(|mirror| mirror.get(&server)) else { return };
        let row = row.value.clone();
        for (at, _) in row.reals.iter() {
            self.begin_drain(server.real(at), now);
        }
        let reals: RealServers = row.reals.iter().map(|(at, _)| (at, ipvs::DRAINING)).collect();
        self.want_server(server, Some(row.with(reals)));
        self.handover.retiring.insert(server, true);
    }

    /// Lets a virtual server go, with its address when nobody else needs that.
    fn dismiss(&mut self, server: VirtualServerKey) {
        self.abandon_drains(server);
        self.want_server(server, None);
        self.handover.retiring.remove(&server);
        if !self.handover.retiring.keys().any(|other| other.addr == server.addr) {
            self.want_address(vip::address(&self.handover.link, server.addr), None);
        }
        // What it carried without an end begins anew.
        self.pending.insert(ipvs::frontend(&server, &self.own));
    }

    /// Holds the elements by which nftables chooses and virtual servers shall, behind a listing.
    pub(super) fn hold_chosen(&mut self) {
        if self.handover.mode != Mode::Ipvs || self.servers.is_none() {
            return;
        }
        let Some(mirror) = self.stack.mirror(self.nft) else { return };
        let entries: Vec<_> = mirror.keys().filter(|key| nftables::is_frontend(key)).cloned().collect();
        for key in entries {
            self.hold(&key);
        }
    }

    /// Holds an element as the kernel has it, with the chain of its own that it leads to and the endpoints, if nftables chooses by it and
    /// the virtual servers that shall do so do not stand.
    pub(super) fn hold(&mut self, key: &nft_rows::RowKey) {
        let Some(frontend) = nftables::frontend(key) else { return };
        let Some((nft, mirror)) = self.stack.get(self.nft).and_then(|nft| Some((nft, nft.mirror()?))) else { return };
        let Some(observed) = mirror.get(key).map(|row| &row.value) else { return };
        let chooses = |row: &nft_rows::Row| nftables::chooses(mirror, key, row);
        let is_handed =
            chooses(observed) && nft.desired().get(key).is_none_or(|row| *row != *observed || !chooses(row));
        if !is_handed || !self.is_balanced(&frontend) || self.carries(&frontend) {
            return;
        }
        let rows = [Some(key.clone()), nftables::own_chain(key, observed), Some(nftables::list(&frontend))];
        let rows = rows.into_iter().flatten();
        let rows: Vec<_> = rows
            .filter_map(|row| Some((row.clone(), mirror.get(&row)?.value.clone(), nft.desired().get(&row).cloned())))
            .collect();
        for (row, observed, wanted) in rows {
            self.handover.held.insert(row.clone(), (frontend, wanted));
            self.stack.want(self.nft, row, Some(observed));
        }
    }

    /// Takes in what is desired in place of a held row; returns whether it is held.
    pub(super) fn replaces_held(&mut self, key: &nft_rows::RowKey, row: Option<&nft_rows::Row>) -> bool {
        let held = self.handover.held.get_mut(key);
        held.is_some_and(|(_, wanted)| {
            *wanted = row.cloned();
            true
        })
    }

    /// True when virtual servers shall answer at a frontend.
    fn is_balanced(&self, frontend: &FrontendKey) -> bool {
        self.desired_at(frontend).next().is_some()
    }

    fn desired_at<'a>(&'a self, frontend: &FrontendKey) -> impl Iterator<Item = VirtualServerKey> + 'a {
        let servers = ipvs::servers(frontend, &self.own).collect::<Vec<_>>().into_iter();
        servers.filter(|server| self.servers().is_some_and(|servers| servers.desired().contains_key(server)))
    }

    /// True when the virtual servers of a frontend stand, each with its real servers, and its address, if it is to be, is local.
    fn carries(&self, frontend: &FrontendKey) -> bool {
        self.desired_at(frontend).all(|server| self.stands(&server))
    }

    fn stands(&self, server: &VirtualServerKey) -> bool {
        let Some(servers) = self.servers() else { return false };
        let stands = servers.holds(server);
        let address = vip::address(&self.handover.link, server.addr);
        let has_address = self.addresses.is_some_and(|addresses| self.stack.holds(addresses, &address));
        let is_wanted = self.waiting.contains(&address)
            || self
                .addresses
                .and_then(|table| self.stack.get(table))
                .is_some_and(|table| table.desired().contains_key(&address));
        stands && (has_address || !is_wanted) && self.is_local(server.addr)
    }

    /// Lets elements go that virtual servers have taken over from, and those of frontends that are gone.
    pub(super) fn release_held(&mut self, now: Duration) -> Pass {
        let done: Vec<_> = self.handover.held.iter().filter(|(_, (frontend, _))| self.carries(frontend)).collect();
        let done: Vec<_> = done.into_iter().map(|(key, _)| key.clone()).collect();
        if done.is_empty() {
            return Pass::default();
        }
        for key in done {
            let Some((frontend, wanted)) = self.handover.held.remove(&key) else { continue };
            self.pending.insert(frontend);
            self.stack.want(self.nft, key, wanted);
        }
        self.stack.get_mut(self.nft).map(|nft| nft.upsert(now)).unwrap_or_default()
    }

    /// Removes what nobody desires. What held elements lead to stays with them.
    pub(super) fn remove_undesired(&mut self, now: Duration) -> Pass {
        let is_held = !self.handover.held.is_empty();
        self.stack.rest(self.nft, is_held);
        let pass = self.stack.remove(now);
        self.stack.rest(self.nft, false);
        pass
    }
}
