//! What becomes of this node while the proxy runs.
//!
//! Invariant: of a change only what depends on it is planned again, and of the rows only those at addresses of the node are made anew.

use super::Proxy;
use crate::dataplane::{self, DataPlane, NodeAddresses};
use crate::object::slice::EndpointSlice;
use crate::plan::here::{Facts, Mode};

impl Proxy {
    /// Takes in what has become of this node. What depends on it is planned again.
    pub(crate) fn learn(&mut self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts);
        let new = self.facts.here(mode(&self.plane));
        let change = self.here.change(&new);
        self.here = new;
        self.move_node();
        if change.all {
            self.dirty.extend(self.view.services().map(|service| service.name.clone()));
            return;
        }
        if change.zone {
            self.dirty.extend(self.zoned.iter().cloned());
        }
        if !change.addresses.is_empty() {
            let is_about = |slice: &&EndpointSlice| {
                slice.endpoints.iter().any(|endpoint| change.addresses.contains(&endpoint.addr))
            };
            self.dirty.extend(self.view.all_slices().filter(is_about).map(|slice| slice.service.clone()));
        }
    }

    /// Lets the rows follow the addresses of this node.
    pub(super) fn move_node(&mut self) {
        self.tables.set_own(self.here.addresses.clone());
        self.tables.want(self.plane.set_node(NodeAddresses::from(&self.here), self.claims.all()));
    }
}

/// The data path, as the facts of this node know it.
pub(super) fn mode(plane: &DataPlane) -> Mode {
    match plane.mode() {
        dataplane::Mode::Ipvs => Mode::Ipvs,
        dataplane::Mode::Nftables => Mode::Nftables,
    }
}
