//! What netd says of itself, as `status.json` has it and whoever reads it.
//!
//! Invariant: a field that is not there is as if nothing was known of it, so a status of another version is read as far as it is understood.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the daemon knows; `T` is as much of a kernel table as its reader wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StatusOf<T> {
    /// Version of the program.
    pub version: String,
    /// This node and the network it is in.
    pub node: Node,
    /// Where leases come from and how that stands.
    pub store: Store,
    /// The leases that are in use, by subnet, when the daemon was asked for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leases: Option<BTreeMap<String, Peer>>,
    /// How many there are.
    pub lease_count: usize,
    /// Keys of the store that cannot be read, with the reason; not all when there are many.
    pub invalid: BTreeMap<String, String>,
    /// How many there are in all.
    pub invalid_count: usize,
    /// Leases that are not used, by subnet, with the reason; not all when there are many.
    pub skipped: BTreeMap<String, String>,
    /// How many there are in all.
    pub skipped_count: usize,
    /// Rows that were put right after somebody else changed them, since the start.
    pub repaired: u64,
    /// The kernel tables in order of their names.
    pub tables: BTreeMap<String, T>,
    /// What an operator should look into.
    pub warnings: Vec<String>,
}

/// This node and the network it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    /// Its address as the other nodes see it.
    pub public_ip: String,
    /// Its interface towards them.
    pub interface: String,
    /// The Pod network.
    pub network: String,
    /// Its own subnet, once it has one.
    pub subnet: Option<String>,
    /// The backend's name.
    pub backend: String,
    /// MTU of Pod interfaces in bytes.
    pub mtu: u32,
    /// Whether it counts checksums in its tunnel itself, and why; absent without such a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum_workaround: Option<String>,
    /// Every lease has been listed, every table is as desired, and nothing waits.
    pub in_sync: bool,
}

/// Where leases come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Store {
    /// `etcd`, `kubernetes` or `local`.
    pub kind: String,
    /// Everything has been listed once, so removals may run.
    pub complete: bool,
    /// A listing without any other node waits to be confirmed.
    pub doubted: bool,
    /// Why the store is out of reach.
    pub lost: Option<String>,
    /// How the last listing shows that the store is not the one that was listed before, if it does.
    pub broken: Option<String>,
    /// Why the lease could not be had or renewed.
    pub lease_trouble: Option<String>,
}

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Peer {
    /// Its address.
    pub public_ip: String,
    /// Its backend.
    pub backend: String,
    /// The link by which packets leave for it.
    pub path: String,
    /// What the last `netd doctor` found, once there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// What came of the probes to one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Probe {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Packets of Pods arrive.
    pub reached: bool,
    /// The largest packet that arrives, in bytes, up to what Pods send.
    pub largest: Option<u32>,
}
