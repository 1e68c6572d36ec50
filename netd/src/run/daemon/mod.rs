//! The daemon's loop: leases in, tables out, and what happened told.
//!
//! Invariant: a plan is made only of whole listings, at most every [`LONGEST_WAIT`] while leases keep changing.

mod leases;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use cluster::{ClusterError, Event, Source};
use netstate::IfName;
use reconcile::Status as TableStatus;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::worker::{Hands, Report};
use crate::command::config::Config;
use crate::format::lease::Lease;
use crate::format::net_conf::Network;
use crate::plan::{self, LocalNode, Plan};
use crate::source::view::View;
use crate::source::{Keeper, KeeperEvent, LeaseStore};

/// A plan is made when no further lease has arrived for this long.
const QUIET: Duration = Duration::from_millis(20);

/// A plan is made at the latest this long after the first change.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// How long a listing without any other node is kept in doubt: nodes that live claim their subnets again meanwhile.
const CONFIRMATION: Duration = Duration::from_secs(30);

/// Shortest time between two writes of the status file.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// Every key under `subnets/` with its value, looked at once more.
type Look = Result<Vec<(String, Vec<u8>)>, ClusterError>;

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
    Looked(Look),
    Status,
}

/// When the loop does something without being told.
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

/// What the daemon was told and what it found at the start.
pub(super) struct Node {
    pub(super) config: Config,
    pub(super) network: Network,
    /// As of the held lease; before the first, its subnet means nothing.
    pub(super) local: LocalNode,
    /// Tunnel devices that are ours.
    pub(super) devices: BTreeSet<IfName>,
}

/// A daemon that is ready to run.
pub(super) struct Daemon {
    node: Node,
    ears: Ears,
    view: View,
    held: Option<Lease>,
    hands: Option<Hands>,
    looking: Option<JoinHandle<Look>>,
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
    pub(super) const fn new(node: Node, ears: Ears, view: View) -> Self {
        Self {
            node,
            ears,
            view,
            held: None,
            hands: None,
            looking: None,
            timers: Timers { changed: None, look: None, status: None, status_written: None },
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

    fn plan(&mut self) {
        self.timers.changed = None;
        let Some(hands) = &self.hands else { return };
        let plan = plan::plan(&self.node.network, &self.node.local, self.node.config.masquerade, self.view.leases());
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
