//! STATUS. No locks, no listings of kernel tables: one link is looked up, one directory read.
//!
//! Only when a range is full more is done: leftovers are looked for and released. A runtime that is told 50 sends no
//! ADD, and without an ADD nobody would ever release what a reboot left.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kernel::Rtnl;

use super::network::Network;
use super::store_error;
use crate::args::CniArgs;
use crate::error::{CniError, Code};
use crate::hands::refused;
use crate::ipam::{Store, StoreError};
use crate::leftovers;
use crate::netconf::{IpamConf, NetConf};
use crate::plan::status::{Facts, judge};
use crate::record;
use crate::role::Role;

/// Tells whether ADD can be served.
///
/// # Errors
/// Code 50 or 51, see [`judge`]; 50 for whatever else would make ADD fail.
pub fn status(conf: NetConf, role: Role) -> Result<(), CniError> {
    let mut network = Network::load(conf, role, &CniArgs::default()).map_err(not_available)?;
    let mut host = Rtnl::open().map_err(|e| not_available(refused(&e)))?;
    let bridge_up = network.find_bridge(&mut host).map_err(not_available)?.map(|link| link.link.up);
    let judged = judged(&network, bridge_up);
    match &network.bridge.ipam {
        Some(ipam) if judged.as_ref().is_err_and(|error| error.code == Code::NotAvailable) => {
            reclaim(&network, ipam, &mut host).map_err(not_available)?;
            self::judged(&network, bridge_up)
        }
        _ => judged,
    }
}

fn judged(network: &Network, bridge_up: Option<bool>) -> Result<(), CniError> {
    let facts = observe(network, bridge_up);
    let sets = network.bridge.ipam.as_ref().map_or(&[][..], |ipam| &ipam.sets);
    judge(&network.name, network.bridge.bridge.as_str(), sets, &facts)
}

fn reclaim(network: &Network, ipam: &IpamConf, host: &mut Rtnl) -> Result<(), CniError> {
    let store = Store::new(&ipam.data_dir, &network.name);
    match store.lock_existing(RECLAIM_WAIT) {
        Ok(Some(locked)) => {
            let (records, bridge) = (&network.state_dir, &network.bridge.bridge);
            leftovers::release(&locked, records, &network.name, bridge, host).map(drop)
        }
        // Somebody is at work there and sees to it himself.
        Ok(None) | Err(StoreError::Busy { .. }) => Ok(()),
        Err(error) => Err(store_error(&error)),
    }
}

/// How long to wait for the lock of a full network.
pub(super) const RECLAIM_WAIT: Duration = Duration::from_secs(1);

pub(super) fn not_available(error: CniError) -> CniError {
    CniError { code: Code::NotAvailable, ..error }
}

fn observe(network: &Network, bridge_up: Option<bool>) -> Facts {
    // With the bridge up it does not matter whether there are any.
    let has_attachments = bridge_up != Some(true) && record::any_of_this_boot(&network.state_dir, &network.name);
    let (taken, last_reserved) = match &network.bridge.ipam {
        Some(ipam) => reservations(ipam, &ipam.data_dir.join(&network.name)),
        None => (Vec::new(), None),
    };
    Facts { bridge_up, has_attachments, taken, last_reserved }
}

/// How many addresses of each set are taken, and how long ago one was given out.
pub(super) fn reservations(ipam: &IpamConf, dir: &Path) -> (Vec<u128>, Option<Duration>) {
    let names =
        fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let addresses: Vec<IpAddr> = names.filter_map(|name| name.parse().ok()).collect();
    let count = |set: &crate::ipam::RangeSet| {
        addresses.iter().filter(|addr| set.range_of(**addr).is_some() && !set.is_gateway(**addr)).map(|_| 1_u128).sum()
    };
    let written = (0..ipam.sets.len())
        .filter_map(|index| fs::metadata(dir.join(format!("last_reserved_ip.{index}"))).ok()?.modified().ok())
        .max();
    // A time in the future is a clock that was set back: how long ago it was is unknown.
    let ago = written.and_then(|at| SystemTime::now().duration_since(at).ok());
    (ipam.sets.iter().map(count).collect(), ago)
}
