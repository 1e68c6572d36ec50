//! The proxy as the work of the thread that owns the kernel tables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use cluster::kubernetes::events::Reporter;
use daemon::http::Unserved;
use daemon::shell::Shell;
use daemon::slot::locked;
use daemon::status::{LISTED, TableRows, is_tried};
use daemon::worker::{Cause, PassLog, Took, Work};
use netstate::IpFamily;
use reconcile::{Audited, Counts, Pass};
use tokio::sync::oneshot;

use super::checks::{Checks, Unbound};
use super::held::{Held, HeldPort};
use super::kube_names::KubeProxyNames;
use super::proxy::Proxy;
use super::reported::{self, Beside};
use super::status::ProxyStatus;
use super::tables::Touched;
use super::{SOURCES, TABLES, addresses, forward, lock};
use crate::object::key::Kind;
use crate::plan::announced::Announced;
use crate::plan::here::OwnAddresses;
use crate::source::Update;

/// Shortest time between two listings of one table that notifications ask for: a node that starts a hundred Pods announces
/// a thousand changes of links.
const MIN_INTERVAL: Duration = Duration::from_millis(200);

/// The same for tables of others, which a kubelet or Docker may write again and again.
const FOREIGN_INTERVAL: Duration = Duration::from_millis(800);

/// Shortest time between audits of the tables that announce changes, whether somebody has said something or not.
const AUDIT: Duration = Duration::from_secs(60);

/// How many times longer than an audit takes is the time to the next: at ten thousand Services it takes a tenth of a second.
const AUDIT_SHARE: u32 = 5000;

/// Longest time between two audits.
const SELDOM: Duration = Duration::from_secs(600);

/// Shortest time between two reports: the status of thousands of Services takes milliseconds to put together.
const PAUSE: Duration = Duration::from_millis(500);

/// Shortest time between two walks along the node ports, which may be ten thousand.
const PORTS: Duration = Duration::from_secs(10);

/// What the thread is asked to take in.
pub(super) enum Order {
    /// What a source of objects reports.
    Update(Update),
    /// The addresses of this node.
    Addresses(OwnAddresses),
    /// The Service networks that the API server announces.
    Announced(Announced),
    /// Addresses whose local routes are gone.
    Unrouted(BTreeSet<IpAddr>),
    /// Another configuration: the proxy that goes on with it.
    Succeed(Box<Proxy>),
}

/// See the module's text.
pub(super) struct ProxyWork {
    proxy: Proxy,
    shell: Shell,
    names: KubeProxyNames,
    checks: Checks,
    log: PassLog,
    ready: bool,
    /// Who waits for the first rows to be in.
    begun: Option<oneshot::Sender<()>>,
    /// Something may have changed since the last report.
    changed: bool,
    /// The last report said that all is well.
    well: bool,
    /// When the next report may be made.
    next_report: Duration,
    /// Why load balancers are to send nobody to this node, if so.
    ineligible: Option<String>,
    /// What to say of a kube-proxy beside us, if there is one.
    rival: Option<String>,
    held: Held,
    /// When the node ports may be gone through.
    next_ports: Duration,
    /// Ports for health checks and addresses of pages that cannot be bound, and node ports that processes have.
    occupied: Occupied,
    /// Where that is reported beside the status.
    reporter: Option<Reporter>,
}

/// Places that somebody else has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Occupied {
    unbound: Vec<Unbound>,
    unserved: Vec<Unserved>,
    held: Vec<HeldPort>,
}

impl Occupied {
    fn advice(&self) -> impl Iterator<Item = String> {
        let unserved = self.unserved.iter().map(|unserved| {
            format!("HTTP is not served at {}: {}; tried again and again", unserved.address, unserved.reason)
        });
        let held = self.held.iter().map(|port| format!("services/{}: {port}", port.service)).take(LISTED);
        self.unbound.iter().map(ToString::to_string).chain(unserved).chain(held)
    }
}

impl ProxyWork {
    pub(super) fn new(proxy: Proxy, checks: Checks, shell: Shell) -> Self {
        let names = KubeProxyNames::new(&shell.metrics);
        let mut work = Self {
            proxy,
            shell,
            names,
            checks,
            log: PassLog::default(),
            ready: false,
            begun: None,
            changed: true,
            well: false,
            next_report: Duration::ZERO,
            ineligible: None,
            rival: None,
            held: Held::default(),
            next_ports: Duration::ZERO,
            occupied: Occupied::default(),
            reporter: None,
        };
        work.notice_rival();
        work
    }

    /// Says to `begun` when the first rows are in.
    pub(super) fn beginning(self, begun: oneshot::Sender<()>) -> Self {
        Self { begun: Some(begun), ..self }
    }

    /// Reports what `held` finds, and to `reporter` as well.
    pub(super) fn reporting(self, held: Held, reporter: Option<Reporter>) -> Self {
        Self { held, reporter, ..self }
    }

    /// What somebody else has at places that are wanted here.
    fn occupied(&self) -> Occupied {
        let vitals = locked(&self.shell.vitals);
        Occupied { unbound: self.checks.problems(), unserved: vitals.unserved.clone(), held: self.held.found() }
    }

    /// What is known, planned and in the kernel.
    pub(super) const fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Notices a kube-proxy beside us, and says so once.
    fn notice_rival(&mut self) {
        let rival = lock::rival();
        if let Some(text) = rival.as_ref().filter(|text| self.rival.as_ref() != Some(text)) {
            tracing::warn!("{text}");
        }
        self.changed |= rival != self.rival;
        self.rival = rival;
    }

    /// Has `/healthz` say whether load balancers may send anybody to this node.
    fn judge_node(&mut self) {
        let ineligible = self.proxy.ineligible();
        if ineligible == self.ineligible {
            return;
        }
        match &ineligible {
            Some(reason) => {
                tracing::warn!(reason, "load balancers are to send nobody to this node: /healthz answers 503")
            }
            None => tracing::info!("load balancers may send clients to this node again"),
        }
        let mut vitals = locked(&self.shell.vitals);
        vitals.ineligible = ineligible.is_some();
        drop(vitals);
        self.ineligible = ineligible;
        self.changed = true;
    }

    /// Goes on with another proxy.
    fn succeed(&mut self, proxy: Proxy) {
        for (name, _) in self.proxy.tables().stack().counts() {
            // A table that the new one does not have.
            self.shell.metrics.table(name, &Counts { actual: Some(0), ..Counts::default() });
        }
        let before = std::mem::replace(&mut self.proxy, proxy);
        self.proxy.succeed(before);
    }

    /// Opens gates of readiness as they are passed.
    fn open_gates(&mut self) {
        if self.ready || !self.proxy.gate().is_open() {
            return;
        }
        self.shell.open_gate(SOURCES);
        // Parameters may be beyond our reach (a read-only /proc/sys); what carries packets is not.
        let counts = self.proxy.tables().stack().counts();
        let waiting = counts.iter().find(|(name, counts)| *name != "sysctl" && !is_tried(counts));
        if let Some((name, counts)) = waiting {
            let reason = format!("{name}: {} of {} rows in place", counts.done, counts.desired);
            self.shell.readiness.await_for(TABLES, &reason);
            return;
        }
        self.ready = true;
        tracing::info!(services = self.proxy.view().known(&[Kind::Service]), "ready");
        self.shell.open_gate(TABLES);
        if let Some(begun) = self.begun.take() {
            // Whoever waited opens it by itself after a while.
            let _ = begun.send(());
        }
        kernel::heap::trim();
    }

    fn count(&mut self, cause: Cause, pass: &Pass, took: Took) {
        let metrics = &self.shell.metrics;
        metrics.pass(cause, pass, took);
        self.names.pass(cause, took, self.proxy.no_local(), |service| self.proxy.is_in_place(service));
        if cause == Cause::Order {
            let now = SystemTime::now();
            let names = self.proxy.plane().families().map(|family| match family {
                IpFamily::V4 => "IPv4",
                IpFamily::V6 => "IPv6",
            });
            let updated = names.map(|name| (name, now)).collect();
            locked(&self.shell.vitals).updated = updated;
        }
        // Orders come in bursts; behind them a pass of the clock has the last word within a second.
        if cause != Cause::Order || took.now >= self.next_report {
            for (name, counts) in self.proxy.tables().stack().counts() {
                metrics.table(name, &counts);
            }
        }
        metrics.source("services", self.proxy.view().lost().is_none(), self.proxy.gate().is_open());
    }
}

/// The time to the next audit behind one that took so long.
pub(super) fn audit_pause(took: Duration) -> Duration {
    took.saturating_mul(AUDIT_SHARE).clamp(AUDIT, SELDOM)
}

impl Work for ProxyWork {
    type Order = Order;
    type Change = Touched;
    type Report = ProxyStatus;

    fn min_interval(touched: Touched) -> Duration {
        match touched {
            Touched::Links | Touched::Routes | Touched::Nft => MIN_INTERVAL,
            Touched::ForeignNft => FOREIGN_INTERVAL,
        }
    }

    fn audit_period(&self, took: Duration) -> Duration {
        audit_pause(took)
    }

    fn take(&mut self, order: Order, _: Duration) {
        self.changed = true;
        match order {
            Order::Update(update) => {
                self.names.take(&update, self.proxy.view());
                let complete = self.proxy.gate().is_open();
                self.proxy.take(update);
                if !complete && self.proxy.gate().is_open() {
                    tracing::info!(services = self.proxy.view().services().count(), "the Services are listed");
                }
            }
            Order::Addresses(addresses) => self.proxy.learn(|facts| facts.own = addresses),
            Order::Announced(announced) => self.proxy.announce(announced),
            Order::Unrouted(addresses) => self.proxy.unrouted(&addresses),
            Order::Succeed(proxy) => self.succeed(*proxy),
        }
    }

    fn invalidate(&mut self, change: Touched) {
        self.proxy.touched(change);
    }

    fn begin_audit(&mut self) {
        self.notice_rival();
        self.proxy.tables_mut().begin_audit();
    }

    fn audit(&mut self) -> Option<Audited> {
        self.proxy.tables_mut().audit_part()
    }

    fn invalidate_all(&mut self) {
        // Virtual servers are compared every second.
        self.proxy.touched(Touched::Links);
        self.proxy.touched(Touched::Routes);
        self.proxy.touched(Touched::Nft);
        self.proxy.touched(Touched::ForeignNft);
    }

    fn pass(&mut self, cause: Cause, now: Duration) -> Pass {
        let pass = match cause {
            Cause::Order => self.proxy.work_on_order(now),
            Cause::Change | Cause::Timer => self.proxy.work(now),
        };
        self.judge_node();
        let (services, addresses) = self.proxy.take_checks();
        self.checks.change(services, addresses);
        pass
    }

    fn next(&self) -> Option<Duration> {
        let report = if self.changed { self.next_report } else { Duration::MAX };
        Some(self.proxy.next().min(report))
    }

    fn report(&mut self, cause: Cause, pass: &Pass, took: Took) -> Option<ProxyStatus> {
        self.log.write(cause, pass, took, self.proxy.tables().stack());
        self.count(cause, pass, took);
        let was_ready = self.ready;
        self.open_gates();
        if self.ready && !was_ready {
            // Whoever waits for that asks for the status next.
            (self.changed, self.next_report) = (true, took.now);
        }
        // A listing that found everything in place is nothing new, unless something was wrong before.
        self.changed |= !pass.is_idle() || (pass.observed > 0 && !self.well);
        let occupied = self.occupied();
        self.changed |= occupied != self.occupied;
        self.occupied = occupied;
        if !self.changed || took.now < self.next_report {
            return None;
        }
        self.changed = false;
        self.next_report = took.now + PAUSE;
        let denying = self.proxy.tables().denying().iter().map(forward::advice);
        let bridges = self.proxy.plane().families().filter_map(addresses::bridge_advice);
        let advice: Vec<_> = bridges.chain(denying).chain(self.rival.clone()).chain(self.occupied.advice()).collect();
        let status = ProxyStatus::of(&self.proxy, self.proxy.node(), &advice, took.now);
        for (state, count) in status.objects() {
            self.shell.metrics.objects(state, count);
        }
        if took.now >= self.next_ports && self.proxy.gate().is_open() {
            self.next_ports = took.now + PORTS;
            self.held.set(self.proxy.claims(), self.proxy.node_port_addresses());
        }
        if let Some(reporter) = self.reporter.as_ref().filter(|_| self.proxy.gate().is_open()) {
            let Occupied { unbound, unserved, held } = &self.occupied;
            reporter.set(reported::notices(&self.proxy, &Beside { unbound, unserved, held }));
        }
        self.well = status.ok;
        Some(status)
    }

    fn tables(&self) -> Vec<TableRows> {
        self.proxy.tables().stack().stages().map(|stage| TableRows::of(stage)).collect()
    }
}
