//! The kernel tables of this program in their order.
//!
//! Invariant: what stands later needs what stands before it. Creates run in this order, removals against it, so a route
//! never leads to a neighbour that is not there. A link that is made anew takes everything on it along, in silence; so
//! after any change of a link the other tables are read again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use daemon::monitors::Interests;
use daemon::status::{LISTED, TableRows};
use daemon::worker::PassLog;
use kernel::nft::forward::Forward;
use kernel::watch::Event;
use netstate::nft::{Row, RowKey};
use netstate::wireguard;
use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, Neighbour, NeighbourKey, Prefix, Route, RouteKey, SysctlKey,
    TxChecksum,
};
use reconcile::{
    Audited, Counts, Gate, Handle, Pass, Reconciler, RetryClass, Stack, Stage, State, Table, TableStatus, Target,
};

use super::forward::{self, Advice};
use super::indexes::Unwritten;
use super::notification::Notification;
use super::outer::Tunnels;
use super::rivals::Rivals;
use super::targets::{Rows, Targets};
use super::unannounced::{Check, Unannounced};
use crate::plan::backend::FileText;
use crate::plan::{Changes, Passing, RowChanges};

/// Every kernel table that netd writes.
pub(super) struct Stages {
    stack: Stack,
    links: Table<Rows<IfName, Link>>,
    /// Whether links are listed once more, for the file of their indexes.
    unwritten: Unwritten,
    checksums: Table<Rows<IfName, TxChecksum>>,
    peers: Option<Table<Rows<wireguard::RowKey, wireguard::Row>>>,
    peers_differ: Option<Check>,
    /// When peers and files are checked, where there are any.
    unannounced: Option<Unannounced>,
    sysctls: Table<Rows<SysctlKey, String>>,
    new_sysctls: Box<dyn Fn(BTreeSet<SysctlKey>) -> Rows<SysctlKey, String> + Send>,
    addresses: Table<Rows<AddressKey, Address>>,
    nft: Table<Rows<RowKey, Row>>,
    ingress: Table<Rows<RowKey, Row>>,
    neighbours: Table<Rows<NeighbourKey, Neighbour>>,
    fdb: Table<Rows<FdbKey, Fdb>>,
    routes: Table<Rows<RouteKey, Route>>,
    files: Option<Table<Rows<String, FileText>>>,
    forward: Option<Handle<Forward>>,
    /// Networks that shall pass foreign chains.
    passing: BTreeSet<Prefix>,
    /// What is to be said of iptables-legacy; `None` until it is read.
    legacy: Option<Vec<Advice>>,
    /// Warnings that the log has, and whether the last pass changed them.
    reported: Vec<String>,
    warns_anew: bool,
    rivals: Option<Rivals>,
    interests: Interests,
}

/// Name of the table of what sees packets as they arrive.
const INGRESS: &str = "ingress";

impl Stages {
    /// The tables in their order, with nothing desired.
    #[must_use]
    pub(super) fn on(targets: Targets) -> Self {
        let mut stack = Stack::new();
        let unannounced = (targets.wireguard.is_some() || targets.files.is_some()).then(Unannounced::default);
        let links = stack.push_base(Reconciler::new("links", targets.links));
        let has_links = move |stack: &Stack| stack.get(links).is_some_and(|links| links.status().is_done());
        Self {
            unannounced,
            peers_differ: targets.wireguard_differs,
            links,
            unwritten: targets.unwritten,
            checksums: stack.push(Reconciler::new("checksums", targets.checksums)),
            peers: targets.wireguard.map(|peers| stack.push(Reconciler::new("wireguard", peers))),
            sysctls: stack.push(Reconciler::new("sysctls", (targets.sysctls)(BTreeSet::new()))),
            new_sysctls: targets.sysctls,
            addresses: stack.push(Reconciler::new("addresses", targets.addresses)),
            nft: stack.push(Reconciler::new("nft", targets.nft)),
            neighbours: stack.push(Reconciler::new("neighbours", targets.neighbours)),
            fdb: stack.push(Reconciler::new("fdb", targets.fdb)),
            routes: stack.push(Reconciler::new("routes", targets.routes)),
            // Last, and nothing depends on it: packets pass without. It names links, and the kernel does not say which it lacks.
            ingress: stack.push_when(Reconciler::new(INGRESS, targets.ingress), has_links),
            files: targets.files.map(|files| stack.push(Reconciler::new("files", files))),
            forward: targets.forward.map(|forward| stack.push(forward)),
            stack,
            passing: BTreeSet::new(),
            legacy: None,
            rivals: targets.rivals,
            reported: Vec::new(),
            warns_anew: false,
            interests: targets.interests,
        }
    }

    /// The tables.
    #[must_use]
    pub(super) const fn stack(&self) -> &Stack {
        &self.stack
    }

    /// What concerns these tables.
    #[must_use]
    pub(super) fn interests(&self) -> Interests {
        self.interests.clone()
    }

    /// Desires what has changed; every other row stays as it was.
    pub(super) fn want(&mut self, changes: Changes) {
        if let Some(Passing { networks, links }) = changes.forward
            && let Some(forward) = self.forward.and_then(|forward| self.stack.get_mut(forward))
        {
            forward.want(forward::accepts(&networks));
            forward.entered_by(links);
            self.passing = networks;
            self.legacy = None;
        }
        if let Some(table) = self.stack.get_mut(self.sysctls) {
            let keys: BTreeSet<_> = changes.sysctls.keys().chain(table.desired().keys()).cloned().collect();
            if keys.len() != table.desired().len() {
                // The table of parameters lists what it is asked for.
                let desired = table.desired().clone();
                *table = Reconciler::new("sysctls", (self.new_sysctls)(keys));
                table.want_all(desired);
            }
        }
        self.want_rows(self.links, changes.links);
        self.want_rows(self.checksums, changes.checksums);
        self.want_rows(self.sysctls, changes.sysctls);
        self.want_rows(self.addresses, changes.addresses);
        self.want_rows(self.nft, changes.nft);
        self.want_rows(self.ingress, changes.ingress);
        self.want_rows(self.neighbours, changes.neighbours);
        self.want_rows(self.fdb, changes.fdb);
        self.want_rows(self.routes, changes.routes);
        if let Some(peers) = self.peers {
            self.want_rows(peers, changes.wireguard);
        }
        if let Some(files) = self.files {
            self.want_rows(files, changes.files);
        }
    }

    fn want_rows<T: Target>(&mut self, table: Table<T>, changes: RowChanges<T::Key, T::Value>) {
        if let Some(table) = self.stack.get_mut(table) {
            table.want_each(changes);
        }
    }

    /// One pass over all tables.
    pub(super) fn pass(&mut self, gate: &Gate<&str>, now: Duration) -> Pass {
        let due = self.unannounced.as_mut().is_some_and(|tables| tables.is_due(now));
        let begun = Instant::now();
        if due {
            let differ = self.peers_differ.as_mut().is_none_or(|differ| differ());
            self.peers.into_iter().filter(|_| differ).for_each(|peers| self.stack.invalidate(peers));
            self.files.into_iter().for_each(|files| self.stack.invalidate(files));
        }
        if self.unwritten.is_due(now) {
            self.stack.invalidate(self.links);
        }
        self.stack.keep_written(PassLog::wants_rows());
        let done = self.stack.pass(gate.is_open(), now);
        self.unwritten.note(now);
        if let Some(tables) = self.unannounced.as_mut().filter(|_| due && done.is_idle() && done.observed <= 1) {
            tables.note(begun.elapsed());
        }
        if let (Some(rivals), Some(table)) = (&mut self.rivals, self.stack.get(self.routes)) {
            rivals.compare(table.desired(), &Tunnels::of(&self.stack, self.fdb, self.peers, self.routes));
        }
        self.legacy.get_or_insert_with(|| forward::legacy(&self.passing));
        let warnings = self.warnings();
        for warning in warnings.iter().filter(|warning| !self.reported.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.warns_anew = self.reported != warnings;
        self.reported = warnings;
        done
    }

    /// Forgets what the kernel held in every table that `event` may have changed.
    pub(super) fn invalidate(&mut self, notification: Notification) {
        match notification {
            // A refused route may lead through one of these.
            Notification::Rtnl(Event::OtherLink) => {
                self.stack.retry();
                self.check_ingress();
            }
            Notification::Rtnl(Event::OtherRoute | Event::DefaultRoute) => self.stack.retry(),
            Notification::Rtnl(Event::NewAddress) => {
                self.stack.retry();
                self.stack.invalidate(self.addresses);
            }
            Notification::Rtnl(Event::Rule) => self.rivals.iter_mut().for_each(Rivals::note_rules),
            Notification::Rtnl(Event::Route) => self.stack.invalidate(self.routes),
            Notification::Rtnl(Event::Neighbour) => self.stack.invalidate(self.neighbours),
            Notification::Rtnl(Event::Forwarding) => self.stack.invalidate(self.fdb),
            // A link that goes down or away takes its addresses, neighbours and IPv4 routes along without a word, and
            // the last address of a link its routes.
            Notification::Rtnl(Event::Link | Event::Address) => {
                self.check_ingress();
                self.stack.invalidate(self.links);
                self.stack.invalidate(self.checksums);
                self.peers.into_iter().for_each(|peers| self.stack.invalidate(peers));
                self.stack.invalidate(self.sysctls);
                self.stack.invalidate(self.addresses);
                self.stack.invalidate(self.neighbours);
                self.stack.invalidate(self.fdb);
                self.stack.invalidate(self.routes);
            }
            Notification::Rtnl(Event::Resync) => self.invalidate_all(),
            Notification::Parameter => self.stack.invalidate(self.sysctls),
            Notification::OwnNft => {
                self.stack.invalidate(self.nft);
                self.stack.invalidate(self.ingress);
            }
            Notification::ForeignNft => self.forward.into_iter().for_each(|forward| self.stack.invalidate(forward)),
        }
    }

    /// A link that goes leaves the flowtable without a word, or takes its chain along, and neither is there when it comes again.
    fn check_ingress(&mut self) {
        if self.stack.get(self.ingress).is_some_and(|table| !table.desired().is_empty()) {
            self.stack.invalidate(self.ingress);
        }
    }

    /// Forgets everything that the kernel held.
    pub(super) fn invalidate_all(&mut self) {
        self.legacy = None;
        self.rivals.iter_mut().for_each(Rivals::invalidate);
        self.stack.invalidate_all();
    }

    /// Begins to compare every table with the kernel, in parts.
    pub(super) fn begin_audit(&mut self) {
        self.legacy = None;
        self.rivals.iter_mut().for_each(Rivals::invalidate);
        self.stack.begin_audit();
    }

    /// Compares the next part; `None` when every table has been compared.
    pub(super) fn audit(&mut self) -> Option<Audited> {
        self.stack.audit()
    }

    /// True when the last pass has found other things to warn of than the one before.
    pub(super) const fn warns_anew(&self) -> bool {
        self.warns_anew
    }

    /// When the next failed row is due again, or a comparison that waits for the end of a pass.
    pub(super) fn next_try(&self) -> Option<Duration> {
        let rivals = self.rivals.as_ref().filter(|rivals| rivals.is_due()).map(|_| Duration::ZERO);
        let unannounced = self.unannounced.as_ref().map(Unannounced::next);
        self.stack.next_try().into_iter().chain(unannounced).chain(rivals).chain(self.unwritten.next()).min()
    }

    /// Where each table stands.
    pub(super) fn status(&self) -> BTreeMap<&'static str, TableStatus> {
        self.stack.status().into_iter().collect()
    }

    /// The same in numbers.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, Counts> {
        self.stack.counts().into_iter().collect()
    }

    /// Desired and actual rows of each table.
    pub(super) fn rows(&self) -> Vec<TableRows> {
        self.stack.stages().map(|stage| TableRows::of(stage)).collect()
    }

    /// What the kernel refuses of what the configuration asks for at the ingress of links; packets take the ordinary way.
    fn refused_ingress(&self) -> Vec<String> {
        let failed = self.stack.get(self.ingress).into_iter().flat_map(Stage::failed);
        failed
            .filter_map(|row| match row.state {
                // A link that goes is announced a moment after this; then the row waits for the links, which say so.
                State::Failed { class: RetryClass::Wait, times: 1, .. } => None,
                State::Failed { reason, .. } => Some(refused_ingress(&row.key, &reason)),
                _ => None,
            })
            .collect()
    }

    /// What an operator should look into.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.forward
            .and_then(|forward| self.stack.get(forward))
            .into_iter()
            .flat_map(Forward::denying)
            .map(forward::warning)
            .chain(self.legacy.iter().flatten().map(Advice::to_string))
            .chain(self.refused_ingress())
            .chain(self.rivals.iter().flat_map(Rivals::warnings).take(LISTED).cloned())
            .collect()
    }
}

/// The warning about a row that the kernel refuses for `reason`.
fn refused_ingress(row: &str, reason: &str) -> String {
    if row.starts_with("table netdev ") {
        return format!(
            "--untracked-tunnel: the tunnel's packets are tracked as they arrive, because the kernel refuses the {row} (it needs the \
             interface, CONFIG_NETFILTER_INGRESS and CONFIG_NF_TABLES_NETDEV): {reason}"
        );
    }
    format!("Flowtable: packets take the ordinary way, because the kernel refuses the flowtable: {reason}")
}
