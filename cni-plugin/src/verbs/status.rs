//! STATUS. No locks, no listings of kernel tables: one link is looked up, one directory read.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kernel::Rtnl;

use super::network::Network;
use crate::args::CniArgs;
use crate::error::{CniError, Code};
use crate::hands::refused;
use crate::netconf::{IpamConf, NetConf};
use crate::plan::status::{Facts, judge};
use crate::role::Role;

/// Tells whether ADD can be served.
///
/// # Errors
/// Code 50 or 51, see [`judge`]; 50 for whatever else would make ADD fail.
pub fn status(conf: NetConf, role: Role) -> Result<(), CniError> {
    let network = Network::load(conf, role, &CniArgs::default()).map_err(not_available)?;
    let facts = observe(&network).map_err(not_available)?;
    let sets = network.bridge.ipam.as_ref().map_or(&[][..], |ipam| &ipam.sets);
    judge(&network.name, network.bridge.bridge.as_str(), sets, &facts)
}

fn not_available(error: CniError) -> CniError {
    CniError { code: Code::NotAvailable, ..error }
}

fn observe(network: &Network) -> Result<Facts, CniError> {
    let bridge = Rtnl::open().and_then(|mut host| host.link(&network.bridge.bridge)).map_err(|e| refused(&e))?;
    let records = network.state_dir.join(&network.name);
    let has_attachments = fs::read_dir(records).is_ok_and(|mut entries| entries.next().is_some());
    let (taken, last_reserved) = match &network.bridge.ipam {
        Some(ipam) => reservations(ipam, &ipam.data_dir.join(&network.name)),
        None => (Vec::new(), None),
    };
    Ok(Facts { bridge_up: bridge.map(|link| link.link.up), has_attachments, taken, last_reserved })
}

fn reservations(ipam: &IpamConf, dir: &Path) -> (Vec<u128>, Option<Duration>) {
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
