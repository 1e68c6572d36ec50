//! `expect.json`: who tried what, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netstate::{IpFamily, Protocol};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::script::Script;
use crate::twin;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    #[serde(rename = "case")]
    _name: String,
    #[serde(rename = "what")]
    _what: String,
    #[serde(deserialize_with = "of_nftables")]
    pub(crate) runs: Vec<Run>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    #[serde(rename = "step")]
    pub(crate) name: String,
    #[serde(rename = "note", default)]
    _note: String,
    /// The size of kube-proxy's rules.
    #[serde(rename = "ruleset", default)]
    _ruleset: Value,
    #[serde(default = "yes")]
    pub(crate) determined: bool,
    pub(crate) api_refused: Option<String>,
    /// What clients saw while something was done.
    #[serde(default)]
    pub(crate) script: Script,
    #[serde(default)]
    pub(crate) probes: Vec<Probe>,
}

const fn yes() -> bool {
    true
}

/// How kube-proxy was set up, always in mode nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Run {
    /// Pods known by the cluster CIDR, NodePorts at the primary address.
    #[serde(rename = "nftables")]
    Plain,
    /// `masqueradeAll`.
    #[serde(rename = "nftables-masquerade-all")]
    MasqueradeAll,
    /// No cluster CIDR: nobody is known for a Pod.
    #[serde(rename = "nftables-no-detector")]
    NoDetector,
    /// NodePorts at the addresses in 10.4.7.0/24 and fd00:4:7::/64.
    #[serde(rename = "nftables-nodeport-cidr")]
    NodePortCidr,
    /// NodePorts at every address.
    #[serde(rename = "nftables-nodeport-all")]
    NodePortAll,
}

impl Run {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "nftables",
            Self::MasqueradeAll => "nftables-masquerade-all",
            Self::NoDetector => "nftables-no-detector",
            Self::NodePortCidr => "nftables-nodeport-cidr",
            Self::NodePortAll => "nftables-nodeport-all",
        }
    }
}

/// The runs of kube-proxy's mode nftables; a case may have been recorded in mode iptables as well.
fn of_nftables<'de, D: Deserializer<'de>>(reader: D) -> Result<Vec<Run>, D::Error> {
    let mut names: Vec<String> = Vec::deserialize(reader)?;
    names.retain(|name| name != "iptables");
    let run = |name: String| serde_json::from_value(Value::String(name)).map_err(D::Error::custom);
    names.into_iter().map(run).collect()
}

/// What one client tried, and what came of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Probe {
    /// `pod-n1`, `pod-n2`, `node-n1`, `outside`, `p11`.
    pub client: String,
    /// What kind of address it is, in words.
    #[serde(default)]
    pub dest: String,
    #[serde(default)]
    addr: String,
    /// The URL, of a question to the health server; then the answer has a status ([`Seen::status`]).
    pub http: Option<String>,
    #[serde(flatten)]
    plain: Seen,
    #[serde(default, deserialize_with = "other")]
    ipv6: Option<Seen>,
    #[serde(default)]
    differs: BTreeMap<String, Seen>,
}

/// What differs with IPv6; nothing where the file says `same`.
fn other<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<Seen>, D::Error> {
    match Value::deserialize(reader)? {
        Value::String(_) => Ok(None),
        other => Seen::deserialize(other).map(Some).map_err(D::Error::custom),
    }
}

/// A list of words, or words with counts.
fn words<'de, D: Deserializer<'de>, T: Ord + DeserializeOwned>(reader: D) -> Result<BTreeSet<T>, D::Error> {
    let words = match Value::deserialize(reader)? {
        Value::Object(counts) => counts.into_iter().map(|(word, _)| Value::String(word)).collect(),
        other => other,
    };
    serde_json::from_value(words).map_err(D::Error::custom)
}

/// What a client saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// What became of its connections; none of a question to the health server.
    pub outcome: Option<Outcome>,
    /// Who refused.
    pub by: Option<Refusal>,
    /// Who answered.
    #[serde(deserialize_with = "words")]
    pub endpoints: BTreeSet<String>,
    /// Whose address the endpoints saw.
    #[serde(deserialize_with = "words")]
    pub source: BTreeSet<Source>,
    /// Ports of endpoints that were not 8080, by their names.
    pub other_ports: Value,
    /// What the health server answered.
    pub status: Option<u16>,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Value,
    /// Why it did not answer.
    pub error: Option<String>,
}

/// What became of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// An endpoint took them.
    Answered,
    /// Somebody refused them.
    Refused,
    /// Nobody answered.
    Timeout,
    /// They could not be sent.
    Error,
    /// Not all met the same.
    Mixed,
}

/// Who refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Refusal {
    /// A rule: port unreachable.
    #[serde(rename = "icmp port unreachable", alias = "icmp 3/3")]
    Rule,
    /// The host itself: nobody listens.
    #[serde(rename = "tcp reset", alias = "rst")]
    Host,
    /// The sender's own output hook.
    #[serde(rename = "EPERM")]
    Output,
    /// Something that none of the recorded cases had.
    #[serde(other)]
    Other,
}

/// Whose address an endpoint saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The client's own.
    Client,
    /// That of n1's bridge: masqueraded.
    N1Bridge,
    /// One of n1's other addresses: masqueraded, or n1 itself was the client.
    N1Eth0,
    /// Something that none of the recorded cases had.
    #[serde(other)]
    Other,
}

impl Probe {
    /// The same at this address of IPv4, such as `10.96.7.1:80/tcp`.
    #[must_use]
    pub fn at(self, addr: String) -> Self {
        Self { addr, ..self }
    }

    /// Where it was tried; `None` of a ping or a question to the health server. A NodePort of the twin is 1000 higher.
    ///
    /// # Panics
    /// When the file says neither.
    #[must_use]
    pub fn to(&self, family: IpFamily) -> Option<(Protocol, SocketAddr)> {
        let (addr, protocol) = self.addr.split_once('/')?;
        let protocol = protocol.parse().ok()?;
        let addr: SocketAddr = addr.parse().unwrap();
        if family.is_v4() {
            return Some((protocol, addr));
        }
        let port = if self.dest.to_lowercase().contains("nodeport") { addr.port() + 1000 } else { addr.port() };
        Some((protocol, SocketAddr::new(twin::address(addr.ip()), port)))
    }

    /// What was pinged, if it was a ping.
    ///
    /// # Panics
    /// When the file has no address there.
    #[must_use]
    pub fn ping(&self, family: IpFamily) -> Option<IpAddr> {
        let addr: SocketAddr = self.addr.strip_suffix("/icmp")?.parse().unwrap();
        Some(if family.is_v4() { addr.ip() } else { twin::address(addr.ip()) })
    }

    /// What the client saw.
    #[must_use]
    pub fn seen(&self, run: Run, family: IpFamily) -> &Seen {
        let of = |name: &str| self.differs.get(name);
        let v4 = of(run.name());
        if family.is_v4() {
            return v4.unwrap_or(&self.plain);
        }
        of(&format!("{} ipv6", run.name())).or(v4).or(self.ipv6.as_ref()).unwrap_or(&self.plain)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {:?}, {:?} who see {:?}", self.outcome, self.by, self.endpoints, self.source)
    }
}
