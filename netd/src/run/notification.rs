//! What the kernel reports, and which tables it concerns.
//!
//! Invariant: what no row of ours can be changed by makes nobody list a table: neighbours of other links, other links, routes
//! outside the Pod networks and those of Pods. Rows that wait for something are tried again then.

use std::collections::BTreeSet;
use std::sync::Arc;

use kernel::nft;
use kernel::watch::{Event, Interest};
use netstate::IfName;

use crate::command::instance::Instance;
use crate::plan::Ownership;
use crate::plan::backend::Backend;

/// What somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Notification {
    /// A table of rtnetlink.
    Rtnl(Event),
    /// A kernel parameter.
    Parameter,
    /// Our nft table, or any when notifications were lost.
    OwnNft,
    /// Another program's nft table.
    ForeignNft,
}

impl Notification {
    /// What a notification of nftables is about.
    pub(super) fn by_nft(change: &nft::Change) -> Vec<Self> {
        match change {
            nft::Change::Table { table, .. } if Instance::is_table(table) => vec![Self::OwnNft],
            nft::Change::Table { .. } => vec![Self::ForeignNft],
            nft::Change::Lost => vec![Self::OwnNft, Self::ForeignNft],
        }
    }
}

/// What concerns the tables of one network with these devices.
pub(super) fn interest(ownership: &Ownership, devices: BTreeSet<IfName>) -> Interest {
    let of_routes = ownership.clone();
    Interest {
        devices: Some(devices),
        links: BTreeSet::from([ownership.local.interface.clone()]),
        kinds: BTreeSet::from(Backend::LINK_KINDS),
        routes: Some(Arc::new(move |key, protocol| of_routes.concerns(key, protocol))),
        ..Interest::default()
    }
}
