//! What the worker reports, passed on to the CNI plugin, the service manager and the operator.
//!
//! Invariants: the subnet file is written after the tables that this node's own Pods need are in place, never before.
//! Readiness is reported when these stand and every other row of the first plan that knew every lease was tried: a row
//! that the kernel refuses is named, and holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use daemon::status::{LISTED, is_tried};
use netstate::Prefix;
use reconcile::TableStatus;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::daemon::Daemon;
use super::file_contest::{self, FileContest};
use super::notification::Notification;
use super::silent::Changed;
use super::status::{self, Status, listed};
use super::worker::Report;
use super::{LEASES, TABLES, published, records, subnet_file};
use crate::choose::clash::clashes;
use crate::format::lease::Lease;
use crate::source::LeaseSource;

/// Shortest time between two statuses.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// Different complaints that are remembered, so that each is logged once.
const COMPLAINTS: usize = 1000;

/// What has been reported, and to whom.
#[derive(Default)]
pub(super) struct Reporter {
    tables: BTreeMap<&'static str, TableStatus>,
    warnings: Vec<String>,
    /// Networks of this host that share addresses with the Pod network.
    pub(super) clashes: Vec<String>,
    /// Keys besides the own one that name this node.
    pub(super) other_keys: Vec<String>,
    pub(super) lease_trouble: Option<String>,
    /// The subnet file is gone until this node holds a lease: what it named is another node's.
    pub(super) withdrawn: bool,
    /// Why the subnet file is not as it should be.
    file_trouble: Option<String>,
    /// Why a family that has come is not served.
    pub(super) refused_family: Option<String>,
    ready: bool,
    in_sync: bool,
    /// The tables that this node's own Pods need stand as they were planned last.
    local_stands: bool,
    /// The same of the last plan that the worker has carried out, with the reason.
    pub(super) stands: Option<Result<(), String>>,
    complaints: BTreeSet<String>,
    /// Somebody else's changes of the subnet file.
    file: FileContest,
    /// When the next status is put up.
    status_at: Option<Instant>,
    /// When the last one was.
    status_put: Option<Instant>,
}

impl Reporter {
    /// When the subnet file is put right.
    pub(super) const fn file_due(&self) -> Option<Instant> {
        self.file.at
    }

    /// The system refused to write or remove a file.
    pub(super) fn try_files_again(&mut self) {
        self.file.fail(Instant::now());
    }

    /// Why the subnet file is not as it should be, if it is not.
    fn note_file(&mut self, trouble: Option<String>) {
        if self.file_trouble != trouble {
            self.file_trouble = trouble;
            self.note();
        }
    }

    /// Something that the status shows has changed.
    pub(super) fn note(&mut self) {
        let earliest = self.status_put.map_or_else(Instant::now, |last| last + STATUS_PAUSE);
        self.status_at.get_or_insert(earliest);
    }

    /// The worker has been given another plan.
    pub(super) const fn expect_report(&mut self) {
        self.local_stands = false;
    }

    /// When the next status is due.
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
        // The own tables are made while the first leases are listed: they alone are not everything.
        let whole = self.planning.is_whole(report.revision);
        let reporter = &mut self.reporter;
        reporter.tables = report.tables;
        reporter.warnings = report.warnings;
        reporter.note();
        // Parameters may be beyond our reach (a read-only /proc/sys); what carries packets is not.
        let carried = |(name, _): &(&&str, &TableStatus)| **name != "sysctls";
        reporter.in_sync =
            latest && whole && reporter.tables.iter().filter(carried).all(|(_, status)| status.is_done());
        let local = is_local_done(&reporter.tables);
        reporter.local_stands = latest && local;
        if latest {
            reporter.stands = Some(published::stands(&reporter.tables));
        }
        if latest && local {
            self.announce();
        }
        let _ = self.inform_plugin();
        self.end_adoption();
        if !self.reporter.ready && whole {
            self.shell.open_gate(LEASES);
            let waiting = report.counts.iter().find(|(_, counts)| !is_tried(counts));
            // Whoever starts Pods begins when this program is ready, with the subnet file.
            if self.reporter.local_stands && waiting.is_none() {
                self.reporter.ready = true;
                // Whoever waits for that reads it next.
                self.put_status();
                self.report_ready();
            } else if let Some((name, counts)) = waiting {
                let reason = format!("{name}: {} of {} rows in place", counts.done, counts.desired);
                self.shell.readiness.await_for(TABLES, &reason);
            }
        }
    }

    fn end_adoption(&mut self) {
        if self.reporter.in_sync
            && self.witness.view.is_complete()
            && let Err(error) = records::end_adoption(&self.node.config.run_dir)
        {
            let text = format!("this is still a first start for the next one: {error}");
            self.reporter.complain(text, |text| tracing::warn!("{text}"));
            self.reporter.try_files_again();
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
        self.shell.open_gate(TABLES);
    }

    /// Something that no table shows may have changed.
    pub(super) fn on_silent(&mut self, changed: Changed) {
        match changed {
            Changed::File => self.reporter.file.note(Instant::now()),
            Changed::Parameter => {
                if let Some(worker) = &self.worker {
                    worker.mailbox().changed(Notification::Parameter);
                }
            }
        }
    }

    /// Puts the subnet file right after a change of somebody else's, or where the system refused that before.
    pub(super) fn restore_file(&mut self) {
        self.reporter.file.at = None;
        let failed = std::mem::take(&mut self.reporter.file.failed);
        if failed {
            self.write_record();
            self.end_adoption();
        }
        if failed && self.reporter.withdrawn {
            self.withdraw_file();
        } else if self.inform_plugin() && !failed {
            self.reporter.file.repaired(Instant::now());
            let (path, times) = (self.node.config.subnet_file.display(), self.reporter.file.times);
            if times > file_contest::PATIENCE {
                let text = format!(
                    "somebody else keeps changing {path}: it is put right ever more slowly. Does a flanneld run here, or \
                     another netd with this --subnet-file?"
                );
                self.reporter.complain(text, |text| tracing::warn!("{text}"));
            } else {
                tracing::warn!("somebody else has changed {path}; it is put right");
            }
        }
    }

    /// Watches what no table shows.
    pub(super) fn watch_silent(&mut self) {
        let parameters = self.planning.planner.parameters();
        self.silent.watch(parameters.iter());
    }

    /// Writes the subnet file if what it promises stands. Returns whether it had to be written.
    pub(super) fn inform_plugin(&mut self) -> bool {
        if !self.reporter.local_stands || self.reporter.withdrawn {
            return false;
        }
        let (path, ip_masq) = (&self.node.config.subnet_file, self.node.config.masquerade.masquerade);
        match subnet_file::write(path, &self.node.network, &self.planning.planner, ip_masq) {
            Ok(true) => {
                self.reporter.note_file(None);
                tracing::info!(file = %path.display(), "wrote the subnet file");
                // Its folder may be a new one.
                self.watch_silent();
                return true;
            }
            Ok(false) => self.reporter.note_file(None),
            Err(error) => {
                let text = format!("write {}: {error}; Pods cannot be started", path.display());
                self.reporter.complain(text.clone(), |text| tracing::error!("{text}"));
                self.reporter.note_file(Some(text));
                self.reporter.try_files_again();
            }
        }
        false
    }

    /// Takes the subnet file away: a Pod that was started by it would have an address of another node's subnet.
    pub(super) fn withdraw_file(&mut self) {
        self.reporter.withdrawn = true;
        let path = self.node.config.subnet_file.display();
        match std::fs::remove_file(&self.node.config.subnet_file) {
            Ok(()) => tracing::error!(
                "{path} is removed, so that no more Pods are started: another node holds the lease of the subnet that it named, and no \
                 other subnet is free"
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let text = format!("{path} names the subnet of another node, and cannot be removed: {error}");
                self.reporter.complain(text, |text| tracing::error!("{text}"));
                self.reporter.try_files_again();
            }
        }
    }

    /// Reports what came into conflict with the Pod network on this host.
    pub(super) fn report_clashes(&mut self) {
        // Before the lease is held, a bridge from before is in a subnet that is not known to be the own one.
        if self.held.is_none() {
            return;
        }
        let own: Vec<Prefix> = self.planning.planner.local().subnets().collect();
        let clashes = clashes(&self.node.network, &own, &self.external.host);
        if clashes == self.reporter.clashes {
            return;
        }
        for clash in &clashes {
            self.reporter.complain(clash.clone(), |text| tracing::warn!("{text}"));
        }
        self.reporter.clashes = clashes;
        self.reporter.note();
    }

    /// Puts the status up, for the file and whoever asks.
    pub(super) fn put_status(&mut self) {
        self.reporter.status_at = None;
        self.reporter.status_put = Some(Instant::now());
        let view = &self.witness.view;
        self.shell.metrics.source("leases", view.lost().is_none(), view.is_complete());
        let planner = &self.planning.planner;
        let (used, skipped) = (planner.used_count(), planner.refused().len());
        for (state, count) in [("used", used), ("skipped", skipped), ("invalid", view.invalid_count())] {
            self.shell.metrics.objects(state, count);
        }
        self.responder.serve(self.planning.planner.local());
        self.shell.board.set(&self.status());
        self.source.publish(self.node_state());
    }

    /// What the status has besides for those who ask: every lease. It grows with the cluster, so it is in no file.
    pub(super) fn details(&self) -> Map<String, Value> {
        let peer = |lease: &Lease| {
            let peer = json!({
                "public_ip": lease.attrs.public_ips.list(),
                "backend": lease.attrs.backend.describe(),
                "path": self.planning.planner.path(lease),
            });
            (lease.key.list(), peer)
        };
        let leases: Map<String, Value> = self.planning.planner.used().map(peer).collect();
        Map::from_iter([(status::DETAILS.to_owned(), leases.into())])
    }

    fn status(&self) -> Status {
        let (planner, view, reporter) = (&self.planning.planner, &self.witness.view, &self.reporter);
        let contested =
            view.contested().map(|other| format!("another program writes this node's lease: {}", other.render()));
        let rebound = view.rebound().map(|token| {
            let end = status::end_of(token);
            format!("another program bound this node's lease to {end}: does flanneld run beside netd, here or on a node with this address?")
        });
        let (change, local) = (self.change_remarks(), planner.local());
        let warnings = contested
            .into_iter()
            .chain(rebound)
            .chain(planner.node_remarks())
            .chain(reporter.refused_family.iter().cloned())
            .chain(self.external.missing.clone())
            .chain(reporter.file_trouble.clone())
            .chain(local.refuses_mtu(planner.pod_mtu()))
            .chain(reporter.other_keys.iter().cloned())
            .chain(change)
            .chain(reporter.clashes.iter().take(LISTED).cloned())
            .chain(planner.remarks().take(LISTED));
        let refused = planner.refused().iter().map(|(key, refusal)| (key.list(), refusal.to_string()));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: status::Node {
                public_ip: local.public_ips().list(),
                interface: local.interface.to_string(),
                network: self.node.network.to_string(),
                subnet: self.held.as_ref().map(|held| held.key.list()),
                backend: self.node.network.backend.name().to_owned(),
                mtu: planner.pod_mtu(),
                checksum_workaround: self.node.network.backend.checksum_workaround(local),
                in_sync: reporter.in_sync,
            },
            store: status::Store {
                kind: self.source.kind().to_owned(),
                complete: view.is_complete(),
                doubted: view.is_doubted(),
                lost: view.lost().map(str::to_owned),
                broken: view.broken().map(|reason| reason.to_string()),
                lease_trouble: reporter.lease_trouble.clone(),
            },
            leases: None,
            lease_count: planner.used_count(),
            invalid: listed(view.invalid().map(|(key, why)| (key.to_owned(), why.to_owned()))),
            invalid_count: view.invalid_count(),
            skipped: listed(refused),
            skipped_count: planner.refused().len(),
            tables: reporter.tables.iter().map(|(name, table)| ((*name).to_owned(), table.into())).collect(),
            repaired: self.shell.metrics.repaired(),
            warnings: warnings.chain(reporter.warnings.iter().cloned()).collect(),
        }
    }
}

/// Names of the tables that this node's own Pods need, whatever the other nodes do.
pub(super) const LOCAL: [&str; 3] = ["links", "addresses", "nft"];

/// True when the rows that this node's own Pods need are in place.
#[must_use]
pub(super) fn is_local_done(status: &BTreeMap<&'static str, TableStatus>) -> bool {
    LOCAL.iter().all(|name| status.get(name).is_some_and(TableStatus::is_done))
}
