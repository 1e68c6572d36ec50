//! Frontends whose tracked connections may lead past what is served now: noting them, and handing them over.
//!
//! Invariant: a frontend is handed over behind the pass that put its rows in place, and stays noted until then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netstate::ipvs::{RealServerKey, Row, VirtualServerKey};
use netstate::nft::{Row as NftRow, RowKey as NftKey};
use netstate::{IfName, Protocol};
use reconcile::{Pass, Reconciler, Target};

use super::super::flows::{Check, Locals, Masqueraded};
use super::Tables;
use crate::dataplane::{ipvs, nftables, vip};
use crate::plan::FrontendKey;
use crate::plan::frontend::Place;

impl Tables {
    /// Takes in the node's own addresses.
    pub(crate) fn set_own(&mut self, own: BTreeSet<IpAddr>) {
        self.own = own;
    }

    /// Notes a frontend whose nft row `key` changes; endpoints that come with it are about to serve. Reading its connections walks the kernel's
    /// whole table, 9 ms on a processor for the empty one of a node with 16 GiB, so nobody does where none can be stale.
    pub(super) fn expect_endpoints(&mut self, frontend: &FrontendKey, key: &NftKey, row: Option<&NftRow>) {
        let before = self.stack.get(self.nft).and_then(|nft| nft.desired().get(key));
        if frontend.protocol == Protocol::Tcp && nftables::spares_tcp(key, before, row) {
            return;
        }
        let known: BTreeSet<SocketAddr> = before.into_iter().flat_map(nftables::listed).collect();
        let coming = row.into_iter().flat_map(nftables::listed).filter(|endpoint| !known.contains(endpoint));
        for endpoint in coming {
            self.flows.welcome(frontend, endpoint);
        }
        self.pending.insert(*frontend);
    }

    /// Notes the frontend of a real server that is about to serve, or to leave. Flows of UDP stick to an endpoint as long as packets
    /// come; TCP connections end by themselves.
    pub(super) fn settle_later(&mut self, real: &RealServerKey, serves: bool) {
        let frontend = ipvs::frontend(&real.service, &self.own);
        if serves {
            self.flows.welcome(&frontend, real.at());
        }
        if real.service.protocol == Protocol::Udp {
            self.pending.insert(frontend);
        }
    }

    /// Lists the nft rows when somebody else has changed them, and notes the frontends whose rows are not there: connections that began
    /// meanwhile were led past them.
    pub(super) fn note_undone(&mut self, now: Duration) -> Pass {
        let Some(nft) = self.stack.get_mut(self.nft) else { return Pass::default() };
        let pass = nft.list(now);
        if std::mem::replace(&mut self.noted, nft.listings()) == nft.listings() {
            return pass;
        }
        self.hold_chosen();
        let whole = self.footing.has_tables(&self.stack);
        let Some(nft) = self.stack.get(self.nft) else { return pass };
        if nft.mirror().is_none() {
            return pass;
        }
        let undone = nft.desired().keys().filter(|key| !whole || !nft.holds(key));
        self.pending.extend(undone.filter_map(nftables::frontend));
        pass
    }

    /// Hands over what was noted and is in place; belongs behind a pass.
    pub(crate) fn settle_flows(
        &mut self,
        locals: impl FnOnce() -> Locals,
        masqueraded: impl Fn(&FrontendKey) -> Masqueraded,
    ) {
        if self.pending.is_empty() || !self.footing.has_tables(&self.stack) {
            return;
        }
        let noted = std::mem::take(&mut self.pending);
        let (ready, later): (Vec<_>, Vec<_>) = noted.into_iter().partition(|frontend| self.is_in_place(frontend));
        let check = |frontend: &FrontendKey| self.answering(frontend, masqueraded(frontend));
        let checks: BTreeMap<_, _> = ready.iter().filter_map(|frontend| Some((*frontend, check(frontend)?))).collect();
        self.pending.extend(later);
        // Before the servers are listed nobody knows who answers.
        self.pending.extend(ready.into_iter().filter(|frontend| !checks.contains_key(frontend)));
        if !checks.is_empty() {
            self.flows.put(checks, locals());
        }
    }

    /// False while a row that a frontend needs is desired and not there.
    pub(super) fn is_in_place(&self, frontend: &FrontendKey) -> bool {
        let row: NftKey = nftables::entry(frontend);
        let stands = self.stack.get(self.nft).is_some_and(|nft| !nft.desired().contains_key(&row) || nft.holds(&row));
        let Some(servers) = self.servers() else { return stands };
        let is_as = |key: &VirtualServerKey, row: &Row| {
            servers.mirror().and_then(|mirror| mirror.get(key)).is_some_and(|held| held.value.server == row.server)
        };
        let mut keys = ipvs::servers(frontend, &self.own);
        stands && keys.all(|key| servers.desired().get(&key).is_none_or(|row| is_as(&key, row)))
    }

    /// True when the rows of a frontend are as they are desired, endpoints and its local address included.
    pub(in crate::run) fn is_settled(&self, frontend: &FrontendKey) -> bool {
        let Some(nft) = self.stack.get(self.nft) else { return false };
        let mut rows = nftables::entries(frontend).into_iter().chain([nftables::list(frontend)]);
        let mut servers = ipvs::servers(frontend, &self.own);
        rows.all(|row| is_settled(nft, &row))
            && nftables::keepers(nft.desired(), frontend).all(|row| nft.holds(row))
            && self.servers().is_none_or(|table| servers.all(|key| is_settled(table, &key)))
            && self.is_led_here(frontend)
    }

    /// False while packets to a frontend's address would leave this node, where it is to be local.
    fn is_led_here(&self, frontend: &FrontendKey) -> bool {
        let Place::Address(addr) = frontend.place else { return true };
        let key = vip::address(&IfName::literal(vip::LINK_NAME), addr);
        let addresses = self.addresses.and_then(|addresses| self.stack.get(addresses));
        let stands = addresses.is_none_or(|table| !table.desired().contains_key(&key) || table.holds(&key));
        stands && !self.waiting.contains(&key) && self.is_local(addr)
    }

    /// True for an endpoint with the address and port of a frontend: a process of this node.
    fn is_at(&self, frontend: &FrontendKey, endpoint: &SocketAddr) -> bool {
        let is_place = match frontend.place {
            Place::Address(addr) => endpoint.ip() == addr,
            Place::AnyNode(_) => self.own.contains(&endpoint.ip()),
        };
        is_place && endpoint.port() == frontend.port
    }

    /// Who answers at a frontend by the rows of either path.
    fn answering(&self, frontend: &FrontendKey, masqueraded: Masqueraded) -> Option<Check> {
        let nft = self.stack.mirror(self.nft)?;
        let mut answering = nftables::endpoints(nft, frontend);
        // While IPVS rests, others' virtual servers may stand there.
        let mut balanced = self.resting.is_some();
        if let Some(servers) = self.servers {
            let rows = self.stack.mirror(servers)?;
            for server in ipvs::servers(frontend, &self.own) {
                balanced |= rows.contains_key(&server);
                answering.extend(ipvs::serving(rows, server));
            }
        }
        if frontend.protocol == Protocol::Tcp {
            // A connection of TCP ends by itself, whoever answers it: it is stale when nobody was chosen, which does not show where the
            // endpoint has the frontend's own address and port.
            answering.retain(|endpoint| self.is_at(frontend, endpoint));
        }
        Some(Check { answering, masqueraded, balanced })
    }
}

/// True when a table has been listed and has a row as it is desired, or does not have it.
fn is_settled<T: Target>(table: &Reconciler<T>, key: &T::Key) -> bool {
    if table.desired().contains_key(key) {
        return table.holds(key);
    }
    table.mirror().is_some_and(|mirror| !mirror.contains_key(key))
}
