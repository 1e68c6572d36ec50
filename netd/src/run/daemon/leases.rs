//! What the store says, and what follows from it.
//!
//! Invariants: a loss of the own lease is reported to the keeper and changes nothing else; another subnet is used only
//! when the keeper holds it.

use anyhow::{Context, Result};
use cluster::Event;
use tokio::time::Instant;

use super::{CONFIRMATION, Daemon, Ears, Look};
use crate::format::lease::{BackendAttrs, Lease};
use crate::run::monitors;
use crate::run::worker::Hands;
use crate::source::view::{Change, OwnKey};
use crate::source::{Held, KeeperEvent};

impl Daemon {
    pub(super) fn hear(&mut self, event: Event) {
        match &event {
            Event::Lost(error) => tracing::warn!(%error, "the store cannot be heard; the data path stays"),
            Event::Resumed => tracing::info!("the store is heard again"),
            _ => {}
        }
        let completes = event == Event::Complete;
        let change = self.view.apply(event);
        self.after(Change { own: change.own || completes, ..change });
        if self.view.is_doubted() && self.timers.look.is_none() && self.looking.is_none() {
            tracing::warn!(
                seconds = CONFIRMATION.as_secs(),
                "the store shows no other node; nothing is removed before a second look"
            );
            self.timers.look = Some(Instant::now() + CONFIRMATION);
        }
    }

    /// Draws the consequences of a change of the view.
    fn after(&mut self, change: Change) {
        if change.leases || change.status {
            self.change();
            self.tell_soon();
        }
        if change.own {
            self.check_own_key();
        }
        for (key, reason) in self.view.invalid().filter(|_| change.invalid) {
            if self.complaints.insert(format!("{key}: {reason}")) {
                tracing::warn!(key, reason, "a key under subnets/ is no lease; it is skipped");
            }
        }
    }

    fn check_own_key(&mut self) {
        let Ears::Etcd { keeper, .. } = &self.ears else { return };
        match self.view.own_key() {
            OwnKey::Gone => keeper.report_loss("its key was deleted".to_owned()),
            OwnKey::Taken(reason) => keeper.report_loss(format!("its key was overwritten: {reason}")),
            OwnKey::Held | OwnKey::Unknown => {}
        }
        if let Some(other) = self.view.contested() {
            tracing::error!(
                public_ip = %other.public_ip, lease = other.render(),
                "another program writes this node's lease: does a second node have this address?"
            );
        }
    }

    pub(super) fn heed(&mut self, event: KeeperEvent) -> Result<()> {
        self.tell_soon();
        match event {
            KeeperEvent::Kept => self.lease_trouble = None,
            KeeperEvent::Failing(reason) => self.lease_trouble = Some(reason),
            KeeperEvent::Held(held) => {
                let Held { lease, etcd_lease, how } = *held;
                self.lease_trouble = None;
                if etcd_lease.is_none() {
                    tracing::info!(subnet = %lease.key.v4, "the lease is a reservation: it has no end");
                }
                self.hold(lease, &how)?;
                if let Ears::Etcd { store, source: source @ None, .. } = &mut self.ears {
                    *source = Some(store.watch());
                }
            }
        }
        Ok(())
    }

    /// This node holds `lease`: from now on its tables can be planned.
    pub(super) fn hold(&mut self, lease: Lease, how: &str) -> Result<()> {
        tracing::info!(subnet = %lease.key.v4, how, "lease acquired");
        self.view.hold(lease.clone());
        if let BackendAttrs::Vxlan { mac, .. } = lease.attrs.backend {
            self.node.local.vtep_mac = mac;
        }
        let moved = self.held.as_ref().is_none_or(|held| held.key != lease.key || held.attrs != lease.attrs);
        if moved {
            if let Some(before) = self.held.as_ref().filter(|before| before.key != lease.key) {
                tracing::error!(
                    before = %before.key.v4, now = %lease.key.v4,
                    "this node has another subnet now; Pods with addresses of the earlier one are cut off"
                );
            }
            self.node.local.subnet = lease.key.v4;
            self.start_hands()?;
        }
        self.held = Some(lease);
        self.change();
        Ok(())
    }

    /// Starts the kernel's side afresh for the subnet that is held now.
    fn start_hands(&mut self) -> Result<()> {
        self.hands = None;
        let hands = Hands::start(&self.node.network, &self.node.local, &self.node.devices)
            .context("open the kernel's tables")?;
        monitors::listen(hands.ports(), &hands.notifier()).context("listen to the kernel")?;
        self.hands = Some(hands);
        Ok(())
    }

    pub(super) fn look(&mut self) {
        self.timers.look = None;
        self.looking = None;
        if let Ears::Etcd { store, .. } = &self.ears
            && self.view.is_doubted()
        {
            let store = store.clone();
            self.looking = Some(tokio::spawn(async move { store.list().await }));
        }
    }

    pub(super) fn looked(&mut self, second: Look) {
        self.looking = None;
        match second {
            Ok(entries) => {
                tracing::info!(keys = entries.len(), "second look at the store");
                let change = self.view.confirm(entries);
                self.after(change);
            }
            Err(error) => {
                tracing::warn!(%error, "the second look failed; nothing is removed");
                self.timers.look = Some(Instant::now() + CONFIRMATION);
            }
        }
    }
}
