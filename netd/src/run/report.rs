//! What the worker reports, passed on to the CNI plugin, the service manager and the operator.
//!
//! Invariants: the subnet file is written after the tables that this node's own Pods need are in place, never before.
//! Readiness is reported when these stand and every other row of the first plan that knew every lease was tried: a row
//! that the kernel refuses is named, and holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reconcile::{State, Status as TableStatus};
use tokio::time::Instant;

use super::daemon::Daemon;
use super::status::{self, Status};
use super::worker::Report;
use super::{files, start, subnet_file, tables};
use crate::format::lease::Lease;
use crate::source::LeaseSource;

/// Shortest time between two writes of the status file.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// Different complaints that are remembered, so that each is logged once.
const COMPLAINTS: usize = 1000;

/// What has been reported, and to whom.
#[derive(Default)]
pub(super) struct Reporter {
    tables: BTreeMap<&'static str, TableStatus>,
    warnings: Vec<String>,
    /// Keys besides the own one that name this node.
    pub(super) other_keys: Vec<String>,
    pub(super) lease_trouble: Option<String>,
    ready: bool,
    in_sync: bool,
    complaints: BTreeSet<String>,
    /// When the status file is written.
    status_at: Option<Instant>,
    /// The last write of the status file.
    status_written: Option<Instant>,
}

impl Reporter {
    /// Something that the status shows has changed.
    pub(super) fn note(&mut self) {
        let earliest = self.status_written.map_or_else(Instant::now, |last| last + STATUS_PAUSE);
        self.status_at.get_or_insert(earliest);
    }

    /// When the status file is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.status_at
    }

    /// Has `log` write a complaint that was not written before. When there are too many all are forgotten, and written
    /// again if they still hold.
    pub(super) fn complain(&mut self, text: String, log: impl FnOnce(&str)) {
        if self.complaints.contains(&text) {
            return;
        }
        log(&text);
        if self.complaints.len() >= COMPLAINTS {
            self.complaints.clear();
        }
        self.complaints.insert(text);
    }
}

impl<S: LeaseSource> Daemon<S> {
    pub(super) fn receive(&mut self, report: Report) {
        let latest = self.planning.is_latest(report.revision);
        let reporter = &mut self.reporter;
        reporter.tables = report.tables;
        reporter.warnings = report.warnings;
        reporter.note();
        // Parameters may be beyond our reach (a read-only /proc/sys); what carries packets is not.
        let carried = |(name, _): &(&&str, &TableStatus)| **name != "sysctls";
        reporter.in_sync = latest && reporter.tables.iter().filter(carried).all(|(_, status)| status.is_done());
        let local = tables::is_local_done(&reporter.tables);
        if latest && local {
            self.write_subnet_file();
        }
        if self.reporter.in_sync && self.witness.view.is_complete() {
            start::end_adoption(&self.node.config.run_dir);
        }
        let tried = self.reporter.tables.values().all(is_tried);
        if !self.reporter.ready && local && tried && self.planning.is_whole(report.revision) {
            self.reporter.ready = true;
            self.report_ready();
        }
    }

    fn report_ready(&self) {
        let leases = self.witness.view.count();
        let missing: usize = self.reporter.tables.values().map(|table| table.desired.saturating_sub(table.done)).sum();
        if missing == 0 {
            tracing::info!(leases, "ready: every lease is in the kernel");
        } else {
            tracing::warn!(leases, missing, "ready: rows that the kernel refused are missing; see `netd status`");
        }
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "the service manager cannot be notified");
        }
    }

    fn write_subnet_file(&mut self) {
        let (path, mtu) = (&self.node.config.subnet_file, self.planning.planner.pod_mtu());
        let ip_masq = self.node.config.masquerade.masquerade;
        let subnet = self.planning.planner.local().subnet;
        match subnet_file::write(path, &self.node.network, subnet, mtu, ip_masq) {
            Ok(true) => tracing::info!(file = %path.display(), "wrote the subnet file"),
            Ok(false) => {}
            Err(error) => self.reporter.complain(format!("write {}: {error}", path.display()), |text| {
                tracing::error!("{text}; Pods cannot be started");
            }),
        }
    }

    pub(super) fn write_status(&mut self) {
        self.reporter.status_at = None;
        self.reporter.status_written = Some(Instant::now());
        let path = self.node.config.run_dir.join(status::FILE);
        let written = serde_json::to_vec_pretty(&self.status()).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| files::replace(&path, &text)) {
            self.reporter.complain(format!("write {}: {error}", path.display()), |text| {
                tracing::error!("{text}; `netd status` will be old");
            });
        }
    }

    fn status(&self) -> Status {
        let (planner, view, reporter) = (&self.planning.planner, &self.witness.view, &self.reporter);
        let peer = |lease: &Lease| {
            let peer =
                status::Peer { public_ip: lease.attrs.public_ip.to_string(), backend: lease.attrs.backend.describe() };
            (lease.key.v4.to_string(), peer)
        };
        let contested =
            view.contested().map(|other| format!("another program writes this node's lease: {}", other.render()));
        let warnings = contested.into_iter().chain(reporter.other_keys.iter().cloned());
        let refused = planner.refused().iter().map(|(key, refusal)| {
            let name = key.v6.map_or_else(|| key.v4.to_string(), |_| key.to_string());
            (name, refusal.to_string())
        });
        let local = planner.local();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: status::Node {
                public_ip: local.public_ip.to_string(),
                interface: local.interface.to_string(),
                network: self.node.network.network.to_string(),
                subnet: self.held.as_ref().map(|held| held.key.v4.to_string()),
                backend: self.node.network.backend.name().to_owned(),
                mtu: planner.pod_mtu(),
                in_sync: reporter.in_sync,
            },
            store: status::Store {
                kind: self.source.kind().to_owned(),
                complete: view.is_complete(),
                doubted: view.is_doubted(),
                lost: view.lost().map(str::to_owned),
                lease_trouble: reporter.lease_trouble.clone(),
            },
            leases: planner.used().map(peer).collect(),
            invalid: view.invalid().map(|(key, why)| (key.to_owned(), why.to_owned())).collect(),
            skipped: refused.collect(),
            tables: reporter.tables.iter().map(|(name, table)| ((*name).to_owned(), table.into())).collect(),
            warnings: warnings.chain(reporter.warnings.iter().cloned()).collect(),
        }
    }
}

/// True when the table was listed and each of its desired rows is in place or was tried.
fn is_tried(table: &TableStatus) -> bool {
    let missing = table.desired.saturating_sub(table.done);
    // Desired rows come first among the open ones; rows to be removed may wait for the gate.
    table.observe_error.is_none() && table.open.iter().take(missing).all(|row| !matches!(row.state, State::Pending))
}
