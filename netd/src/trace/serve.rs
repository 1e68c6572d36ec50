//! Watching a flow for another node's `netd trace`.
//!
//! Invariants: one flow at a time, for a few seconds, and only for a node that has a lease and about a packet between Pods
//! or from that node; whoever else asks gets no answer, and changes nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::daemon::http;
use netstate::Prefix;
use serde::Deserialize as _;

use super::facts::{self, Traced};
use super::far::{Report, Watch};
use super::observer::Observer;
use super::path;
use super::pods;
use super::seen::Side;
use crate::run::status::Status;

/// Longest time that a flow is watched.
const LONGEST: Duration = Duration::from_secs(6);

/// Time until the next check whether the end has been asked for.
const SLICE: Duration = Duration::from_millis(20);

/// Longest wait for the own daemon's leases.
const LIMIT: Duration = Duration::from_secs(2);

/// Reports that are kept for a question that is asked again.
const KEPT: usize = 4;

/// When a flow is watched that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is.
    Now,
    /// Behind the one that is watched.
    Later,
}

/// What watches, at most one flow.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    busy: AtomicBool,
    current: AtomicU64,
    ended: AtomicBool,
    reports: Mutex<BTreeMap<u64, Report>>,
}

impl Watcher {
    /// Watches what `watch` says if `asker` may ask for it; blocks until that has ended. `answer` is called when it has begun, and
    /// with [`Turn::Later`] while another flow is watched.
    pub(crate) fn watch(
        &self,
        run_dir: &Path,
        subnet_file: &str,
        (asker, watch): (IpAddr, Watch),
        answer: impl FnOnce(Turn),
    ) {
        if self.busy.swap(true, Ordering::AcqRel) {
            // The same question again: its first answer was lost.
            if self.current.load(Ordering::Acquire) == watch.number {
                answer(Turn::Now);
            } else if own_status(run_dir).is_some_and(|status| may_ask(&status, asker, &watch)) {
                answer(Turn::Later);
            }
            return;
        }
        self.current.store(watch.number, Ordering::Release);
        self.ended.store(false, Ordering::Release);
        let status = own_status(run_dir).filter(|status| may_ask(status, asker, &watch));
        if let Some(status) = status {
            let report = self.observe(&watch, &status, subnet_file, || answer(Turn::Now));
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            if reports.len() >= KEPT {
                reports.clear();
            }
            reports.insert(watch.number, report);
        }
        self.busy.store(false, Ordering::Release);
    }

    /// What was seen; waits shortly for a watch that is under way.
    pub(crate) fn report(&self, number: u64) -> Option<Report> {
        let deadline = Instant::now() + LIMIT;
        if self.current.load(Ordering::Acquire) == number {
            self.ended.store(true, Ordering::Release);
        }
        loop {
            let found = self.reports.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
            let under_way = self.busy.load(Ordering::Acquire) && self.current.load(Ordering::Acquire) == number;
            if found.is_some() || !under_way || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(SLICE);
        }
    }

    fn observe(&self, watch: &Watch, status: &Status, subnet_file: &str, begun: impl FnOnce()) -> Report {
        let mut report = Report::default();
        let mut observer = match Observer::start(watch.source, watch.protocol) {
            Ok(observer) => Some(observer),
            Err(error) => {
                report.trouble = Some(error.to_string());
                None
            }
        };
        begun();
        let deadline = Instant::now() + LONGEST;
        while !self.ended.load(Ordering::Acquire) && Instant::now() < deadline {
            match &mut observer {
                Some(observer) => {
                    if let Err(error) = observer.collect(Instant::now() + SLICE) {
                        report.trouble = Some(error.to_string());
                        break;
                    }
                }
                None => std::thread::sleep(SLICE),
            }
        }
        if let Some(observer) = &mut observer {
            let _ = observer.collect(Instant::now() + SLICE);
            report.seen = observer.seen((watch.source, watch.target), Side::Far);
        }
        // The way back: from whoever gets the probe to whoever sent it.
        let back = Traced { from: watch.target.ip(), to: watch.source, protocol: watch.protocol };
        let place = pods::place_of(watch.target.ip());
        match facts::gather(&back, place.as_ref(), Some(status), subnet_file, None) {
            Ok(facts) => report.back = path::steps(&facts),
            Err(error) => report.trouble = Some(error.to_string()),
        }
        report
    }
}

fn own_status(run_dir: &Path) -> Option<Status> {
    let text = http::ask(run_dir, "/status?format=json", LIMIT).ok()?;
    Status::deserialize(&serde_json::from_str::<serde_json::Value>(&text).ok()?).ok()
}

/// True when `asker` has a lease, and the packet is from a Pod or a node to a Pod or this node.
fn may_ask(status: &Status, asker: IpAddr, watch: &Watch) -> bool {
    let nodes = || status.leases.iter().flatten().flat_map(|(_, peer)| peer.public_ip.split(','));
    let is_node = |address: IpAddr| nodes().any(|text| text.parse() == Ok(address));
    let in_network = |end: SocketAddr| {
        status.node.network.split(',').any(|text| text.parse().is_ok_and(|network: Prefix| network.contains(end.ip())))
    };
    let own = status.node.public_ip.split(',').any(|text| text.parse() == Ok(watch.target.ip()));
    is_node(asker) && (in_network(watch.source) || is_node(watch.source.ip())) && (in_network(watch.target) || own)
}

/// What the responder keeps of it.
#[derive(Debug, Clone)]
pub(crate) struct Watching {
    watcher: Arc<Watcher>,
    run_dir: PathBuf,
    subnet_file: String,
}

impl Watching {
    /// Nothing is watched yet.
    #[must_use]
    pub(crate) fn new(run_dir: PathBuf, subnet_file: String) -> Self {
        Self { watcher: Arc::default(), run_dir, subnet_file }
    }

    /// Begins to watch, on a thread for blocking work; `answer` is called there.
    pub(crate) fn begin(&self, asker: IpAddr, watch: Watch, answer: impl FnOnce(Turn) + Send + 'static) {
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            this.watcher.watch(&this.run_dir, &this.subnet_file, (asker, watch), answer);
        });
    }

    /// Has `reply` send what was seen, if there was something to see.
    pub(crate) fn end(&self, number: u64, reply: impl FnOnce(Report) + Send + 'static) {
        let watcher = Arc::clone(&self.watcher);
        tokio::task::spawn_blocking(move || {
            if let Some(report) = watcher.report(number) {
                reply(report);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;

    use super::*;
    use crate::run::status::{Node, Peer};

    fn status() -> Status {
        let node = Node { public_ip: "10.4.7.22".to_owned(), network: "172.7.0.0/16".to_owned(), ..Node::default() };
        let peer = Peer { public_ip: "10.4.7.21".to_owned(), ..Peer::default() };
        Status { node, leases: Some([("172.7.21.0/24".to_owned(), peer)].into()), ..Status::default() }
    }

    fn allowed(asker: &str, source: &str, target: &str) -> bool {
        let watch = Watch {
            number: 1,
            source: source.parse().unwrap(),
            target: target.parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        may_ask(&status(), asker.parse().unwrap(), &watch)
    }

    #[test]
    fn only_nodes_ask_and_only_about_pods_and_nodes() {
        assert!(allowed("10.4.7.21", "172.7.21.2:4000", "172.7.22.2:80"));
        assert!(allowed("10.4.7.21", "10.4.7.21:4000", "10.4.7.22:80"));
        assert!(!allowed("10.4.7.99", "172.7.21.2:4000", "172.7.22.2:80"), "no node");
        assert!(!allowed("10.4.7.21", "203.0.113.9:4000", "172.7.22.2:80"), "somebody else's traffic");
        assert!(!allowed("10.4.7.21", "172.7.21.2:4000", "203.0.113.9:22"), "somebody else's server");
    }

    #[test]
    fn report_that_nobody_made_is_none_at_once() {
        let begun = Instant::now();
        assert!(Watcher::default().report(7).is_none());
        assert!(begun.elapsed() < LIMIT);
    }
}
