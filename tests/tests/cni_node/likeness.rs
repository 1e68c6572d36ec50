//! Calls and cache files of two runtimes side by side: what differs by nature is made equal, everything else must be.
//!
//! Invariant: only values are replaced that a container brings with it (its namespace, its addresses); keys, order of calls and
//! presence of members are compared as they are.

use anyhow::{Context, Result};
use lab::Host;
use serde_json::Value;

/// A value with the container's own values replaced by their kinds.
pub(crate) fn likened(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::from(kind(text)),
        Value::Array(values) => values.iter().map(likened).collect(),
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), likened(value))).collect(),
        other => other.clone(),
    }
}

fn kind(text: &str) -> &str {
    let is_mac = text.len() == 17 && text.split(':').all(|byte| u8::from_str_radix(byte, 16).is_ok());
    match text {
        _ if ["/run/netns/", "/var/run/netns/", "/proc/"].iter().any(|folder| text.starts_with(folder)) => "NAMESPACE",
        _ if is_mac => "MAC",
        _ if text.starts_with("172.7.21.") && text.ends_with("/24") => "ADDRESS",
        // Names of host ends are made of container and interface, but the lab's container may have another ID.
        _ if text.starts_with("veth") => "VETH",
        _ => text,
    }
}

/// The only entry of libcni's cache, likened; `netns` is left to the comparison of the calls.
pub(crate) fn cached(host: &Host) -> Result<Value> {
    let names = host.run(&["ls", "/var/lib/cni/results"])?.stdout;
    let name = names.lines().next().context("nothing is cached")?;
    Ok(likened(&serde_json::from_str(&host.read(format!("/var/lib/cni/results/{name}"))?)?))
}
