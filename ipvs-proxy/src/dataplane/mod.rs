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
use netstate::{Address, AddressKey, IfName, IpFamily, Prefix, ipvs as ipvs_rows, nft as nft_rows};

pub(crate) use serves::served_by_none;

use self::counts::Counts;
use self::site::Site;
use crate::object::service::Service;
use crate::plan::{Delta, Frontend, FrontendKey};

/// Rows that changed: their new value, or `None` when they are no longer desired. Keys are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Chains and elements of the nft tables.
    pub(crate) nft: BTreeMap<nft_rows::RowKey, Option<nft_rows::Row>>,
    /// Virtual and real servers.
    pub(crate) ipvs: BTreeMap<ipvs_rows::RowKey, Option<ipvs_rows::Row>>,
    /// Virtual addresses.
    pub(crate) addresses: BTreeMap<AddressKey, Option<Address>>,
}

#[cfg(test)]
impl Changes {
    /// True when no row changed.
    fn is_empty(&self) -> bool {
        self.nft.is_empty() && self.ipvs.is_empty() && self.addresses.is_empty()
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
    pub(crate) scheduler: String,
    /// The networks whose clients are Pods. A family without one is not served.
    pub(crate) pods: PerFamily<Option<Prefix>>,
    /// The addresses of this node at which NodePorts are.
    pub(crate) node_port_addresses: BTreeSet<IpAddr>,
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
    chains: Counts<nft_rows::RowKey>,
    vips: Counts<IpAddr>,
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
        self.families().map(nftables::statics::table)
    }

    /// The rows that change with these frontends.
    pub(crate) fn rows(&mut self, deltas: &[Delta]) -> Changes {
        let Self { options, shared } = self;
        let mut changes = Changes::default();
        for Delta { key, old, new } in deltas {
            let site = |frontend| Site::new(key, frontend, options);
            let (old, new) = (old.as_ref().and_then(site), new.as_ref().and_then(site));
            shared.site(options, old.as_ref(), new.as_ref(), &mut changes);
        }
        changes
    }

    /// The rows that change when NodePorts are at `addresses`; `frontends` are those that are at every address of the node.
    pub(crate) fn move_node_ports<'a>(
        &mut self,
        addresses: BTreeSet<IpAddr>,
        frontends: impl IntoIterator<Item = (FrontendKey, &'a Frontend)>,
    ) -> Changes {
        let options = Options { node_port_addresses: addresses, ..self.options.clone() };
        let before = std::mem::replace(&mut self.options, options);
        let Self { options, shared } = self;
        let mut changes = Changes::default();
        let (old, new) = (nftables::node_port_addresses(&before), nftables::node_port_addresses(options));
        changed_rows(&old, new, &mut changes.nft);
        for (key, frontend) in frontends {
            let (old, new) = (Site::new(&key, frontend, &before), Site::new(&key, frontend, options));
            shared.site(options, old.as_ref(), new.as_ref(), &mut changes);
        }
        changes
    }

    /// Everything that `service` asks for and does not get, as `field: value`, each once.
    #[must_use]
    pub(crate) fn not_served(&self, service: &Service) -> Vec<String> {
        let families = self.options.pods.map(|_, pods| pods.is_some());
        serves::not_served(service, self.options.mode, families)
    }
}

impl Shared {
    /// All rows that a site in the place of another one changes.
    fn site(&mut self, options: &Options, old: Option<&Site<'_>>, new: Option<&Site<'_>>, changes: &mut Changes) {
        differences(old, new, Site::elements, &mut changes.nft);
        differences(old, new, Site::servers, &mut changes.ipvs);
        self.change(options, old, new, changes);
    }

    /// The rows that other frontends may need too.
    fn change(&mut self, options: &Options, old: Option<&Site<'_>>, new: Option<&Site<'_>>, changes: &mut Changes) {
        let (before, after) = (old.and_then(Site::chain), new.and_then(Site::chain));
        let key = |chain: &Option<(nft_rows::RowKey, _)>| chain.iter().map(|(key, _)| key.clone()).collect();
        for (key, needed) in self.chains.change(&key(&before), &key(&after)) {
            changes.nft.insert(key, after.as_ref().filter(|_| needed).map(|(_, row)| row.clone()));
        }
        let addresses = |site: Option<&Site<'_>>| site.map(Site::vips).unwrap_or_default();
        for (addr, needed) in self.vips.change(&addresses(old), &addresses(new)) {
            let (row, value) = nft::vip(addr);
            changes.nft.insert(row, needed.then_some(value));
            if options.mode == Mode::Ipvs {
                changes.addresses.insert(vip::address(&options.link, addr), needed.then_some(Address));
            }
        }
        let addresses = |site: Option<&Site<'_>>| site.map(Site::hairpins).unwrap_or_default();
        for (addr, needed) in self.hairpins.change(&addresses(old), &addresses(new)) {
            let (row, value) = nft::hairpin(addr);
            changes.nft.insert(row, needed.then_some(value));
        }
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
    changed_rows(&of(old), of(new), changes);
}

fn changed_rows<K: Ord + Clone, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: BTreeMap<K, V>,
    changes: &mut BTreeMap<K, Option<V>>,
) {
    changes.extend(old.keys().filter(|row| !new.contains_key(row)).map(|row| (row.clone(), None)));
    let differing = new.into_iter().filter(|(row, value)| old.get(row) != Some(value));
    changes.extend(differing.map(|(row, value)| (row, Some(value))));
}

/// The tables of both families, that of one which is not in use too: what was left behind goes.
#[must_use]
pub(crate) fn tables() -> [nft_rows::TableKey; 2] {
    IpFamily::ALL.map(nft::table_key)
}
