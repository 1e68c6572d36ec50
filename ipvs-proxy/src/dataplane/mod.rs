//! The seam between what is planned and the rows of the kernel's tables.
//!
//! [`DataPlane`] turns each frontend that changed into the rows that change; what it cannot serve it names. Pure. There are two,
//! and this module is the only one that tells them apart.
//!
//! | module | rows |
//! |---|---|
//! | [`nftables`] | the nftables data path: everything in one nft table |
//! | [`balance`] | the IPVS data path, of the rows below |
//! | [`ipvs`] | virtual servers and real servers |
//! | [`record`] | elements that say which virtual servers are ours |
//! | [`table`] | its nft table: what is masqueraded and what is refused |
//! | [`vip`] | the dummy link and its addresses |
//! | [`drain`] | real servers that take no new connections until their old ones have ended |
//! | [`since`] | elements that say since when they do |
//!
//! Invariants. A row that several frontends need (an address, a hairpin) is there as long as one of them does. The rows
//! depend on the frontends only, never on their history.

mod balance;
pub(crate) mod drain;
pub(crate) mod ipvs;
pub(crate) mod nft;
pub(crate) mod nftables;
pub(crate) mod record;
mod serves;
pub(crate) mod since;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod vip;

use std::collections::BTreeMap;

use netstate::{Address, AddressKey, IfName, IpFamily, Prefix, ipvs as ipvs_rows, nft as nft_rows};

pub(crate) use serves::served_by_none;

use self::balance::IpvsPlane;
use self::nftables::NftPlane;
use crate::object::service::Service;
use crate::plan::Delta;

/// Rows that changed: their new value, or `None` when they are no longer desired. Keys are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Elements of the nft table.
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

/// A data path: how connections reach the endpoints.
#[derive(Debug, Clone)]
pub(crate) enum DataPlane {
    /// By virtual servers of IPVS.
    Ipvs(IpvsPlane),
    /// By nftables alone.
    Nftables(NftPlane),
}

impl DataPlane {
    /// IPVS without frontends: addresses go to the link called `link`, every virtual server has the scheduler called `scheduler`,
    /// Pods are the clients inside `pods`.
    #[must_use]
    pub(crate) const fn ipvs(link: IfName, scheduler: String, pods: Prefix) -> Self {
        Self::Ipvs(IpvsPlane::new(link, scheduler, pods))
    }

    /// nftables without frontends; Pods are the clients inside `pods`.
    #[must_use]
    pub(crate) const fn nftables(pods: Prefix) -> Self {
        Self::Nftables(NftPlane::new(pods))
    }

    /// kube-proxy's word for it.
    #[must_use]
    pub(crate) const fn mode(&self) -> &'static str {
        match self {
            Self::Ipvs(_) => "ipvs",
            Self::Nftables(_) => "nftables",
        }
    }

    /// The link that holds virtual addresses, where there is one.
    #[must_use]
    pub(crate) const fn link(&self) -> Option<&IfName> {
        match self {
            Self::Ipvs(plane) => Some(plane.link()),
            Self::Nftables(_) => None,
        }
    }

    /// The static part of its nft table.
    #[must_use]
    pub(crate) fn table(&self) -> (nft_rows::RowKey, nft_rows::Row) {
        match self {
            Self::Ipvs(plane) => table::table(plane.pods()),
            Self::Nftables(plane) => nftables::statics::table(plane.family()),
        }
    }

    /// The rows that change with these frontends.
    pub(crate) fn rows(&mut self, deltas: &[Delta]) -> Changes {
        match self {
            Self::Ipvs(plane) => plane.rows(deltas),
            Self::Nftables(plane) => Changes { nft: plane.rows(deltas), ..Changes::default() },
        }
    }

    /// Everything that `service` asks for and does not get, as `field: value`, each once.
    #[must_use]
    pub(crate) fn not_served(&self, service: &Service) -> Vec<String> {
        match self {
            Self::Ipvs(_) => serves::not_served_by_ipvs(service),
            Self::Nftables(plane) => serves::not_served_by_nftables(service, Some(plane.family())),
        }
    }
}

/// The tables of either data path, that of the one which is not in use too: what it left behind goes.
#[must_use]
pub(crate) fn tables() -> [nft_rows::TableKey; 2] {
    IpFamily::ALL.map(nft::table_key)
}
