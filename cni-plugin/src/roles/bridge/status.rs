//! STATUS. Takes no lock and, short of a full range, lists no kernel table: links are looked up one by one, one directory
//! is read.
//!
//! Whether `netd` is ready, the subnet file says: `netd` writes it when this node has its lease and the data path of its Pods
//! stands, it is gone after a reboot, and it stays when `netd` stops or is upgraded, because Pods then go on working.
//!
//! A full range counts only when nothing in it can be reclaimed: a runtime that gets 50 sends no ADD, and without an ADD
//! nobody would ever release what a reboot left.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernel::{KernelError, Rtnl};
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Bridge;
use super::network::Network;
use crate::apply::needs;
use crate::plan::status::{Facts, judge};
use crate::protocol::args::CniArgs;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::{IpamConf, NetConf};

/// Says whether ADD can be served.
///
/// # Errors
/// Code 50 or 51, see [`judge`]; 50 for whatever else would make ADD fail.
pub(crate) fn status(conf: NetConf, role: Bridge) -> Result<(), CniError> {
    let network = Network::load(conf, role, &CniArgs::default()).map_err(not_available)?;
    needs::check(&network.name, &[needs::of_bridge(&network.bridge), needs::of_limits(network.bandwidth)].concat())?;
    let mut host = Rtnl::open().map_err(|e| not_available(CniError::from(e)))?;
    if let Some(dir) = network.bridge.ipam.as_ref().and_then(|ipam| network.pool(ipam).next()) {
        takes_files(&dir)?;
    }
    let facts = observe(&network, &mut host).map_err(|e| not_available(CniError::from(e)))?;
    let sets = network.bridge.ipam.as_ref().map_or(&[][..], |ipam| &ipam.sets);
    let judged = judge(&network.name, network.bridge.bridge.as_str(), sets, &facts);
    match &network.bridge.ipam {
        Some(ipam) if judged.as_ref().is_err_and(|error| error.code == Code::NotAvailable) => {
            if network.can_reclaim(ipam, &mut host).map_err(not_available)? { Ok(()) } else { judged }
        }
        _ => judged,
    }
}

pub(crate) fn not_available(error: CniError) -> CniError {
    CniError { code: Code::NotAvailable, ..error }
}

/// Whether addresses can be written down in `dir`, or where it is to be made.
///
/// # Errors
/// Code 50 where the disk is full or read-only.
pub(crate) fn takes_files(dir: &Path) -> Result<(), CniError> {
    let Some(place) = dir.ancestors().find(|place| place.exists()) else { return Ok(()) };
    let refused = match (access(place, AccessFlags::W_OK), statvfs(place)) {
        (Err(errno), _) => errno,
        // A file system that has inodes without end says 0 of 0.
        (_, Ok(space)) if space.blocks_available() == 0 || space.files() > 0 && space.files_available() == 0 => {
            Errno::ENOSPC
        }
        _ => return Ok(()),
    };
    let message = format!("addresses cannot be written down in {}: {}", dir.display(), refused.desc());
    Err(CniError::new(Code::NotAvailable, message))
}

fn observe(network: &Network, host: &mut Rtnl) -> Result<Facts, KernelError> {
    let mut bridge_up = host.link(&network.bridge.bridge)?.map(|link| link.link.up);
    // With the bridge up it does not matter whether there are any.
    let mut has_attachments = false;
    if bridge_up != Some(true)
        && let Some(master) = bridge_of_attached(network, host)?
    {
        has_attachments = true;
        bridge_up = master.map(|index| host.link_by_index(index)).transpose()?.flatten().map(|link| link.link.up);
    }
    let (taken, last_reserved) = match &network.bridge.ipam {
        Some(ipam) => reservations(ipam, &network.pool(ipam).collect::<Vec<_>>()),
        None => (Vec::new(), None),
    };
    Ok(Facts { bridge_up, has_attachments, taken, last_reserved })
}

/// The index of the bridge that the first attached Pod's link is a port of, if it still is one; `None` without such a Pod. It
/// may be another bridge than the configuration names: one that was there before.
fn bridge_of_attached(network: &Network, host: &mut Rtnl) -> Result<Option<Option<u32>>, KernelError> {
    for attachment in network.records.of_this_boot() {
        if let Some(link) = host.link(attachment.host_link())? {
            return Ok(Some(link.master_index));
        }
    }
    Ok(None)
}

/// How many addresses of each set are taken in the directories `dirs`, the network's own first, and how long ago one was
/// given out.
pub(crate) fn reservations(ipam: &IpamConf, dirs: &[PathBuf]) -> (Vec<u128>, Option<Duration>) {
    let entries = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let addresses: BTreeSet<IpAddr> = names.filter_map(|name| name.parse().ok()).collect();
    let count = |set: &crate::protocol::range::RangeSet| {
        addresses.iter().filter(|addr| set.range_of(**addr).is_some() && !set.is_gateway(**addr)).map(|_| 1_u128).sum()
    };
    let written = (0..ipam.sets.len())
        .flat_map(|index| dirs.iter().map(move |dir| dir.join(format!("last_reserved_ip.{index}"))))
        .filter_map(|path| fs::metadata(path).ok()?.modified().ok())
        .max();
    // A time in the future is a clock that was set back: how long ago it was is unknown.
    let ago = written.and_then(|at| SystemTime::now().duration_since(at).ok());
    (ipam.sets.iter().map(count).collect(), ago)
}
