//! What the daemon knows, for operators: /run/netd/status.json and `netd status`.
//!
//! Invariants: the file holds no secret, and it is replaced as a whole; a file of another version is read as far as it is
//! understood.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use reconcile::{RetryClass, State};
use serde::{Deserialize, Serialize};

/// Name of the file in the run-time folder.
pub const FILE: &str = "status.json";

/// Rows that are not in place which the file lists per table; beyond that only their number is told.
const LISTED_ROWS: usize = 100;

/// What the daemon knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// This node and the network it is in.
    pub node: Node,
    /// Where leases come from and how that stands.
    pub store: Store,
    /// The leases that are in use, by subnet.
    pub leases: BTreeMap<String, Peer>,
    /// Keys of the store that cannot be read, with the reason.
    pub invalid: BTreeMap<String, String>,
    /// Leases that are not used, by subnet, with the reason.
    pub skipped: BTreeMap<String, String>,
    /// The kernel tables in order of their names.
    pub tables: BTreeMap<String, Table>,
    /// What an operator should look into.
    pub warnings: Vec<String>,
}

/// This node and the network it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
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
    /// Every table is as desired, and nothing waits.
    pub in_sync: bool,
}

/// Where leases come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    /// `etcd` or `local`.
    pub kind: String,
    /// Everything has been listed once, so removals may run.
    pub complete: bool,
    /// A listing without any other node waits to be confirmed.
    pub doubted: bool,
    /// Why the store cannot be heard.
    pub lost: Option<String>,
    /// Why the lease could not be had or renewed.
    pub lease_trouble: Option<String>,
}

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Its address.
    pub public_ip: String,
    /// Its backend.
    pub backend: String,
}

/// One kernel table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Table {
    /// Rows that are desired.
    pub desired: usize,
    /// Of these, rows in place.
    pub done: usize,
    /// Why the table could not be listed.
    pub error: Option<String>,
    /// Rows that are not as they should be, at most 100.
    pub open: Vec<Row>,
    /// How many there are in all.
    pub open_count: usize,
}

/// One row that is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// The row.
    pub key: String,
    /// `pending`, `waiting` (for something it needs), `retrying` or `refused`.
    pub state: String,
    /// Why the last try failed.
    pub reason: String,
    /// Failures in a row.
    pub times: u32,
}

impl From<&reconcile::Status> for Table {
    fn from(status: &reconcile::Status) -> Self {
        Self {
            desired: status.desired,
            done: status.done,
            error: status.observe_error.clone(),
            open: status.open.iter().take(LISTED_ROWS).map(Row::from).collect(),
            open_count: status.open.len(),
        }
    }
}

impl From<&reconcile::Row> for Row {
    fn from(row: &reconcile::Row) -> Self {
        let (state, reason, times) = match &row.state {
            State::Pending => ("pending", String::new(), 0),
            State::Done => ("done", String::new(), 0),
            State::Failed { class, reason, times, .. } => {
                let state = match class {
                    RetryClass::Retry => "retrying",
                    RetryClass::Wait => "waiting",
                    RetryClass::Refuse => "refused",
                };
                (state, reason.clone(), *times)
            }
        };
        Self { key: row.key.clone(), state: state.to_owned(), reason, times }
    }
}

impl Status {
    /// The text for a terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let node = &self.node;
        let subnet = node.subnet.as_deref().unwrap_or("none yet");
        let sync = if node.in_sync { "in sync" } else { "not in sync" };
        let _ = writeln!(text, "node     {} on {}: {sync}", node.public_ip, node.interface);
        let _ = writeln!(text, "subnet   {subnet} of {}, {}, Pod MTU {}", node.network, node.backend, node.mtu);
        let state = if self.store.complete { "listed" } else { "not yet listed" };
        let _ = writeln!(text, "store    {}: {state}", self.store.kind);
        let troubles = [("store", &self.store.lost), ("lease", &self.store.lease_trouble)];
        for (what, trouble) in troubles.into_iter().filter_map(|(what, trouble)| Some((what, trouble.as_ref()?))) {
            let _ = writeln!(text, "!        {what}: {trouble}");
        }
        if self.store.doubted {
            let _ = writeln!(
                text,
                "!        store: shows no other node; waiting for a second look before anything is removed"
            );
        }
        let _ = writeln!(text, "leases   {} other nodes", self.leases.len());
        for (subnet, peer) in &self.leases {
            let _ = writeln!(text, "         {subnet:<20} {:<16} {}", peer.public_ip, peer.backend);
        }
        for (what, list) in [("invalid", &self.invalid), ("skipped", &self.skipped)] {
            for (key, reason) in list {
                let _ = writeln!(text, "!        {what} {key}: {reason}");
            }
        }
        for (name, table) in &self.tables {
            let _ = writeln!(text, "table    {name:<12} {} of {} rows in place", table.done, table.desired);
            table.render(&mut text);
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "!        {warning}");
        }
        text
    }
}

impl Table {
    fn render(&self, text: &mut String) {
        if let Some(error) = &self.error {
            let _ = writeln!(text, "!        {error}");
        }
        for row in &self.open {
            let _ = writeln!(text, "!        {} {}: {}", row.state, row.key, row.reason);
        }
        if self.open_count > self.open.len() {
            let _ = writeln!(text, "!        and {} more", self.open_count - self.open.len());
        }
    }
}
