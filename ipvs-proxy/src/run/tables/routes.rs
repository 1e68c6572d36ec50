//! Virtual addresses whose local routes somebody took away: finding and repairing them.
//!
//! Invariant: routes are listed behind a listing of the addresses, and when the kernel says that one of a desired address is gone, never
//! for what this program removes itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::Chain;

use super::Tables;
use crate::dataplane::vip;

/// When local routes were last compared.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Listings of the addresses by then.
    listings: u64,
    /// The route of a desired address is gone since.
    is_one_gone: bool,
}

impl Tables {
    /// Takes in that no local routes lead to these addresses any more.
    pub(crate) fn unrouted(&mut self, addresses: &BTreeSet<IpAddr>) {
        let Some(table) = self.addresses.and_then(|table| self.stack.get(table)) else { return };
        let link = self.handover.link();
        let is_desired = |addr: &IpAddr| table.desired().contains_key(&vip::address(link, *addr));
        self.routes.is_one_gone |= addresses.iter().any(is_desired);
    }

    /// Has addresses made again that no local route leads to.
    pub(super) fn repair_unrouted(&mut self) {
        let Some(table) = self.addresses.and_then(|table| self.stack.get_mut(table)) else { return };
        if table.mirror().is_none() {
            return;
        }
        let (listings, compared) = (table.listings(), &mut self.routes);
        let is_new = std::mem::replace(&mut compared.listings, listings) != listings;
        if !std::mem::take(&mut compared.is_one_gone) && !is_new {
            return;
        }
        match table.compare(|target, mirror| target.unrouted(mirror)) {
            Some(Ok(found)) => {
                let desired: Vec<_> = found.into_iter().filter(|key| table.desired().contains_key(key)).collect();
                if let Some(first) = desired.first() {
                    tracing::warn!(count = desired.len(), %first, "local routes of virtual addresses were removed by somebody else");
                }
                for key in desired {
                    table.correct(key, None);
                }
            }
            // Once more behind the next listing.
            Some(Err(error)) => tracing::warn!(error = %Chain(&error), "local routes cannot be listed"),
            None => {}
        }
    }
}
