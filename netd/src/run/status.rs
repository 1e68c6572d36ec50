//! What the daemon knows, for operators: /run/netd/status.json and `netd status`.
//!
//! The file has how many leases are in use, and only the running daemon which: it is written whole after every change.
//! Invariants: it holds no secret; its lists of what is wrong are bounded; a file of another version is read as far as it
//! is understood.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::problem::elided;
use daemon::status::{LISTED, Lines, Table};
use serde::Deserialize as _;
use serde_json::Value;

pub(crate) use crate::format::status::{Node, Peer, Probe, Store};

/// The field that is only in the whole status.
pub(super) const DETAILS: &str = "leases";

/// What the daemon knows, with all of its tables.
pub(crate) type Status = crate::format::status::StatusOf<Table>;

/// Where a list of subnets begins.
fn first_address(subnets: &str) -> Option<IpAddr> {
    subnets.split(['/', ',']).next()?.parse().ok()
}

/// The clock, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A status for a terminal.
#[must_use]
pub(crate) fn text(status: &Value) -> String {
    // Before the first status there is nothing to say.
    Status::deserialize(status).map(|status| status.render()).unwrap_or_default()
}

/// A status of a daemon that does not run any more: nobody knows whether the kernel is as desired.
#[must_use]
pub(crate) fn outdated(mut status: Value) -> Value {
    if let Some(Value::Object(node)) = status.get_mut("node") {
        node.insert("in_sync".to_owned(), false.into());
    }
    status
}

/// The first items of a list of what is wrong. Whoever writes a key chooses its length, and the whole has to be read.
pub(super) fn listed(items: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    items.into_iter().take(LISTED).map(|(key, reason)| (elided(key), elided(reason))).collect()
}

/// What ends a lease, for an operator: an etcd lease as `etcdctl` writes it.
pub(super) fn end_of(token: Option<i64>) -> String {
    token.map_or_else(|| "no etcd lease".to_owned(), |token| format!("etcd lease {token:x}"))
}

impl Status {
    /// Of a daemon that has not begun, because `missing` is not there.
    pub(super) fn awaiting(kind: &str, missing: &str) -> Self {
        let trouble = Some(missing).filter(|missing| !missing.is_empty()).map(str::to_owned);
        let store = Store { kind: kind.to_owned(), lost: trouble, ..Store::default() };
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), store, ..Self::default() }
    }

    /// The text for a terminal.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let mut lines = Lines::new();
        let node = &self.node;
        let subnet = node.subnet.as_deref().unwrap_or("none yet");
        let sync = if node.in_sync { "in sync" } else { "not in sync" };
        if node.interface.is_empty() {
            lines.push(format_args!("node     not begun yet"));
        } else {
            lines.push(format_args!("node     {} on {}: {sync}", node.public_ip, node.interface));
            lines.push(format_args!("subnet   {subnet} of {}, {}, Pod MTU {}", node.network, node.backend, node.mtu));
        }
        if let Some(workaround) = &node.checksum_workaround {
            lines.push(format_args!("checksum workaround {workaround}"));
        }
        let state = if self.store.complete { "listed" } else { "not yet listed" };
        lines.push(format_args!("store    {}: {state}", self.store.kind));
        let store = &self.store;
        let troubles = [("store", &store.lost), ("store", &store.broken), ("lease", &store.lease_trouble)];
        for (what, trouble) in troubles.into_iter().filter_map(|(what, trouble)| Some((what, trouble.as_ref()?))) {
            lines.push(format_args!("!        {what}: {trouble}"));
        }
        if self.store.doubted {
            let text = "lacks leases that were there; waiting for a second look before anything is removed";
            lines.push(format_args!("!        store: {text}"));
        }
        // A file of an earlier version has the leases and not their number.
        let count = self.leases.as_ref().map_or(self.lease_count, BTreeMap::len);
        let note = if self.leases.is_none() { "; which, only the running daemon says" } else { "" };
        lines.push(format_args!("leases   {count} other nodes{note}"));
        let mut peers: Vec<(&String, &Peer)> = self.leases.iter().flatten().collect();
        // As numbers, and not as their text: 10.244.2.0 before 10.244.10.0.
        peers.sort_by_cached_key(|(subnet, _)| first_address(subnet));
        for (subnet, peer) in peers {
            // The status as JSON has the hardware address or key as well.
            let kind = peer.backend.split(' ').next().unwrap_or_default();
            let path = format!("{kind} {}", peer.path);
            let line = format!("{subnet:<18} {:<15} {path:<16} {}", peer.public_ip, self.probe(peer));
            lines.push(format_args!("         {}", line.trim_end()));
        }
        self.render_wrong(&mut lines);
        if self.repaired > 0 {
            lines.push(format_args!("repaired {} rows that somebody else had changed", self.repaired));
        }
        for (name, table) in &self.tables {
            lines.push(format_args!("table    {name:<12} {} of {} rows in place", table.done, table.desired));
            table.write_open(&mut lines, "!        ");
        }
        for warning in &self.warnings {
            lines.push(format_args!("!        {warning}"));
        }
        lines.into_text()
    }

    /// MTU on the way to a node, and what the last probe found.
    fn probe(&self, peer: &Peer) -> String {
        let Some(probe) = &peer.probe else { return self.node.mtu.to_string() };
        let mtu = probe.largest.unwrap_or_default();
        let minutes = now().saturating_sub(probe.at) / 60;
        let age = if minutes < 600 { format!("{minutes}m ago") } else { format!("{}h ago", minutes / 60) };
        if probe.reached { format!("{mtu} {age}") } else { format!("lost {age}") }
    }

    fn render_wrong(&self, lines: &mut Lines) {
        for (what, list, count) in
            [("invalid", &self.invalid, self.invalid_count), ("skipped", &self.skipped, self.skipped_count)]
        {
            for (key, reason) in list {
                lines.push(format_args!("!        {what} {key}: {reason}"));
            }
            if let Some(more) = count.checked_sub(list.len()).filter(|more| *more > 0) {
                lines.push(format_args!("!        {what}: and {more} more"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_named_when_they_are_known_and_counted_when_not() {
        let mut status = Status { lease_count: 1, ..Status::default() };
        let value = serde_json::to_value(&status).unwrap();
        assert!(value.get(DETAILS).is_none(), "{value}");
        assert!(text(&value).contains("leases   1 other nodes; which, only the running daemon says\n"));
        let mut peer = Peer {
            public_ip: "192.168.100.122".to_owned(),
            backend: "vxlan 02:00:00:00:00:22".to_owned(),
            path: "flannel.1".to_owned(),
            probe: None,
        };
        status.node.mtu = 1450;
        status.leases = Some(BTreeMap::from([("172.27.122.128/25".to_owned(), peer.clone())]));
        let line = |status: &Status| {
            let text = text(&serde_json::to_value(status).unwrap());
            assert!(text.contains("leases   1 other nodes\n") && text.lines().all(|line| line.len() <= 80), "{text}");
            text.lines().find_map(|line| line.strip_prefix("         172.27.122.128/25  ")).unwrap().to_owned()
        };
        assert_eq!(line(&status), "192.168.100.122 vxlan flannel.1  1450");
        for (probe, shown) in [
            (Probe { at: now() - 130, reached: true, largest: Some(1372) }, "1372 2m ago"),
            (Probe { at: now() - 100 * 3600, reached: false, largest: None }, "lost 100h ago"),
        ] {
            peer.probe = Some(probe);
            status.leases = Some(BTreeMap::from([("172.27.122.128/25".to_owned(), peer.clone())]));
            assert_eq!(line(&status), format!("192.168.100.122 vxlan flannel.1  {shown}"));
        }
    }

    #[test]
    fn a_key_or_a_reason_of_any_length_leaves_the_status_readable() {
        let long = |number: usize| (format!("{number} {}", "x".repeat(1 << 20)), "y".repeat(1 << 20));
        let listed = listed((0..LISTED + 3).map(long));
        assert_eq!(listed.len(), LISTED);
        let length: usize = listed.iter().map(|(key, reason)| key.len() + reason.len()).sum();
        assert!(length < 1000 * LISTED, "{length} bytes");
    }

    #[test]
    fn a_key_of_the_store_cannot_forge_a_line_and_lists_are_bounded() {
        let mut invalid = vec![("x\nnode     10.4.7.21 on eth0: in sync".to_owned(), "no\u{1b}[2J lease".to_owned())];
        invalid.extend((0..1000).map(|number| (format!("y{number:04}"), "no lease".to_owned())));
        let status = Status { invalid_count: invalid.len(), invalid: listed(invalid), ..Status::default() };
        let text = text(&serde_json::to_value(&status).unwrap());
        assert_eq!(text.lines().filter(|line| line.starts_with("node")).count(), 1, "{text}");
        assert!(
            text.contains("!        invalid x\\nnode     10.4.7.21 on eth0: in sync: no\\u{1b}[2J lease\n"),
            "{text}"
        );
        assert!(text.contains("!        invalid: and 901 more\n") && !text.contains("y0999"), "{text}");
    }
}
