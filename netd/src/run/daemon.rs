//! The daemon's loop: leases in, tables out, and what happened told.
//!
//! Invariants: a plan is made only of whole listings, at most every [`LONGEST_WAIT`]; the subnet file is written after
//! the tables that this node's own Pods need are in place, never before; readiness is told after the first plan that
//! knows every lease is in place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use cluster::{Event, Source};
use netstate::IfName;
use reconcile::Status as TableStatus;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::hands::{Hands, Report};
use super::status::{self, Status};
use super::{ears, files, stages, subnet_file};
use crate::config::Config;
use crate::lease::{BackendAttrs, Lease};
use crate::network::Network;
use crate::plan::{self, LocalNode, Plan};
use crate::store::{Held, Keeper, KeeperEvent, LeaseStore};
use crate::view::{OwnKey, View};

/// A plan is made when no further lease has arrived for this long.
const QUIET: Duration = Duration::from_millis(20);

/// A plan is made at the latest this long after the first change.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// How long a listing without any other node is kept in doubt: nodes that live claim their subnets again meanwhile.
const CONFIRMATION: Duration = Duration::from_secs(30);

/// Shortest time between two writes of the status file.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

type Look = JoinHandle<Result<Vec<(String, Vec<u8>)>, cluster::ClusterError>>;

/// Where leases come from.
pub(super) enum Ears {
    /// etcd: the keeper of the own lease, and everybody's leases once it holds one.
    Etcd { keeper: Keeper, store: LeaseStore, source: Option<Source> },
    /// Nowhere: this machine is alone, with this lease. Taken when it has been told.
    Alone(Option<Lease>),
}

/// One thing that happened.
enum Happening {
    Lease(Event),
    Keeper(KeeperEvent),
    Alone(Lease),
    Report(Report),
    Plan,
    Look,
    Looked(Result<Vec<(String, Vec<u8>)>, cluster::ClusterError>),
    Status,
}

/// When the loop does something without being told.
#[derive(Default)]
struct Timers {
    /// First and last change that no plan knows of.
    changed: Option<(Instant, Instant)>,
    /// When the listing in doubt is looked at again.
    look: Option<Instant>,
    /// When the status file is written.
    status: Option<Instant>,
    /// The last write of the status file.
    status_written: Option<Instant>,
}

/// A daemon that is ready to run.
pub(super) struct Daemon {
    config: Config,
    network: Network,
    /// As of the held lease; before the first, its subnet means nothing.
    local: LocalNode,
    devices: BTreeSet<IfName>,
    ears: Ears,
    view: View,
    held: Option<Lease>,
    hands: Option<Hands>,
    looking: Option<Look>,
    timers: Timers,
    revision: u64,
    plan: Option<Plan>,
    tables: BTreeMap<&'static str, TableStatus>,
    warnings: Vec<String>,
    /// The revision of the first plan that knew every lease.
    whole_since: Option<u64>,
    ready: bool,
    in_sync: bool,
    lease_trouble: Option<String>,
    complaints: BTreeSet<String>,
}

impl Daemon {
    pub(super) fn new(
        config: Config,
        network: Network,
        local: LocalNode,
        devices: BTreeSet<IfName>,
        ears: Ears,
    ) -> Self {
        Self {
            config,
            network,
            local,
            devices,
            ears,
            view: View::default(),
            held: None,
            hands: None,
            looking: None,
            timers: Timers::default(),
            revision: 0,
            plan: None,
            tables: BTreeMap::new(),
            warnings: Vec::new(),
            whole_since: None,
            ready: false,
            in_sync: false,
            lease_trouble: None,
            complaints: BTreeSet::new(),
        }
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) -> Result<()> {
        self.tell_soon();
        loop {
            match self.happening().await {
                Happening::Lease(event) => self.hear(event),
                Happening::Keeper(event) => self.heed(event)?,
                Happening::Alone(lease) => self.hold(lease, "this machine is alone")?,
                Happening::Report(report) => self.take_report(report),
                Happening::Plan => self.plan(),
                Happening::Look => self.look(),
                Happening::Looked(second) => self.looked(second),
                Happening::Status => self.write_status(),
            }
        }
    }

    /// Waits for the next thing to happen. Everything waited for is cancel-safe.
    async fn happening(&mut self) -> Happening {
        let (plan_at, look_at, status_at) = (self.plan_at(), self.timers.look, self.timers.status);
        let Self { ears, hands, looking, .. } = self;
        tokio::select! {
            Some(report) = async { hands.as_mut()?.next().await } => Happening::Report(report),
            heard = ears.next() => heard,
            looked = async { looking.as_mut()?.await.ok() }, if looking.is_some() => match looked {
                Some(second) => Happening::Looked(second),
                None => Happening::Look,
            },
            () = at(plan_at) => Happening::Plan,
            () = at(look_at) => Happening::Look,
            () = at(status_at) => Happening::Status,
        }
    }

    /// When the next plan is due; never in the middle of a listing.
    fn plan_at(&self) -> Option<Instant> {
        let (first, last) = self.timers.changed.filter(|_| self.held.is_some() && !self.view.is_listing())?;
        Some((last + QUIET).min(first + LONGEST_WAIT))
    }

    fn change(&mut self) {
        let now = Instant::now();
        self.timers.changed = Some((self.timers.changed.map_or(now, |(first, _)| first), now));
    }

    fn tell_soon(&mut self) {
        let earliest = self.timers.status_written.map_or_else(Instant::now, |last| last + STATUS_PAUSE);
        self.timers.status.get_or_insert(earliest);
    }

    fn hear(&mut self, event: Event) {
        match &event {
            Event::Lost(error) => tracing::warn!(%error, "the store cannot be heard; the data path stays"),
            Event::Resumed => tracing::info!("the store is heard again"),
            _ => {}
        }
        let completes = event == Event::Complete;
        let change = self.view.apply(event);
        self.after(change.leases, change.status, change.own || completes);
        if self.view.is_doubted() && self.timers.look.is_none() && self.looking.is_none() {
            tracing::warn!(
                seconds = CONFIRMATION.as_secs(),
                "the store shows no other node; nothing is removed before a second look"
            );
            self.timers.look = Some(Instant::now() + CONFIRMATION);
        }
    }

    fn after(&mut self, leases: bool, status: bool, own: bool) {
        if leases || status {
            self.change();
            self.tell_soon();
        }
        if own {
            self.check_own_key();
        }
        for (key, reason) in self.view.invalid() {
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

    fn heed(&mut self, event: KeeperEvent) -> Result<()> {
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
    fn hold(&mut self, lease: Lease, how: &str) -> Result<()> {
        tracing::info!(subnet = %lease.key.v4, how, "lease acquired");
        self.view.hold(lease.clone());
        if let BackendAttrs::Vxlan { mac, .. } = lease.attrs.backend {
            self.local.vtep_mac = mac;
        }
        let moved = self.held.as_ref().is_none_or(|held| held.key != lease.key || held.attrs != lease.attrs);
        if moved {
            if let Some(before) = &self.held {
                tracing::error!(
                    before = %before.key.v4, now = %lease.key.v4,
                    "this node has another subnet now; Pods with addresses of the earlier one are cut off"
                );
            }
            self.local.subnet = lease.key.v4;
            self.start_hands()?;
        }
        self.held = Some(lease);
        self.change();
        Ok(())
    }

    /// Starts the kernel's side afresh for the subnet that is held now.
    fn start_hands(&mut self) -> Result<()> {
        self.hands = None;
        let hands = Hands::start(&self.network, &self.local, &self.devices).context("open the kernel's tables")?;
        ears::listen(hands.ports(), &hands.notifier()).context("listen to the kernel")?;
        self.hands = Some(hands);
        Ok(())
    }

    fn plan(&mut self) {
        self.timers.changed = None;
        let Some(hands) = &self.hands else { return };
        let plan = plan::plan(&self.network, &self.local, self.config.masquerade, self.view.leases());
        self.revision += 1;
        let alone = matches!(self.ears, Ears::Alone(_));
        let complete = alone || self.view.is_complete();
        if self.whole_since.is_none() && (complete || self.view.is_doubted()) {
            self.whole_since = Some(self.revision);
        }
        for (subnet, reason) in &plan.skipped {
            if self.complaints.insert(format!("{subnet}: {reason}")) {
                tracing::warn!(%subnet, reason, "a lease is not used");
            }
        }
        hands.want(plan.tables.clone(), self.revision, complete);
        self.plan = Some(plan);
        self.tell_soon();
    }

    fn look(&mut self) {
        self.timers.look = None;
        self.looking = None;
        if let Ears::Etcd { store, .. } = &self.ears
            && self.view.is_doubted()
        {
            let store = store.clone();
            self.looking = Some(tokio::spawn(async move { store.list().await }));
        }
    }

    fn looked(&mut self, second: Result<Vec<(String, Vec<u8>)>, cluster::ClusterError>) {
        self.looking = None;
        match second {
            Ok(entries) => {
                tracing::info!(keys = entries.len(), "second look at the store");
                let change = self.view.confirm(entries);
                self.after(change.leases, change.status, true);
            }
            Err(error) => {
                tracing::warn!(%error, "the second look failed; nothing is removed");
                self.timers.look = Some(Instant::now() + CONFIRMATION);
            }
        }
    }

    fn take_report(&mut self, report: Report) {
        self.tables = report.tables;
        self.warnings = report.warnings;
        self.tell_soon();
        if report.revision == self.revision && stages::is_local_done(&self.tables) {
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
        let path = &self.config.subnet_file;
        let mtu = plan::pod_mtu(&self.network.backend, self.local.mtu);
        let ip_masq = self.config.masquerade.masquerade;
        match subnet_file::write(path, &self.network, self.local.subnet, mtu, ip_masq) {
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

    fn write_status(&mut self) {
        self.timers.status = None;
        self.timers.status_written = Some(Instant::now());
        let path = self.config.run_dir.join(status::FILE);
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
                public_ip: self.local.public_ip.to_string(),
                interface: self.local.interface.to_string(),
                network: self.network.network.to_string(),
                subnet: self.held.as_ref().map(|held| held.key.v4.to_string()),
                backend: self.network.backend.name().to_owned(),
                mtu: plan::pod_mtu(&self.network.backend, self.local.mtu),
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
            invalid: self.view.invalid().into_iter().map(|(key, why)| (key.to_owned(), why.to_owned())).collect(),
            skipped: skipped.into_iter().flatten().map(|(key, why)| (key.to_string(), why.clone())).collect(),
            tables: self.tables.iter().map(|(name, table)| ((*name).to_owned(), table.into())).collect(),
            warnings: contested.into_iter().chain(self.warnings.iter().cloned()).collect(),
        }
    }
}

impl Ears {
    /// The next thing that is heard; never, when there is nothing to hear any more.
    async fn next(&mut self) -> Happening {
        match self {
            Self::Alone(lease) => match lease.take() {
                Some(lease) => Happening::Alone(lease),
                None => std::future::pending().await,
            },
            Self::Etcd { keeper, source, .. } => {
                let event = async {
                    match source {
                        Some(source) => source.next().await,
                        None => None,
                    }
                };
                tokio::select! {
                    Some(event) = keeper.next() => Happening::Keeper(event),
                    Some(event) = event => Happening::Lease(event),
                    else => std::future::pending().await,
                }
            }
        }
    }
}

/// Waits until `time`; for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
