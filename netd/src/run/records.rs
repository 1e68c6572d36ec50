//! What the daemon writes down about itself for its next run and for `netd cleanup`: its devices, networks and leases.
//!
//! Invariant: what is made is written down before it is made, so that whatever stands and is written down is this daemon's; a file that
//! cannot be read costs knowledge, never the start.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use daemon::files;
use netstate::{IfName, Prefix};

use super::claim::Claimed;
use crate::command::config::Config;
use crate::format::net_conf::Network;
use crate::source::LeaseRecord;

/// File in the run-time folder with the names of tunnel devices that are ours, one a line.
const DEVICES: &str = "devices";

/// File with the Pod networks that this daemon has served since the node's boot, one a line.
const NETWORKS: &str = "networks";

/// File with the leases that this node has held.
pub(super) const LEASE_RECORD: &str = "leases";

/// File that is there until what flannel left has been taken over.
pub(super) const ADOPTING: &str = "adopting";

/// Every file that this daemon keeps in its run-time folder besides the frame's.
pub(crate) const FILES: [&str; 6] =
    [DEVICES, NETWORKS, LEASE_RECORD, ADOPTING, super::reconfigure::SETTLED, super::indexes::INDEXES];

/// What earlier runs of this daemon wrote down since the node's boot.
pub(super) struct Records {
    pub(super) devices: BTreeSet<IfName>,
    pub(super) networks: Vec<Prefix>,
    /// Nothing of this daemon's has stood here since flannel.
    pub(super) adopts: bool,
}

impl Records {
    /// Reads them and adds this network and its devices, before these are made: what is recorded is ours to remove when a
    /// later configuration does not want it.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn open(config: &Config, network: &Network, claimed: &Claimed) -> Result<Self> {
        let folder = &config.run_dir;
        let read = |name: &str| bounded::read_text(&folder.join(name), bounded::SETTINGS);
        let adopts = read(DEVICES).is_err() || folder.join(ADOPTING).exists();
        let Recorded { mut devices, mut networks } = Recorded::read(folder);
        if adopts {
            replace(&folder.join(ADOPTING), "")?;
        }
        // What another network's daemon has taken since is its own.
        devices.retain(|device| !claimed.is_others_device(device));
        networks.retain(|network| !claimed.is_others_network(network));
        networks.extend(network.networks());
        record_networks(folder, &networks)?;
        devices.extend(network.devices());
        record_devices(folder, &devices)?;
        Ok(Self { devices, networks: networks.into_iter().collect(), adopts })
    }
}

/// The leases that this node has held since its boot.
pub(super) fn leases(folder: &Path) -> LeaseRecord {
    let text = bounded::read_text(&folder.join(LEASE_RECORD), bounded::SETTINGS);
    text.unwrap_or_default().parse().unwrap_or_default()
}

/// What daemons that ran here wrote down: it is theirs, whatever the configuration says now.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// Tunnel devices.
    pub(crate) devices: BTreeSet<IfName>,
    /// Pod networks.
    pub(crate) networks: BTreeSet<Prefix>,
}

impl Recorded {
    /// Reads it from the folder of run-time files; what cannot be read was not written down.
    #[must_use]
    pub(crate) fn read(folder: &Path) -> Self {
        let read = |name: &str| bounded::read_text(&folder.join(name), bounded::SETTINGS).unwrap_or_default();
        Self { devices: lines(&read(DEVICES)).collect(), networks: lines(&read(NETWORKS)).collect() }
    }
}

/// Writes down which tunnel devices are ours, before they are made.
pub(super) fn record_devices(folder: &Path, devices: &BTreeSet<IfName>) -> Result<()> {
    replace(&folder.join(DEVICES), &devices.iter().map(|device| format!("{device}\n")).collect::<String>())
}

/// Writes down which Pod networks are served, before anything of them is made.
pub(super) fn record_networks(folder: &Path, networks: &BTreeSet<Prefix>) -> Result<()> {
    replace(&folder.join(NETWORKS), &networks.iter().map(|network| format!("{network}\n")).collect::<String>())
}

fn lines<T: std::str::FromStr>(text: &str) -> impl Iterator<Item = T> {
    text.lines().filter_map(|line| line.parse().ok())
}

fn replace(path: &Path, text: &str) -> Result<()> {
    files::replace(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

/// Everything that flannel left is taken over: from now on only what this daemon made is its own.
///
/// # Errors
/// What the system says; that it was so already is none.
pub(super) fn end_adoption(folder: &Path) -> io::Result<()> {
    match std::fs::remove_file(folder.join(ADOPTING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
