//! The `host-gw` backend: one route per node, by way of the node itself.
//!
//! Invariant: no device, no encapsulation. The nodes must share a layer 2 network; whether one does is the kernel's to
//! say when it is given the route.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::Prefix;

use crate::format::lease::{BackendAttrs, LeaseAttrs};
use crate::plan::{LocalNode, Tables, route};

pub(in crate::plan) fn tables(
    local: &LocalNode,
    peers: &BTreeMap<Prefix, &LeaseAttrs>,
    skipped: &mut BTreeMap<Prefix, String>,
) -> Tables {
    let mut tables = Tables::default();
    for (subnet, attrs) in peers {
        if attrs.backend == BackendAttrs::HostGw {
            let (key, value) = route(*subnet, IpAddr::V4(attrs.public_ip), &local.interface, false);
            tables.routes.insert(key, value);
        } else {
            let reason = format!("{} uses another backend than this network's host-gw", attrs.public_ip);
            skipped.insert(*subnet, reason);
        }
    }
    tables
}
