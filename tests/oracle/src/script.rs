//! What was done in a step beyond its objects, one thing after another, and what clients saw then.
//!
//! Invariant: what was done is written in words, so whoever plays a script must know each of its rows by its words; a script that is of
//! no known kind is none of these and is reported by who plays it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::expect::Probe;

/// The rows of a script, all of one kind.
#[derive(Debug, Clone, Default)]
pub enum Script {
    /// Nothing was done.
    #[default]
    None,
    /// Clients that keep their endpoint connected to one address and then to the next.
    Kept(Vec<Kept>),
    /// Connections stayed open while endpoints came and went.
    Opened(Vec<Opened>),
    /// Sockets that stayed the same sent datagrams while endpoints came and went.
    Flows(Vec<Flows>),
    /// Clients that keep their endpoint connected while it went and came.
    Moved(Vec<Moved>),
    /// Clients that keep their endpoint for some time connected after less and after more.
    Timed(Vec<Timed>),
    /// Something that none of the recorded cases had, which nobody knows how to play.
    Unknown(String),
}

/// Many connections of each client to one address of a Service that keeps clients with their endpoint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// What kind of address it is: `clusterIP`, `nodePort`, `externalIP`.
    pub dest: String,
    /// 4 or 6; both where nothing is said.
    pub family: Option<u8>,
    #[serde(rename = "connections", default)]
    _connections: usize,
    /// Which endpoints answered each client, and how often.
    pub endpoints: BTreeMap<String, BTreeMap<String, usize>>,
}

/// What became of open connections and of new ones when something had been done.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    /// What.
    pub step: String,
    /// Who answered on the connections that were opened first, in their order.
    pub open: Vec<Answered>,
    /// What new connections met; without their addresses.
    pub new: Vec<Probe>,
}

/// Who answered on an open connection.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Answered {
    /// On that of a client to a kind of address.
    Of {
        /// The client.
        client: String,
        /// `clusterIP` or `nodePort`.
        dest: String,
        /// `answered by p11`.
        says: String,
    },
    /// On that of the new connection with the same number.
    Same(String),
}

/// Who answered datagrams when something had been done.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flows {
    /// What.
    pub step: String,
    #[serde(rename = "seconds")]
    _seconds: f64,
    /// Each client's.
    pub flows: Vec<Flow>,
}

/// Who answered the datagrams of one socket.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The client.
    pub client: String,
    /// `clusterIP` or `nodePort`.
    pub dest: String,
    #[serde(rename = "seen")]
    _seen: BTreeMap<String, usize>,
    #[serde(rename = "first_ms")]
    _first: BTreeMap<String, i64>,
    /// Who answered the last one.
    pub last: String,
}

/// Which endpoints answered each client, and how often, when something had been done.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// What.
    pub step: String,
    #[serde(rename = "removed", alias = "endpoint", default)]
    _endpoint: String,
    /// By client.
    pub seen: BTreeMap<String, BTreeMap<String, usize>>,
}

/// Who answered each client, connection after connection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// How long it waited between them, in words.
    pub what: String,
    /// By client.
    pub seen: BTreeMap<String, Vec<String>>,
}

impl<'de> Deserialize<'de> for Script {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let script = Value::deserialize(reader)?;
        if script.is_null() {
            return Ok(Self::None);
        }
        let rows = script.get("nftables").unwrap_or(&script).get("rows").cloned().unwrap_or_default();
        let has = |key: &str| rows.get(0).is_some_and(|row| row.get(key).is_some());
        let read = match () {
            () if has("endpoints") => serde_json::from_value(rows).map(Self::Kept),
            () if has("open") => serde_json::from_value(rows).map(Self::Opened),
            () if has("flows") => serde_json::from_value(rows).map(Self::Flows),
            () if has("what") => serde_json::from_value(rows).map(Self::Timed),
            () => serde_json::from_value(rows).map(Self::Moved),
        };
        Ok(read.unwrap_or_else(|error| Self::Unknown(error.to_string())))
    }
}
