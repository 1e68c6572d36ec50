//! What the kernel's side reports, told to the CNI plugin, the service manager and the operator.
//!
//! Invariants: the subnet file is written after the tables that this node's own Pods need are in place, never before;
//! readiness is told after the first plan that knows every lease is in place.

use reconcile::Status as TableStatus;
use tokio::time::Instant;

use super::{Daemon, Ears};
use crate::format::lease::{BackendAttrs, Lease};
use crate::plan;
use crate::run::status::{self, Status};
use crate::run::worker::Report;
use crate::run::{files, subnet_file, tables};

impl Daemon {
    pub(super) fn take_report(&mut self, report: Report) {
        self.tables = report.tables;
        self.warnings = report.warnings;
        self.tell_soon();
        if report.revision == self.revision && tables::is_local_done(&self.tables) {
            self.write_subnet_file();
        }
        // Parameters may be beyond our reach (a read-only /proc/sys); what carries packets is not.
        let carried = self.tables.iter().filter(|(name, _)| **name != "sysctls");
        self.in_sync = report.revision == self.revision && carried.map(|(_, status)| status).all(TableStatus::is_done);
        if !self.ready && self.in_sync && self.whole_since.is_some_and(|since| report.revision >= since) {
            self.ready = true;
            tracing::info!(leases = self.view.leases().count(), "ready: every lease is in the kernel");
            if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
                tracing::warn!(%error, "the service manager cannot be told");
            }
        }
    }

    fn write_subnet_file(&mut self) {
        let path = &self.node.config.subnet_file;
        let mtu = plan::pod_mtu(&self.node.network.backend, self.node.local.mtu);
        let ip_masq = self.node.config.masquerade.masquerade;
        match subnet_file::write(path, &self.node.network, self.node.local.subnet, mtu, ip_masq) {
            Ok(true) => tracing::info!(file = %path.display(), "wrote the subnet file"),
            Ok(false) => {}
            Err(error) => {
                let text = format!("write {}: {error}", path.display());
                if self.complaints.insert(text.clone()) {
                    tracing::error!("{text}; Pods cannot be started");
                }
            }
        }
    }

    pub(super) fn write_status(&mut self) {
        self.timers.status = None;
        self.timers.status_written = Some(Instant::now());
        let path = self.node.config.run_dir.join(status::FILE);
        let written = serde_json::to_vec_pretty(&self.status()).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| files::replace(&path, &text)) {
            let text = format!("write {}: {error}", path.display());
            if self.complaints.insert(text.clone()) {
                tracing::error!("{text}; `netd status` will be old");
            }
        }
    }

    fn status(&self) -> Status {
        let skipped = self.plan.as_ref().map(|plan| &plan.skipped);
        let peer = |lease: &Lease| status::Peer {
            public_ip: lease.attrs.public_ip.to_string(),
            backend: match &lease.attrs.backend {
                BackendAttrs::Vxlan { mac, .. } => format!("vxlan {mac}"),
                BackendAttrs::HostGw => "host-gw".to_owned(),
                BackendAttrs::Other(name) => name.clone(),
            },
        };
        let used = self.view.leases().filter(|lease| {
            self.held.as_ref().is_none_or(|held| held.key != lease.key)
                && skipped.is_none_or(|skipped| !skipped.contains_key(&lease.key.v4))
        });
        let contested =
            self.view.contested().map(|other| format!("another program writes this node's lease: {}", other.render()));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: status::Node {
                public_ip: self.node.local.public_ip.to_string(),
                interface: self.node.local.interface.to_string(),
                network: self.node.network.network.to_string(),
                subnet: self.held.as_ref().map(|held| held.key.v4.to_string()),
                backend: self.node.network.backend.name().to_owned(),
                mtu: plan::pod_mtu(&self.node.network.backend, self.node.local.mtu),
                in_sync: self.in_sync,
            },
            store: status::Store {
                kind: if matches!(self.ears, Ears::Alone(_)) { "local" } else { "etcd" }.to_owned(),
                complete: matches!(self.ears, Ears::Alone(_)) || self.view.is_complete(),
                doubted: self.view.is_doubted(),
                lost: self.view.lost(),
                lease_trouble: self.lease_trouble.clone(),
            },
            leases: used.map(|lease| (lease.key.v4.to_string(), peer(lease))).collect(),
            invalid: self.view.invalid().map(|(key, why)| (key.to_owned(), why.to_owned())).collect(),
            skipped: skipped.into_iter().flatten().map(|(key, why)| (key.to_string(), why.clone())).collect(),
            tables: self.tables.iter().map(|(name, table)| ((*name).to_owned(), table.into())).collect(),
            warnings: contested.into_iter().chain(self.warnings.iter().cloned()).collect(),
        }
    }
}
