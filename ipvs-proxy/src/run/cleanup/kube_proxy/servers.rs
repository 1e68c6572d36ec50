//! What a kube-proxy of the mode ipvs has left in IPVS and on its link.
//!
//! Invariants. What our record names is ours. While there is no record, everything at the addresses of the link is the predecessor's;
//! wherever else it made some, its sets say. A virtual server with open connections stays, with its address, until they have ended: nothing that is
//! open breaks for tidiness.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::address::Addresses;
use kernel::ipvs::{Ipvs, IpvsTable};
use kernel::nft::{Nft, Tables};
use kernel::{KernelError, Rtnl};
use netstate::ipvs::VirtualServerKey;
use netstate::{Address, AddressKey, IpFamily, Prefix};
use reconcile::{Step, Target};

use super::super::remove_ours;
use super::sets::Places;
use crate::dataplane::{self, record};
use crate::run::{link, path};

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Servers {
    /// Virtual and real servers that are gone.
    pub(super) removed: usize,
    /// Addresses that are gone.
    pub(super) addresses: usize,
    /// Virtual servers that stay for their connections.
    pub(super) busy: Vec<VirtualServerKey>,
}

/// Removes it, but for what is in `excluded`.
///
/// # Errors
/// When the kernel cannot be read or refuses.
pub(super) fn remove(excluded: &[Prefix], places: &Places) -> anyhow::Result<Servers> {
    let rows = Tables::new(Nft::open()?, dataplane::tables()).observe()?;
    let (recorded, kept) = (record::servers(&rows), record::kept(&rows).collect::<Vec<_>>());
    let stays =
        |addr: IpAddr| excluded.iter().any(|network| network.contains(addr)) || kept.contains(&IpFamily::of(addr));
    let link = link()?;
    let mut table = Addresses::new(Rtnl::open()?, [link.clone()]);
    let (others, its): (Vec<AddressKey>, Vec<_>) = table.observe()?.into_keys().partition(|key| stays(key.addr));
    let at: BTreeSet<IpAddr> = its.iter().map(|key| key.addr).collect();
    let is_left = |server: &VirtualServerKey| {
        let is_excluded = excluded.iter().any(|network| network.contains(server.addr));
        !recorded.contains(server) && !is_excluded && (at.contains(&server.addr) || places.have(server))
    };
    let (removed, busy) = if path::is_loaded() { remove_idle(Ipvs::open()?, is_left)? } else { (0, Vec::new()) };
    let is_used = |key: &AddressKey| busy.iter().any(|server| server.addr == key.addr);
    let (used, go): (Vec<_>, Vec<_>) = its.into_iter().partition(is_used);
    let addresses = go.len();
    if others.is_empty() && used.is_empty() && addresses > 0 {
        Rtnl::open()?.delete_link(&link)?;
    } else {
        let steps: Vec<_> = go.into_iter().map(|key| Step::Remove(key, Address)).collect();
        table.apply(&steps).into_iter().collect::<Result<(), _>>()?;
    }
    Ok(Servers { removed, addresses, busy })
}

/// Removes those that are left and have no connections; returns how many rows they were, and the others.
fn remove_idle(
    mut ipvs: Ipvs,
    is_left: impl Fn(&VirtualServerKey) -> bool,
) -> Result<(usize, Vec<VirtualServerKey>), KernelError> {
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for server in ipvs.virtual_servers()?.into_keys().filter(is_left) {
        let is_idle = ipvs.real_servers(&server)?.values().all(|(_, connections)| connections.is_empty());
        if is_idle { idle.push(server) } else { busy.push(server) }
    }
    Ok((remove_ours(&mut IpvsTable::new(ipvs, idle))?, busy))
}
