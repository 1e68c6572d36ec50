//! What the page shows.
//!
//! Invariant: a field that is not there is as if nothing was known of it; the status and the Services are read from what the programs say
//! of themselves, of whatever version they are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::format::status::{Peer, Probe, StatusOf};

/// Everything, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// Version of this program.
    pub version: &'static str,
    /// The moment, in seconds since 1970.
    pub now: u64,
    /// What the daemon says of itself.
    pub status: Arc<Reported>,
    /// What the last probes found, by the nodes' subnets.
    pub probes: Arc<BTreeMap<String, Probe>>,
    /// The Pods of this node.
    pub pods: Arc<Vec<Pod>>,
    /// There are records of them: without, nobody knows whether there are Pods.
    pub has_records: bool,
    /// The Services, and what is known of the program that serves them.
    pub proxy: Arc<Proxy>,
    /// What has changed lately, the newest last.
    pub changes: Arc<Vec<Change>>,
}

impl Snapshot {
    /// The other nodes, by their subnets.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (&String, &Peer)> {
        self.status.leases.iter().flatten()
    }
}

/// What the daemon says of itself.
pub(crate) type Reported = StatusOf<Table>;

/// A table of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Table {
    /// Rows that are wanted.
    pub desired: usize,
    /// Those of them that are there.
    pub done: usize,
}

/// A Pod of this node, as the runtime's and the plugin's records have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pod {
    /// `namespace/name`, where the runtime said so.
    pub name: Option<String>,
    /// The container's id.
    pub container: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What is known of ipvs-proxy on this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Proxy {
    /// Why the Services are not known, or not of now.
    pub problem: Option<String>,
    /// What it serves.
    pub services: Option<Services>,
}

/// The Services that were searched for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Services {
    /// The data path.
    pub mode: String,
    /// How many there are.
    pub count: usize,
    /// How many have what was searched for.
    pub matching: usize,
    /// The first of these.
    pub services: Vec<Service>,
}

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    /// `namespace/name`.
    pub name: String,
    /// Where clients connect.
    pub places: Vec<Place>,
    /// How many places there are.
    pub place_count: usize,
}

/// An address and port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Place {
    /// Protocol, address and port.
    pub at: String,
    /// What the address is to the Service.
    pub kind: String,
    /// What becomes of connections.
    pub answer: String,
    /// Who takes them.
    pub endpoints: Vec<Endpoint>,
    /// How many there are.
    pub endpoint_count: usize,
}

/// An endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    /// Address and port.
    pub at: String,
    /// Its share of new connections.
    pub weight: u32,
    /// It runs on this node.
    pub here: Option<bool>,
}

/// What a line of a log is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something is other than before.
    Change,
    /// What somebody else had changed was put right.
    Repair,
    /// An operator should look into it.
    Warning,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Whose log.
    pub program: &'static str,
    /// Its number there.
    pub number: u64,
    /// What it is about.
    pub kind: Kind,
    /// What it says.
    pub text: String,
}
