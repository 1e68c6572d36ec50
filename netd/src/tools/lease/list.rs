//! The list of leases, for a terminal of 80 columns or as JSON.

use std::time::Duration;

use anyhow::Result;
use cluster::etcd::{Entry, Prefix, Store, TimeToLive};
use cluster::problem::elided;
use daemon::json;
use daemon::status::Lines;
use daemon::terminal;
use serde::Serialize;

use super::etcd;
use crate::format::lease::{SubnetKey, read_lease};

/// One key below `subnets/`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Row {
    /// Its name.
    key: String,
    /// The node's addresses, the families apart by a comma.
    public_ip: Option<String>,
    /// The node's backend.
    backend: Option<String>,
    /// It has no end.
    reservation: bool,
    /// Until it ends unless renewed.
    expires_in_seconds: Option<u64>,
    /// Since it was renewed.
    renewed_before_seconds: Option<u64>,
    /// Why it is no lease.
    invalid: Option<String>,
}

/// Prints every key.
///
/// # Errors
/// When etcd cannot be asked.
pub(super) async fn show(store: &Store, prefix: &Prefix, json: bool) -> Result<()> {
    let folder = etcd::subnets(prefix);
    let listing = store.list(&folder).await?;
    let mut rows = Vec::new();
    for entry in &listing.entries {
        rows.push(row(entry, etcd::remaining(store, entry).await?));
    }
    // As numbers, and not as their text: 10.244.2.0 before 10.244.10.0; behind them what is no key.
    rows.sort_by_cached_key(|row| row.key.parse::<SubnetKey>().map_err(drop));
    Ok(terminal::put(&if json { json::pretty(&rows)? } else { text(&folder, &rows) })?)
}

fn row(entry: &Entry, left: Option<TimeToLive>) -> Row {
    let row = Row {
        key: entry.key.clone(),
        reservation: entry.lease.is_none(),
        expires_in_seconds: left.map(|left| left.remaining.as_secs()),
        renewed_before_seconds: left.map(|left| left.granted.saturating_sub(left.remaining).as_secs()),
        ..Row::default()
    };
    match read_lease(&entry.key, &entry.value) {
        Ok(lease) => Row {
            public_ip: Some(lease.attrs.public_ips.list()),
            backend: Some(lease.attrs.backend.name().to_owned()),
            ..row
        },
        Err(reason) => Row { invalid: Some(reason), ..row },
    }
}

fn text(folder: &Prefix, rows: &[Row]) -> String {
    let mut lines = Lines::new();
    // Where a mistyped prefix is seen.
    if rows.is_empty() {
        lines.push(format_args!("no keys below {folder}"));
        return lines.into_text();
    }
    let wide = rows.iter().filter(|row| row.invalid.is_none()).map(|row| row.key.len()).max().unwrap_or(0).max(18);
    lines.push(format_args!("{:<wide$} {:<15} {:<10} {:<11} RENEWED", "SUBNET", "NODE", "BACKEND", "ENDS"));
    for row in rows {
        let subnet = row.key.parse::<SubnetKey>().map_or_else(|_| row.key.clone(), |key| key.list());
        if let Some(reason) = &row.invalid {
            lines.push(format_args!("! {}: {reason}", elided(row.key.clone())));
            continue;
        }
        let seconds = |seconds: Option<u64>| seconds.map(|seconds| duration(Duration::from_secs(seconds)));
        let ends = seconds(row.expires_in_seconds).map(|left| format!("in {left}"));
        let ends = ends.unwrap_or_else(|| if row.reservation { "never" } else { "now" }.to_owned());
        let renewed = seconds(row.renewed_before_seconds).map_or_else(String::new, |age| format!("{age} ago"));
        let backend = row.backend.as_deref().filter(|name| !name.is_empty()).unwrap_or("-");
        let node = row.public_ip.as_deref().unwrap_or_default();
        let line = format!("{subnet:<wide$} {node:<15} {backend:<10} {ends:<11} {renewed}");
        lines.push(format_args!("{}", line.trim_end()));
    }
    let reserved = rows.iter().filter(|row| row.reservation && row.invalid.is_none()).count();
    let invalid = rows.iter().filter(|row| row.invalid.is_some()).count();
    lines.push(format_args!("{} keys, {reserved} of them reservations, {invalid} not readable", rows.len()));
    lines.into_text()
}

/// A length of time in its two largest units.
#[must_use]
pub(super) fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest:02}s"),
        _ => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_fits_a_terminal_and_names_what_is_no_lease() {
        let lease = |key: &str, expires: Option<u64>, renewed| Row {
            key: key.to_owned(),
            public_ip: Some("192.168.100.121".to_owned()),
            backend: Some("wireguard".to_owned()),
            reservation: expires.is_none(),
            expires_in_seconds: expires,
            renewed_before_seconds: renewed,
            invalid: None,
        };
        let junk = |key: &str| Row { key: key.to_owned(), invalid: Some("no lease".to_owned()), ..Row::default() };
        let rows =
            [lease("172.27.121.128-25", Some(86_399), Some(1)), lease("172.7.22.0-24", None, None), junk("x\ny")];
        let folder = Prefix::parse("--etcd-prefix", "/coreos.com/network/subnets").unwrap();
        assert_eq!(text(&folder, &[]), "no keys below /coreos.com/network/subnets/\n");
        let endless = text(&folder, &[junk(&"z".repeat(1 << 20))]);
        assert!(endless.len() < 1000, "{} bytes", endless.len());
        let text = text(&folder, &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "SUBNET             NODE            BACKEND    ENDS        RENEWED",
                "172.27.121.128/25  192.168.100.121 wireguard  in 23h59m   1s ago",
                "172.7.22.0/24      192.168.100.121 wireguard  never",
                "! x\\ny: no lease",
                "3 keys, 1 of them reservations, 1 not readable",
            ]
        );
        assert!(lines.iter().all(|line| line.len() <= 80));
    }

    #[test]
    fn lengths_of_time_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (86_400, "24h00m")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
