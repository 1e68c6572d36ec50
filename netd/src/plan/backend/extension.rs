//! The `extension` backend: the operator's own program carries the packets.
//!
//! flannel runs shell commands for it. This program executes nothing; it keeps files that say what flannel's commands
//! were given, and the operator's program watches the folder. Invariant: the files are a table like any other: one of
//! this node and one of each usable lease, whole at any time, gone when the lease is.

use std::fmt;

use netstate::family::{IpFamily, PerFamily};
use serde_json::value::RawValue;

use crate::format::go_json::Object;
use crate::format::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::format::net_conf::Network;
use crate::plan::{LocalNode, Tables};
use cluster::Problem;

pub(super) const NAME: &str = "extension";

/// flannel's hooks, each with the file that takes its place.
const COMMANDS: [(&str, &str); 5] = [
    ("PreStartupCommand", "write what it printed to <run-dir>/extension/backend-data before netd starts"),
    ("PostStartupCommand", "watch <run-dir>/extension/node.env"),
    ("SubnetAddCommand", "watch <run-dir>/extension/subnets/ for files that appear or change"),
    ("SubnetRemoveCommand", "watch <run-dir>/extension/subnets/ for files that go"),
    ("ShutdownCommand", "the data path outlives netd; let the service manager run what shall end with it"),
];

/// The text of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileText(pub(crate) String);

impl fmt::Display for FileText {
    /// On one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Refuses commands by name; there are no other options.
pub(super) fn take(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<()> {
    let known = problems.len();
    for (command, instead) in COMMANDS {
        let given = backend.take_raw(command).filter(|raw| !matches!(raw.get(), "null" | "\"\""));
        if given.is_some() {
            let message = format!("netd executes no commands; instead, {instead} (docs/extension.md)");
            problems.push(Problem::new(format!("Backend.{command}"), message, "leave it out"));
        }
    }
    (problems.len() == known).then_some(())
}

/// The longest text of an operator's program, in bytes.
const LONGEST: usize = 64 * 1024;

/// What the operator's program says of a node, in its lease: no longer than one that netd takes from its own.
pub(super) fn take_attrs(field: &str, lease: &mut Object, problems: &mut Vec<Problem>) -> Option<String> {
    let data: String = lease.take(field, "a text", problems)?;
    if data.len() > LONGEST {
        let accepted = format!("a text of at most {LONGEST} bytes");
        problems.push(Problem::new(field, format!("{} bytes", data.len()), accepted));
        return None;
    }
    Some(data)
}

pub(super) fn render_attrs(data: &String) -> Option<Box<RawValue>> {
    // Serializing a text has no way to fail.
    serde_json::value::to_raw_value(data).ok()
}

/// What this node's program says, for each of its families.
pub(super) fn data(local: &LocalNode) -> PerFamily<Option<String>> {
    local.places.map(|_, place| place.and(local.data.clone()))
}

/// The file of this node: what flannel gives to `PostStartupCommand`.
pub(super) fn local_rows(network: &Network, local: &LocalNode) -> Tables {
    let networks = network.pools.as_ref().map(|_, pool| pool.as_ref().map(|pool| pool.network.to_string()));
    let subnets = local.places.map(|_, place| place.map(|place| place.subnet.to_string()));
    let ips = local.public_ips().map(|_, ip| ip.map(|ip| ip.to_string()));
    let lines = [
        ("NETWORK", networks.v4),
        ("IPV6NETWORK", networks.v6),
        ("SUBNET", subnets.v4),
        ("IPV6SUBNET", subnets.v6),
        ("PUBLIC_IP", ips.v4),
        ("PUBLIC_IPV6", ips.v6),
        ("MTU", Some(local.mtu.to_string())),
    ];
    let file = file("node.env".to_owned(), lines, local.data.as_ref());
    Tables { files: [file].into(), ..Tables::default() }
}

/// The file of another node: what flannel gives to `SubnetAddCommand`, with its input behind an empty line.
pub(super) fn lease_row(lease: &Lease, data: &PerFamily<Option<String>>) -> (String, FileText) {
    let Lease { key, attrs: LeaseAttrs { public_ips, .. } } = lease;
    let subnet = |family| key.get(family).map(|subnet| subnet.to_string());
    let lines = [
        ("SUBNET", subnet(IpFamily::V4)),
        ("IPV6SUBNET", subnet(IpFamily::V6)),
        ("PUBLIC_IP", public_ips.v4.map(|ip| ip.to_string())),
        ("PUBLIC_IPV6", public_ips.v6.map(|ip| ip.to_string())),
    ];
    file(path(key), lines, data.v4.as_ref().or(data.v6.as_ref()))
}

fn path(key: &SubnetKey) -> String {
    format!("subnets/{key}")
}

fn file(
    name: String,
    lines: impl IntoIterator<Item = (&'static str, Option<String>)>,
    data: Option<&String>,
) -> (String, FileText) {
    let present = lines.into_iter().filter_map(|(key, value)| Some(format!("{key}={}\n", value?)));
    let text = present.collect::<String>() + "\n" + data.map_or("", String::as_str);
    (name, FileText(text))
}
