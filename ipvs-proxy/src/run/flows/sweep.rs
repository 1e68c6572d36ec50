//! Deleting stale connections, beside the thread that applies changes: a table of tracked connections may hold millions, and no change
//! of a Service waits for its reading.
//!
//! Invariant: what could not be read, or not deleted, is tried again until it could.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use daemon::slot::locked;
use kernel::KernelError;
use kernel::conntrack::Selection;
use netstate::IpFamily;

use super::{Check, Checks, Locals, Tracked};
use crate::plan::FrontendKey;
use crate::plan::frontend::Place;
use crate::run::counted::Numbers;
use crate::run::targets::{Flows, Sweeper};

/// Frontends of one family and protocol whose connections are read one frontend after the other. The kernel walks its whole table for
/// each, and shows only what is asked for; of more frontends one reading of everything is cheaper.
const ONE_BY_ONE: usize = 8;

/// Pause before another try.
const PAUSE: Duration = Duration::from_secs(1);

/// Deletes the stale connections of everything that waits in `checks`.
///
/// # Errors
/// When connections cannot be read or deleted; theirs and those of the frontends behind them wait again.
pub(crate) fn sweep(checks: &Mutex<Checks>, flows: &mut dyn Flows, numbers: &Numbers) -> Result<(), KernelError> {
    let begun = locked(checks).begin();
    let mut searched: BTreeMap<IpFamily, (Duration, usize)> = BTreeMap::new();
    let result = begun.into_iter().try_for_each(|((family, protocol), frontends)| {
        let is_filtered = flows.filters() && frontends.len() <= ONE_BY_ONE;
        let parts: Vec<_> = if is_filtered {
            frontends.iter().map(|frontend| (selection(frontend), std::slice::from_ref(frontend))).collect()
        } else {
            vec![(Selection::all(family, protocol), frontends.as_slice())]
        };
        let (took, all) = searched.entry(family).or_default();
        parts.into_iter().try_for_each(|(selection, frontends)| {
            let begun = Instant::now();
            let deleted = flows.forget(&selection, &|flow: &Tracked| locked(checks).is_stale(protocol, flow));
            *took = took.saturating_add(begun.elapsed());
            let deleted = deleted?;
            *all = all.saturating_add(deleted);
            if deleted > 0 {
                tracing::info!(of = %selection, deleted, "stale connections deleted");
            }
            locked(checks).done(frontends);
            Ok(())
        })
    });
    locked(checks).again();
    searched.into_iter().for_each(|(family, (took, deleted))| numbers.searched(family, took, deleted));
    result
}

fn selection(frontend: &FrontendKey) -> Selection {
    match frontend.place {
        Place::Address(addr) => Selection::to(frontend.protocol, addr, frontend.port),
        Place::AnyNode(family) => Selection::to_port(family, frontend.protocol, frontend.port),
    }
}

/// A thread that sweeps whenever something waits, as long as this exists.
#[derive(Debug)]
pub(crate) struct Background(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    checks: Mutex<Checks>,
    changed: Condvar,
}

impl Background {
    /// Begins.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start(flows: impl Flows + Send + 'static, numbers: Numbers) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let weak = Arc::downgrade(&shared);
        let mut flows = flows;
        let work = move || {
            let mut failed = None;
            while let Some(shared) = weak.upgrade() {
                if !shared.wait(failed.is_some()) {
                    continue;
                }
                let failure =
                    sweep(&shared.checks, &mut flows, &numbers).err().map(|error| kernel::Chain(&error).to_string());
                if let Some(reason) = failure.as_ref().filter(|reason| failed.as_ref() != Some(*reason)) {
                    tracing::warn!(error = reason, "stale connections stay for now");
                }
                failed = failure;
            }
        };
        thread::Builder::new().name("connections".to_owned()).spawn(work)?;
        Ok(Self(shared))
    }
}

impl Shared {
    /// Waits until something is to be done, for a while; returns whether it is.
    fn wait(&self, failed: bool) -> bool {
        let checks = locked(&self.checks);
        if failed {
            let (checks, _) = self.changed.wait_timeout(checks, PAUSE).unwrap_or_else(PoisonError::into_inner);
            return !checks.is_empty();
        }
        let idle = |checks: &mut Checks| checks.is_empty();
        let waited = self.changed.wait_timeout_while(checks, PAUSE * 60, idle);
        let (checks, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !checks.is_empty()
    }
}

impl Sweeper for Background {
    fn put(&mut self, checks: BTreeMap<FrontendKey, Check>, locals: Locals) {
        locked(&self.0.checks).put(checks, locals);
        self.0.changed.notify_one();
    }

    fn welcome(&mut self, frontend: &FrontendKey, endpoint: SocketAddr) {
        locked(&self.0.checks).welcome(frontend, endpoint);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use kernel::Cause;
    use netstate::{IpFamily, Protocol};

    use super::*;

    /// Notes what is asked for, and fails as often as it is said to.
    struct Asked {
        asked: Vec<String>,
        failures: usize,
        filters: bool,
    }

    impl Flows for Asked {
        fn forget(&mut self, of: &Selection, _: super::super::super::targets::Stale<'_>) -> Result<usize, KernelError> {
            self.asked.push(of.to_string());
            if self.failures > 0 {
                self.failures -= 1;
                return Err(KernelError::new("list", of, Cause::Unexpected("broken off".to_owned())));
            }
            Ok(0)
        }

        fn filters(&self) -> bool {
            self.filters
        }
    }

    fn noted(protocol: Protocol, count: u8) -> Mutex<Checks> {
        let key = |last| FrontendKey { protocol, place: Place::Address([192, 168, 0, last].into()), port: 80 };
        let mut checks = Checks::default();
        checks.put((1..=count).map(|last| (key(last), Check::default())).collect(), Locals::default());
        Mutex::new(checks)
    }

    fn asked(checks: &Mutex<Checks>, failures: usize, filters: bool) -> (Vec<String>, bool) {
        let mut flows = Asked { asked: Vec::new(), failures, filters };
        let done = sweep(checks, &mut flows, &Numbers::default()).is_ok();
        (flows.asked, done)
    }

    #[test]
    fn a_new_service_reads_the_connections_to_its_address_and_port_and_thousands_are_one_reading() {
        let (one, many) = (noted(Protocol::Tcp, 1), noted(Protocol::Tcp, 200));
        assert_eq!(asked(&one, 0, true).0, ["tcp connections to 192.168.0.1:80"]);
        assert_eq!(asked(&one, 0, true).0, [""; 0], "once");
        assert_eq!(asked(&many, 0, true).0, ["tcp IPv4 connections"]);
        assert_eq!(
            asked(&noted(Protocol::Udp, 2), 0, false).0,
            ["udp IPv4 connections"],
            "a kernel that shows everything"
        );
        let mut node_port = Checks::default();
        let key = FrontendKey { protocol: Protocol::Udp, place: Place::AnyNode(IpFamily::V6), port: 30_053 };
        node_port.put(BTreeMap::from([(key, Check::default())]), Locals::default());
        assert_eq!(asked(&Mutex::new(node_port), 0, true).0, ["udp IPv6 connections to port 30053"]);
    }

    #[test]
    fn frontends_whose_reading_fails_are_read_again() {
        let checks = noted(Protocol::Udp, 2);
        assert_eq!(asked(&checks, 1, true), (vec!["udp connections to 192.168.0.1:80".to_owned()], false));
        assert_eq!(asked(&checks, 0, true).0.len(), 2);
        assert!(locked(&checks).is_empty());
    }

    #[test]
    fn the_thread_tries_again_until_it_could_read() {
        struct Reports(mpsc::Sender<String>, usize);
        impl Flows for Reports {
            fn forget(&mut self, of: &Selection, _: crate::run::targets::Stale<'_>) -> Result<usize, KernelError> {
                self.1 += 1;
                let _ = self.0.send(of.to_string());
                if self.1 < 3 { Err(KernelError::new("list", of, Cause::Unexpected("no".to_owned()))) } else { Ok(0) }
            }
            fn filters(&self) -> bool {
                true
            }
        }
        let (sender, receiver) = mpsc::channel();
        let mut background = Background::start(Reports(sender, 0), Numbers::default()).unwrap();
        let waiting = std::mem::take(&mut locked(&noted(Protocol::Tcp, 1)).waiting);
        background.put(waiting, Locals::default());
        for _ in 0..3 {
            receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        }
    }
}
