//! The tables as they are made, before anything is known of the kernel.
//!
//! Invariant: which tables there are, and their order, does not depend on who carries connections. The tables of IPVS rest while nothing
//! of ours is there, so that what others have on a link of that name stays theirs.

use std::collections::{BTreeMap, BTreeSet};

use netstate::{IfName, Link, SysctlKey, nft as nft_rows};
use reconcile::{Reconciler, Stack, Table};

use super::Tables;
use super::handover::Handover;
use super::local::Local;
use super::routes::Compared;
use crate::dataplane::drain::Drains;
use crate::dataplane::{DataPlane, Mode, vip};
use crate::run::targets::{AnyTarget, Balance, Servers, Targets, VirtualAddresses};

/// The places of the tables of IPVS.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfIpvs {
    links: Table<AnyTarget<IfName, Link>>,
    servers: Table<Box<dyn Servers + Send>>,
    addresses: Table<Box<dyn VirtualAddresses + Send>>,
}

/// Without it a connection that IPVS balances cannot be masqueraded.
const CONNTRACK: &str = "net/ipv4/vs/conntrack";

/// What must stand before a virtual address turns local: the static part of the nft tables, and the tracking of what IPVS balances.
#[derive(Debug, Clone)]
pub(super) struct Footing {
    nft: Table<AnyTarget<nft_rows::RowKey, nft_rows::Row>>,
    tables: Vec<nft_rows::RowKey>,
    parameters: Table<AnyTarget<SysctlKey, String>>,
    tracked: Option<SysctlKey>,
}

impl Footing {
    /// What `plane` stands on, with these parameters.
    fn of(
        nft: Table<AnyTarget<nft_rows::RowKey, nft_rows::Row>>,
        parameters: Table<AnyTarget<SysctlKey, String>>,
        sysctls: &BTreeMap<SysctlKey, String>,
        plane: &DataPlane,
    ) -> Self {
        let tracked = sysctls.keys().find(|key| key.to_string() == CONNTRACK).cloned();
        Self { nft, tables: plane.tables().map(|(key, _)| key).collect(), parameters, tracked }
    }

    /// True when everything stands.
    pub(super) fn holds(&self, stack: &Stack) -> bool {
        self.has_tables(stack) && self.tracked.iter().all(|key| stack.holds(self.parameters, key))
    }

    /// True when the nft tables stand.
    pub(super) fn has_tables(&self, stack: &Stack) -> bool {
        self.tables.iter().all(|table| stack.holds(self.nft, table))
    }
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
        let footing = Footing::of(nft, parameters, sysctls, plane);
        let needed = footing.clone();
        let addresses = addresses.map(|addresses| Reconciler::new("address", addresses));
        let addresses = addresses.map(|addresses| stack.push_when(addresses, move |stack: &Stack| needed.holds(stack)));
        let routes = stack.push(Reconciler::new("route", targets.routes));
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
            footing,
            families: plane.families().collect(),
            own: BTreeSet::new(),
            flows: targets.flows,
            handover: Handover::new(plane.mode(), plane.link().clone()),
            drains,
            adopted: false,
            leaving: BTreeMap::new(),
            searched: 0,
            kept: 0,
            noted: 0,
            pending: BTreeSet::new(),
            unread: BTreeSet::new(),
            audit_failure: None,
            recorded: BTreeSet::new(),
            waiting: BTreeSet::new(),
            local: Local::new(routes, plane.local_routes()),
            routes: Compared::default(),
        };
        match plane.mode() {
            Mode::Ipvs => tables.want_link(),
            Mode::Nftables => tables.rest(),
        }
        tables
    }

    /// Wants the link that virtual addresses are on.
    fn want_link(&mut self) {
        if let Some(links) = self.links {
            self.stack.want(links, self.handover.link().clone(), Some(vip::link()));
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
        self.want_link();
    }
}
