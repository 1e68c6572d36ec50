//! The tables as they are made, before anything is known of the kernel.
//!
//! Invariant: which tables there are, and their order, does not depend on who carries connections. The tables of IPVS rest while nothing
//! of ours is there, so that what others have on a link of that name stays theirs.

use std::collections::{BTreeMap, BTreeSet};

use netstate::{Address, AddressKey, IfName, Link, SysctlKey};
use reconcile::{Reconciler, Stack, Table};

use super::Tables;
use crate::dataplane::drain::Drains;
use crate::dataplane::{DataPlane, Mode, vip};
use crate::run::flows::Pending;
use crate::run::targets::{AnyTarget, Balance, Servers, Targets};

/// The places of the tables of IPVS.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfIpvs {
    links: Table<AnyTarget<IfName, Link>>,
    servers: Table<Box<dyn Servers + Send>>,
    addresses: Table<AnyTarget<AddressKey, Address>>,
}

impl Tables {
    /// The tables behind `targets`, with no desired rows but the static ones; `drains` are none yet.
    pub(crate) fn new(
        targets: Targets,
        drains: Drains,
        sysctls: &BTreeMap<SysctlKey, String>,
        plane: &DataPlane,
    ) -> Self {
        let mut stack = Stack::new();
        let parameters = stack.push(Reconciler::new("sysctl", targets.sysctls));
        let (links, servers, addresses) = match targets.balance {
            Some(Balance { links, servers, addresses }) => (Some(links), Some(servers), Some(addresses)),
            None => (None, None, None),
        };
        let links = links.map(|links| stack.push(Reconciler::new("link", links)));
        let nft = stack.push(Reconciler::new("nft", targets.nft));
        let forward = targets.forward.map(|forward| stack.push(forward));
        let servers = servers.map(|servers| stack.push(Reconciler::new("ipvs", servers)));
        let masquerading: Vec<_> = plane.tables().map(|(key, _)| key).collect();
        let needed = masquerading.clone();
        let masquerades = move |stack: &Stack| needed.iter().all(|table| stack.holds(nft, table));
        let addresses = addresses.map(|addresses| Reconciler::new("address", addresses));
        let addresses = addresses.map(|addresses| stack.push_when(addresses, masquerades));
        stack.want_all(parameters, sysctls.clone());
        for (key, row) in plane.tables() {
            stack.want(nft, key, Some(row));
        }
        let mut tables = Self {
            stack,
            sysctls: parameters,
            links,
            nft,
            forward,
            servers,
            addresses,
            resting: None,
            masquerading,
            flows: targets.flows,
            drains,
            adopted: false,
            leaving: BTreeSet::new(),
            searched: 0,
            pending: Pending::default(),
            unread: BTreeSet::new(),
            audit_failure: None,
            recorded: BTreeSet::new(),
            waiting: BTreeSet::new(),
        };
        match plane.mode() {
            Mode::Ipvs => tables.want_link(plane.link()),
            Mode::Nftables => tables.rest(),
        }
        tables
    }

    /// Wants the link that virtual addresses are on.
    fn want_link(&mut self, link: &IfName) {
        if let Some(links) = self.links {
            self.stack.want(links, link.clone(), Some(vip::link()));
        }
    }

    /// Leaves IPVS, its link and its addresses alone.
    fn rest(&mut self) {
        let (Some(links), Some(servers), Some(addresses)) =
            (self.links.take(), self.servers.take(), self.addresses.take())
        else {
            return;
        };
        self.stack.rest(links, true);
        self.stack.rest(servers, true);
        self.stack.rest(addresses, true);
        self.resting = Some(OfIpvs { links, servers, addresses });
    }

    /// Works on IPVS, its link and its addresses again.
    pub(super) fn wake(&mut self) {
        let Some(OfIpvs { links, servers, addresses }) = self.resting.take() else { return };
        self.stack.rest(links, false);
        self.stack.rest(servers, false);
        self.stack.rest(addresses, false);
        (self.links, self.servers, self.addresses) = (Some(links), Some(servers), Some(addresses));
    }
}
