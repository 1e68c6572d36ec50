//! The daemon's loop: leases in, tables out, and what happened reported.
//!
//! Invariant: everything waited for is cancel-safe, and nothing here blocks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use daemon::http::Question;
use daemon::liveness::{Heartbeat, Liveness, Progress};
use daemon::monitors::Following;
use daemon::shell::Shell;
use daemon::worker::Worker;
use netstate::{IfName, Prefix};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::claim::Claimed;
use super::external::External;
use super::identity::Identity;
use super::planning::Planning;
use super::reach::Reach;
use super::reconfigure::Change;
use super::report::Reporter;
use super::responder::Responder;
use super::silent::{Changed, Silent};
use super::targets::Targets;
use super::witness::{Listing, Witness};
use super::worker::{Report, TableWork};
use crate::command::config::Config;
use crate::format::lease::Lease;
use crate::format::net_conf::Network;
use crate::plan::{Ownership, Planner};
use crate::source::view::View;
use crate::source::{Configs, Keeper, KeeperEvent, LeaseEvent, LeaseEvents, LeaseRecord, LeaseSource};
use crate::trace::serve::Watching;

/// Longest time that one event may take: the end of a pass is waited for when the tables are opened afresh.
const LIMIT: Duration = Duration::from_secs(60);

/// Leases that are taken in before others have their turn.
const TURN: usize = 256;

/// One thing that happened.
enum Event {
    Lease(LeaseEvent),
    Keeper(KeeperEvent),
    Config(Option<Vec<u8>>),
    Release,
    Retire,
    Report(Report),
    Plan,
    Verify,
    Verified(Option<Listing>),
    Links,
    Routes,
    Ways,
    AskWays,
    Answered,
    Interface,
    Silent(Changed),
    File,
    Status,
    Details(Question),
}

/// What the daemon was started with, and what it found then.
pub(super) struct Node {
    pub(super) config: Config,
    pub(super) network: Network,
    /// Tunnel devices that are ours.
    pub(super) devices: BTreeSet<IfName>,
    /// What distinguishes this machine from others.
    pub(super) machine: Vec<u8>,
    /// Which routes are ours.
    pub(super) ownership: Ownership,
    /// What no other daemon of this host may have.
    pub(super) claimed: Option<Claimed>,
    /// Leases that this node has held.
    pub(super) record: LeaseRecord,
    /// Subnets that the kernel has routes to from an earlier run.
    pub(super) leftovers: BTreeSet<Prefix>,
    /// The text of the network's configuration.
    pub(super) text: String,
    /// What this node brings along for its backends.
    pub(super) identity: Identity,
    /// Opens the kernel's tables.
    pub(super) open: OpenTables,
}

/// Opens the tables for what is ours and the recorded devices.
pub(super) type OpenTables =
    Box<dyn Fn(&Ownership, &BTreeSet<IfName>, &Identity) -> Result<Targets, kernel::KernelError> + Send>;

/// A daemon that is ready to run.
pub(super) struct Daemon<S> {
    pub(super) node: Node,
    pub(super) source: S,
    pub(super) keeper: Keeper,
    pub(super) events: Option<LeaseEvents>,
    pub(super) held: Option<Lease>,
    /// When another program's details in the own lease were overwritten.
    pub(super) objections: Vec<Instant>,
    pub(super) external: External,
    pub(super) witness: Witness,
    pub(super) planning: Planning,
    pub(super) worker: Option<Worker<TableWork>>,
    /// The monitors, while the worker that they notify runs.
    pub(super) following: Option<Following>,
    pub(super) reporter: Reporter,
    pub(super) change: Change,
    configs: Configs,
    pub(super) silent: Silent,
    pub(super) responder: Responder,
    pub(super) shell: Shell,
    /// Those who ask for what only the whole status has.
    questions: mpsc::Receiver<Question>,
    /// Rung when a link or an address changed.
    pub(super) links: Arc<Notify>,
    /// Rung when a route changed that may name the interface.
    pub(super) routes: Arc<Notify>,
    /// How the other nodes are reached.
    pub(super) reach: Reach,
    /// Rung when that may have changed.
    pub(super) ways: Arc<Notify>,
    heartbeat: Heartbeat,
}

impl<S: LeaseSource> Daemon<S> {
    pub(super) fn new(node: Node, source: S, keeper: Keeper, external: External, shell: Shell) -> Self {
        let local = node.ownership.local.clone();
        let reach = Reach::new(node.devices.clone(), local.ways.clone());
        let planner = Planner::new(node.network.clone(), node.config.masquerade.clone(), local);
        let planner = planner.beside(node.ownership.retiring.clone());
        let (change, configs) = (Change::new(node.text.clone()), source.configs());
        let view = View::new(node.leftovers.clone());
        let silent = Silent::open(&node.config.subnet_file);
        let subnet_file = node.config.subnet_file.display().to_string();
        let watching = Watching::new(node.config.run_dir.clone(), subnet_file);
        let responder = Responder::new(node.config.probe_port, shell.liveness.clone(), watching);
        let liveness = &shell.liveness;
        liveness.judge("lease keeper", keeper.progress());
        judge_source(liveness, "configuration", configs.loops());
        let (heartbeat, witness) = (liveness.heartbeat("leases", LIMIT), Witness::new(view, liveness));
        let reach = reach.judged_by(liveness);
        Self {
            node,
            source,
            keeper,
            events: None,
            held: None,
            objections: Vec::new(),
            external,
            witness,
            planning: Planning::new(planner),
            worker: None,
            following: None,
            reporter: Reporter::default(),
            change,
            configs,
            silent,
            responder,
            questions: shell.board.details(),
            shell,
            links: Arc::new(Notify::new()),
            routes: Arc::new(Notify::new()),
            reach,
            ways: Arc::new(Notify::new()),
            heartbeat,
        }
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) -> Result<()> {
        self.reporter.note();
        loop {
            self.heartbeat.idle();
            let event = self.next().await;
            self.heartbeat.busy();
            match event {
                Event::Lease(event) => self.on_leases(event),
                Event::Keeper(event) => self.on_keeper(event).await?,
                Event::Config(text) => self.on_config(text).await?,
                Event::Release => self.release(),
                Event::Retire => self.retire(),
                Event::Report(report) => self.receive(report),
                Event::Plan => self.plan(),
                Event::Verify => self.witness.verify(&self.source),
                Event::Verified(listing) => self.confirm(listing),
                Event::Links => self.external.note(),
                Event::Routes => self.external.note_routes(),
                Event::Ways => self.reach.note(),
                Event::AskWays => self.ask_ways(),
                Event::Answered => self.planning.learn_ways(self.reach.take_learned()),
                Event::Interface => self.follow_interface().await?,
                Event::Silent(changed) => self.on_silent(changed),
                Event::File => self.restore_file(),
                Event::Status => self.put_status(),
                // Whoever asked may have gone away meanwhile.
                Event::Details(question) => drop(question.send(self.details())),
            }
        }
    }

    /// Takes in an event and those that wait behind it: a listing is thousands of them.
    fn on_leases(&mut self, first: LeaseEvent) {
        self.on_lease(first);
        for _ in 0..TURN {
            let Some(next) = self.events.as_mut().and_then(LeaseEvents::waiting) else { return };
            self.on_lease(next);
        }
    }

    /// Waits for the next thing to happen.
    async fn next(&mut self) -> Event {
        let can_plan = self.held.is_some() && self.worker.is_some() && !self.reach.is_asking();
        let plan_at = self.planning.due().filter(|_| can_plan);
        let plan_at = plan_at.map(|due| self.witness.plan_from().map_or(due, |from| due.max(from)));
        // Not by a timer, which ends at a whole millisecond.
        let plans_now = plan_at.is_some_and(|due| due <= Instant::now());
        let (verify_at, status_at, interface_at) = (self.witness.due(), self.reporter.due(), self.external.due());
        let (file_at, ways_at) = (self.reporter.file_due(), self.reach.due());
        let (held, retire_at, release_at) = (self.held.is_some(), self.change.due(), self.change.release_due());
        let Self { keeper, configs, events, worker, witness, links, routes, ways, reach, questions, silent, .. } = self;
        tokio::select! {
            Some(report) = async { Some(worker.as_ref()?.next().await) } => Event::Report(report),
            event = keeper.next() => Event::Keeper(event),
            Some(text) = configs.next(), if held => Event::Config(text),
            () = at(release_at) => Event::Release,
            () = at(retire_at) => Event::Retire,
            Some(event) = async { events.as_mut()?.next().await } => Event::Lease(event),
            listing = witness.listed() => Event::Verified(listing),
            () = links.notified() => Event::Links,
            () = routes.notified() => Event::Routes,
            () = ways.notified() => Event::Ways,
            () = at(ways_at) => Event::AskWays,
            () = reach.answered() => Event::Answered,
            () = at(interface_at) => Event::Interface,
            () = std::future::ready(()), if plans_now => Event::Plan,
            () = at(plan_at), if !plans_now => Event::Plan,
            () = at(verify_at) => Event::Verify,
            changed = silent.next() => Event::Silent(changed),
            () = at(file_at) => Event::File,
            () = at(status_at) => Event::Status,
            Some(question) = questions.recv() => Event::Details(question),
        }
    }

    pub(super) fn plan(&mut self) {
        let Some(worker) = &self.worker else { return };
        let mailbox = worker.mailbox();
        if self.planning.planner.asks_for_ways() && self.reach.ask(self.planning.new_addresses(&self.witness.view)) {
            // Planned when the answers are there.
            return;
        }
        // Plans that wait are merged, so there is always room.
        let give = |planned| drop(mailbox.try_send(planned));
        let planned = self.planning.plan(&self.witness.view, give);
        self.check_moved();
        for (key, refusal, remark) in self.planning.planner.take_changed() {
            if let Some(refusal) = refusal {
                self.reporter.complain(format!("{key}: {refusal}"), |_| {
                    tracing::warn!(subnet = key.list(), reason = %refusal, "a lease is not used");
                });
            }
            if let Some(remark) = remark {
                self.reporter.complain(format!("{key}: {remark}"), |text| tracing::warn!("{text}"));
            }
        }
        for remark in self.planning.planner.node_remarks() {
            self.reporter.complain(remark, |text| tracing::warn!("{text}"));
        }
        if planned {
            self.reporter.expect_report();
        } else {
            // What the plugin reads may differ all the same: an MTU without a tunnel is in no row.
            self.inform_plugin();
        }
        self.reporter.note();
    }
}

impl<S> Daemon<S> {
    /// Asks again how the nodes are reached.
    fn ask_ways(&mut self) {
        self.reach.retain(&self.planning.planner.addresses().collect());
        self.reach.ask_again();
    }
}

/// Judges the loops of a stream from the store.
pub(super) fn judge_source(liveness: &Liveness, what: &str, loops: &[Progress]) {
    let names = ["source", "watch"].map(|kind| format!("{what} {kind}"));
    for (name, progress) in names.into_iter().zip(loops) {
        liveness.judge(name, progress.clone());
    }
}

/// Waits until `time`; for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
