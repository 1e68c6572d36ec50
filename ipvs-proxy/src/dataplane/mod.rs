//! The seam between what is planned and the rows of the kernel's tables.
//!
//! [`DataPlane`] turns each frontend that changed into the rows that change; what it cannot serve it names. Pure. Which path carries
//! connections is a value, [`Mode`]; the tables are the same.
//!
//! | module | rows |
//! |---|---|
//! | [`nftables`] | the nft tables of both paths: who is led where, who is masqueraded, what is refused |
//! | [`ipvs`] | virtual servers and real servers |
//! | [`record`] | elements that say which virtual servers are ours |
//! | [`vip`] | the dummy link and its addresses |
//! | [`local`] | routes of whole networks in place of these addresses, where that is asked for |
//! | [`drain`] | real servers that take no new connections until their old ones have ended |
//! | [`since`] | elements that say since when they do |
//!
//! [`site`] puts a frontend's rows together, [`counts`] knows who needs those that several frontends share.
//!
//! Invariants. A row that several frontends need (an address, a hairpin) is there as long as one of them does. The rows
//! depend on the frontends only, never on their history. A change costs no more than the frontends in it.

mod counts;
pub(crate) mod drain;
pub(crate) mod ipvs;
pub(crate) mod local;
pub(crate) mod nft;
pub(crate) mod nftables;
pub(crate) mod record;
mod serves;
pub(crate) mod since;
mod site;
#[cfg(test)]
mod tests;
pub(crate) mod vip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::family::PerFamily;
use netstate::ipvs::{Scheduler, VirtualServerKey};
use netstate::{Address, AddressKey, IfName, IpFamily, Prefix, Route, RouteKey, ipvs as ipvs_rows, nft as nft_rows};

use self::counts::Counts;
pub(crate) use self::nftables::guards::Guards;
use self::site::Site;
use crate::object::service::{SCHEDULER, Service, Sources};
use crate::plan::frontend::Place;
use crate::plan::here::Here;
use crate::plan::pods::PodsOfFamilies;
use crate::plan::{Delta, Frontend, FrontendKey};

/// Rows that changed: their new value, or `None` when they are no longer desired. Keys are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Chains and elements of the nft tables.
    pub(crate) nft: BTreeMap<nft_rows::RowKey, Option<nft_rows::Row>>,
    /// Virtual servers with their real servers.
    pub(crate) ipvs: BTreeMap<VirtualServerKey, Option<ipvs_rows::Row>>,
    /// Virtual addresses.
    pub(crate) addresses: BTreeMap<AddressKey, Option<Address>>,
    /// Routes in their place.
    pub(crate) routes: BTreeMap<RouteKey, Option<Route>>,
}

impl Changes {
    /// True when no row changed.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.nft.is_empty() && self.ipvs.is_empty() && self.addresses.is_empty() && self.routes.is_empty()
    }
}

/// Changes of many Services on their way into one [`Changes`]: sorted once there, and not searched row by row.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    nft: Vec<(nft_rows::RowKey, Option<nft_rows::Row>)>,
    ipvs: Vec<(VirtualServerKey, Option<ipvs_rows::Row>)>,
    addresses: Vec<(AddressKey, Option<Address>)>,
    routes: Vec<(RouteKey, Option<Route>)>,
}

impl Gathered {
    /// Takes in what changed behind all before.
    pub(crate) fn add(&mut self, later: Changes) {
        let Changes { nft, ipvs, addresses, routes } = later;
        self.nft.extend(nft);
        self.ipvs.extend(ipvs);
        self.addresses.extend(addresses);
        self.routes.extend(routes);
    }

    /// All of it; of a row that changed more than once the last.
    pub(crate) fn into_changes(self) -> Changes {
        Changes {
            nft: self.nft.into_iter().collect(),
            ipvs: self.ipvs.into_iter().collect(),
            addresses: self.addresses.into_iter().collect(),
            routes: self.routes.into_iter().collect(),
        }
    }
}

/// Who carries connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Virtual servers of IPVS; nftables marks, refuses, and leads what virtual servers cannot.
    Ipvs,
    /// nftables alone.
    Nftables,
}

impl Mode {
    /// kube-proxy's word for it.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

/// What rows depend on beside the frontends.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Who carries connections.
    pub(crate) mode: Mode,
    /// The link that virtual addresses are on.
    pub(crate) link: IfName,
    /// The scheduler of virtual servers whose Service asks for none.
    pub(crate) scheduler: Scheduler,
    /// How clients are known for Pods. A family without it is not served.
    pub(crate) pods: PodsOfFamilies,
    /// The Service networks, where they are known.
    pub(crate) services: PerFamily<Option<Prefix>>,
    /// Those that the API server announces, for a family of which none is known.
    pub(crate) announced: BTreeSet<Prefix>,
    /// Networks of Services that are local by a route each, with IPVS, and not address by address.
    pub(crate) local: Vec<Prefix>,
    /// The node's addresses.
    pub(crate) node: NodeAddresses,
    /// What is dropped for the good of others.
    pub(crate) guards: Guards,
}

/// Addresses of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeAddresses {
    /// All of them.
    pub(crate) own: BTreeSet<IpAddr>,
    /// Those at which node ports are.
    pub(crate) node_ports: BTreeSet<IpAddr>,
    /// The networks that they are in.
    pub(crate) networks: BTreeSet<Prefix>,
    /// The links that the default routes leave by.
    pub(crate) uplinks: PerFamily<Option<IfName>>,
    /// The one of each family that it connects from, where it is known.
    pub(crate) primary: PerFamily<Option<IpAddr>>,
}

impl From<&Here> for NodeAddresses {
    fn from(here: &Here) -> Self {
        Self {
            own: here.addresses.clone(),
            node_ports: here.node_port_addresses.clone(),
            networks: here.networks.clone(),
            uplinks: here.uplinks.clone(),
            primary: here.primary,
        }
    }
}

/// How connections reach the endpoints; see the module's text.
#[derive(Debug, Clone)]
pub(crate) struct DataPlane {
    options: Options,
    shared: Shared,
}

/// Who needs the rows that are not one frontend's own.
#[derive(Debug, Clone, Default)]
struct Shared {
    rows: Counts<nft_rows::RowKey>,
    vips: Counts<IpAddr>,
    external: Counts<IpAddr>,
    bound: Counts<IpAddr>,
    hairpins: Counts<IpAddr>,
}

impl DataPlane {
    /// No frontends.
    #[must_use]
    pub(crate) fn new(options: Options) -> Self {
        Self { options, shared: Shared::default() }
    }

    /// Who carries connections.
    #[must_use]
    pub(crate) const fn mode(&self) -> Mode {
        self.options.mode
    }

    /// How clients are known for Pods.
    #[must_use]
    pub(crate) const fn pods(&self) -> &PodsOfFamilies {
        &self.options.pods
    }

    /// The link that holds virtual addresses.
    #[must_use]
    pub(crate) const fn link(&self) -> &IfName {
        &self.options.link
    }

    /// The families that are served.
    pub(crate) fn families(&self) -> impl Iterator<Item = IpFamily> + '_ {
        self.options.pods.present().map(|(family, _)| family)
    }

    /// The static part of the nft tables, of each family that is served.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (nft_rows::RowKey, nft_rows::Row)> + '_ {
        self.families().map(|family| nftables::statics::table(family, &self.options))
    }

    /// The routes that make whole networks local.
    #[must_use]
    pub(crate) fn local_routes(&self) -> BTreeMap<RouteKey, Route> {
        local::routes(&self.options)
    }

    /// The rows that change with these frontends.
    pub(crate) fn rows(&mut self, deltas: &[Delta]) -> Changes {
        let Self { options, shared } = self;
        let mut changes = Changes::default();
        for Delta { key, old, new } in deltas {
            let site = |frontend| Site::new(key, frontend, options);
            let (old, new) = (old.as_ref().and_then(site), new.as_ref().and_then(site));
            shared.exchange(&options.link, old.as_ref(), new.as_ref(), &mut changes);
        }
        changes
    }

    /// Takes in other options. `served` are the frontends whose rows depend on what differs, or all; returns the rows that change.
    pub(crate) fn change<'a>(
        &mut self,
        options: Options,
        served: impl Iterator<Item = (&'a FrontendKey, &'a Frontend)>,
    ) -> Changes {
        let tables: BTreeMap<_, _> = self.tables().collect();
        let mut changes = Changes { routes: local::changes(&self.options, &options), ..Changes::default() };
        for (key, frontend) in served {
            let [old, new] = [&self.options, &options].map(|options| Site::new(key, frontend, options));
            self.shared.exchange(&options.link, old.as_ref(), new.as_ref(), &mut changes);
        }
        self.options = options;
        let differing = self.tables().filter(|(key, table)| tables.get(key) != Some(table));
        changes.nft.extend(differing.map(|(key, table)| (key, Some(table))));
        changes
    }

    /// Takes in how clients are known for Pods, in the same families as before; `served` is everything that is served.
    pub(crate) fn set_pods<'a>(
        &mut self,
        pods: PodsOfFamilies,
        served: impl Iterator<Item = (&'a FrontendKey, &'a Frontend)>,
    ) -> Changes {
        let before = self.options.pods.clone();
        if pods == before {
            return Changes::default();
        }
        let differs = |family| before.get(family) != pods.get(family);
        let concerned = served.filter(|(key, _)| differs(key.family()));
        self.change(Options { pods: pods.clone(), ..self.options.clone() }, concerned)
    }

    /// Takes in which Service networks are announced.
    pub(crate) fn set_announced(&mut self, announced: BTreeSet<Prefix>) -> Changes {
        if announced == self.options.announced {
            return Changes::default();
        }
        self.change(Options { announced, ..self.options.clone() }, std::iter::empty())
    }

    /// Takes in the node's addresses; `served` is everything that is served. Costs what is served at addresses of the node, or at such as
    /// lie in a network of its links, or lets some clients in only.
    pub(crate) fn set_node<'a>(
        &mut self,
        node: NodeAddresses,
        served: impl Iterator<Item = (&'a FrontendKey, &'a Frontend)>,
    ) -> Changes {
        let before = self.options.node.clone();
        if node == before {
            return Changes::default();
        }
        let moved: BTreeSet<IpAddr> = node.own.symmetric_difference(&before.own).copied().collect();
        let (was, options) = (self.options.clone(), Options { node, ..self.options.clone() });
        let is_bound_otherwise = |addr| local::covers(&was, addr) != local::covers(&options, addr);
        let depends = |(key, frontend): &(&FrontendKey, &Frontend)| match key.place {
            Place::AnyNode(_) => true,
            Place::Address(addr) => {
                moved.contains(&addr) || frontend.sources != Sources::Any || is_bound_otherwise(addr)
            }
        };
        let options = options.clone();
        let mut changes = self.change(options, served.filter(depends));
        let after = &self.options.node.node_ports;
        let known = |addr: &&IpAddr| self.options.pods.get(IpFamily::of(**addr)).is_some();
        for addr in before.node_ports.symmetric_difference(after).filter(known) {
            let (row, value) = nftables::node_address(*addr);
            changes.nft.insert(row, after.contains(addr).then_some(value));
        }
        changes
    }

    /// Everything that `service` asks for and does not get, as `field: value`, each once.
    #[must_use]
    pub(crate) fn not_served(&self, service: &Service) -> Vec<String> {
        let families = self.options.pods.as_ref().map(|_, pods| pods.is_some());
        let mut fields = serves::not_served(service, families);
        let scheduler = service.scheduler.as_ref().filter(|_| self.options.mode == Mode::Nftables);
        fields.extend(
            scheduler.map(|scheduler| format!("metadata.annotations.{SCHEDULER}: {scheduler}, which is of IPVS")),
        );
        fields.extend(serves::unweighted(service, self.options.mode, &self.options.scheduler));
        fields.extend(serves::ungrouped(service, self.options.mode));
        fields
    }
}

impl Shared {
    /// The rows that change when `new` stands in place of `old`; addresses are on `link`.
    fn exchange(&mut self, link: &IfName, old: Option<&Site<'_>>, new: Option<&Site<'_>>, changes: &mut Changes) {
        differences(old, new, Site::elements, &mut changes.nft);
        differences(old, new, Site::servers, &mut changes.ipvs);
        self.exchange_shared(old, new, changes);
        let vips = |site: Option<&Site<'_>>| site.map(Site::vips).unwrap_or_default();
        for (addr, needed) in self.vips.change(&vips(old), &vips(new)) {
            let (row, value) = nft::vip(addr);
            changes.nft.insert(row, needed.then_some(value));
        }
        let external = |site: Option<&Site<'_>>| site.map(Site::external).unwrap_or_default();
        for (addr, needed) in self.external.change(&external(old), &external(new)) {
            let (row, value) = nft::external(addr);
            changes.nft.insert(row, needed.then_some(value));
        }
        let bound = |site: Option<&Site<'_>>| site.map(Site::bound).unwrap_or_default();
        for (addr, needed) in self.bound.change(&bound(old), &bound(new)) {
            changes.addresses.insert(vip::address(link, addr), needed.then_some(Address));
        }
        let hairpins = |site: Option<&Site<'_>>| site.map(Site::hairpins).unwrap_or_default();
        for (addr, needed) in self.hairpins.change(&hairpins(old), &hairpins(new)) {
            let (row, value) = nft::hairpin(addr);
            changes.nft.insert(row, needed.then_some(value));
        }
    }
}

impl Shared {
    /// The rows that other frontends may need too. Most frontends need one that is there, which is not made for that.
    fn exchange_shared(&mut self, old: Option<&Site<'_>>, new: Option<&Site<'_>>, changes: &mut Changes) {
        let keys = |site: Option<&Site<'_>>| site.map(Site::shared_keys).unwrap_or_default();
        let changed = self.rows.change(&keys(old), &keys(new));
        let both = old.zip(new).filter(|(old, new)| old.may_share_otherwise(new));
        if changed.is_empty() && both.is_none() {
            return;
        }
        let rows = |site: Option<&Site<'_>>| site.map(Site::shared).unwrap_or_default();
        let after = rows(new);
        for (key, needed) in changed {
            let row = after.get(&key).filter(|_| needed).cloned();
            changes.nft.insert(key, row);
        }
        // Whoever shares a row changes it alike, in the same change.
        let before = rows(both.map(|(old, _)| old));
        let other = |(key, row): &(nft_rows::RowKey, _)| before.get(key).is_some_and(|before| before != row);
        changes.nft.extend(after.into_iter().filter(other).map(|(key, row)| (key, Some(row))));
    }
}

/// What differs between two sites in the rows that `rows` gives.
fn differences<'a, K: Ord + Clone, V: PartialEq>(
    old: Option<&Site<'a>>,
    new: Option<&Site<'a>>,
    rows: fn(&Site<'a>) -> BTreeMap<K, V>,
    changes: &mut BTreeMap<K, Option<V>>,
) {
    let of = |site: Option<&Site<'a>>| site.map(rows).unwrap_or_default();
    let (old, new) = (of(old), of(new));
    changes.extend(old.keys().filter(|row| !new.contains_key(row)).map(|row| (row.clone(), None)));
    let differing = new.into_iter().filter(|(row, value)| old.get(row) != Some(value));
    changes.extend(differing.map(|(row, value)| (row, Some(value))));
}

/// The tables of both families, that of one which is not in use too: what was left behind goes.
#[must_use]
pub(crate) fn tables() -> [nft_rows::TableKey; 2] {
    IpFamily::ALL.map(nft::table_key)
}
