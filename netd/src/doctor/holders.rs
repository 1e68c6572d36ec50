//! Whether another host on the link has an address of this node, asked with real packets while probes are under way.
//!
//! Invariant: only addresses are asked for that the interface has; behind a translated address others are right to have it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::query::Interface;
use netstate::{IfName, MacAddr};

use crate::run::status::Status;

/// Hardware addresses of the other hosts by address, or why they could not be asked.
pub(super) type Held = Vec<(IpAddr, Result<BTreeSet<MacAddr>, String>)>;

/// This node's addresses on the interface towards the others.
pub(super) fn own(daemon: Option<&Status>, interfaces: &[Interface]) -> Vec<(IfName, IpAddr)> {
    let Some(node) = daemon.map(|daemon| &daemon.node) else { return Vec::new() };
    let Some(found) = interfaces.iter().find(|found| found.name.as_str() == node.interface) else { return Vec::new() };
    let has = |address: &IpAddr| found.addresses.iter().any(|own| own.addr == *address);
    let public = node.public_ip.split(',').filter_map(|address| address.parse().ok());
    public.filter(has).map(|address| (found.name.clone(), address)).collect()
}

/// Asks for each of them.
pub(super) async fn ask(own: Vec<(IfName, IpAddr)>) -> Held {
    let ask = |(link, address): (IfName, IpAddr)| {
        let held = kernel::holders::holders(&link, address).map_err(|error| error.to_string());
        (address, held)
    };
    tokio::task::spawn_blocking(move || own.into_iter().map(ask).collect()).await.unwrap_or_default()
}
