//! Which leases are other nodes that packets may be sent to.
//!
//! Invariant: a lease never redirects addresses that are not Pod addresses, nor this node's own Pods: a stray key such
//! as `0.0.0.0-0` must not become a default route.

use std::collections::BTreeMap;

use netstate::Prefix;

use super::LocalNode;
use crate::format::lease::{Lease, LeaseAttrs};
use crate::format::net_conf::Network;

/// The usable leases by subnet, and the others with the reason.
pub(super) fn usable<'a>(
    network: &Network,
    local: &LocalNode,
    leases: impl IntoIterator<Item = &'a Lease>,
) -> (BTreeMap<Prefix, &'a LeaseAttrs>, BTreeMap<Prefix, String>) {
    let (mut peers, mut skipped) = (BTreeMap::new(), BTreeMap::new());
    for lease in leases {
        let subnet = lease.key.v4;
        if subnet == local.subnet && lease.attrs.public_ip == local.public_ip {
            continue;
        }
        match refusal(network, local, lease) {
            Some(reason) => {
                skipped.insert(subnet, reason);
            }
            None => {
                peers.entry(subnet).or_insert(&lease.attrs);
            }
        }
    }
    (peers, skipped)
}

fn refusal(network: &Network, local: &LocalNode, lease: &Lease) -> Option<String> {
    let (subnet, public_ip) = (lease.key.v4, lease.attrs.public_ip);
    if !network.has_subnet(&subnet) {
        return Some(format!("{subnet} is no subnet of the Pod network {}", network.network));
    }
    if subnet.overlaps(&local.subnet) {
        return Some(format!("{subnet} of {public_ip} overlaps this node's own subnet {}", local.subnet));
    }
    if public_ip == local.public_ip || public_ip == local.address {
        return Some(format!(
            "{subnet} names this node's own address {public_ip}, but this node leases {}",
            local.subnet
        ));
    }
    let no_host = public_ip.is_unspecified() || public_ip.is_multicast() || public_ip.is_broadcast();
    if no_host || public_ip.is_loopback() {
        return Some(format!("PublicIP {public_ip} is not the address of a host"));
    }
    None
}
