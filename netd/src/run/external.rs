//! The interface towards the other nodes, followed while the daemon runs.
//!
//! Invariants: what names the interface decides where this node is. As long as that is the interface in use, the address
//! in use stays, whatever else changes. Where the default route names it, another one that has taken over for longer than
//! a moment does. A family that comes is taken in, one that goes is waited for. A host without any interface to choose
//! keeps what it had; at the start it is waited for.

use std::time::Duration;

use cluster::Problem;
use kernel::watch::{Event, Interest, Watch};
use kernel::{Chain, KernelError};
use netstate::IpFamily;
use tokio::time::{Instant, timeout};

use super::facts;
use crate::choose::interface::{self, Interface, Wanted};

/// How long links and addresses must have been quiet before they are read: they rarely change alone.
const SETTLE: Duration = Duration::from_millis(200);

/// The same for routes: a default route is often made anew when an address is.
const SETTLE_ROUTES: Duration = Duration::from_secs(1);

/// Time after which a host that has no interface is read again although nothing was reported.
const AUDIT: Duration = Duration::from_secs(10);

/// The interface that is used, and when it is read again.
pub(super) struct External {
    wanted: Wanted,
    /// The families of the network.
    families: Vec<IpFamily>,
    pub(super) current: interface::External,
    /// This host's addresses, as they were read last.
    pub(super) host: Vec<Interface>,
    at: Option<Instant>,
    /// Routes have changed since it was chosen.
    routes: bool,
    /// What is missing of it: an address, or the link itself.
    pub(super) missing: Option<String>,
}

impl External {
    pub(super) const fn new(
        wanted: Wanted,
        families: Vec<IpFamily>,
        current: interface::External,
        host: Vec<Interface>,
    ) -> Self {
        Self { wanted, families, current, host, at: None, routes: false, missing: None }
    }

    /// The network has these families from now on: addresses of another one are of no use any more.
    pub(super) fn set_families(&mut self, families: Vec<IpFamily>) {
        let kept = |family, own| if families.contains(&family) { own } else { None };
        self.current.addresses = self.current.addresses.map(kept);
        self.families = families;
        self.note();
    }

    /// Reads this host's addresses.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) async fn read_host(&mut self) -> Result<(), KernelError> {
        self.host = facts::interfaces().await?;
        Ok(())
    }

    /// A link or an address has changed.
    pub(super) fn note(&mut self) {
        let at = Instant::now() + SETTLE;
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }

    /// A route has changed that may name another interface.
    pub(super) fn note_routes(&mut self) {
        if self.wanted.follows_routes() {
            self.routes = true;
            self.at.get_or_insert(Instant::now() + SETTLE_ROUTES);
        }
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Reads the interface; returns it when it differs from before.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) async fn read(&mut self) -> Result<Option<interface::External>, KernelError> {
        self.at = None;
        let routes = std::mem::take(&mut self.routes);
        self.read_host().await?;
        let found = self.host.iter().find(|found| found.name == self.current.interface);
        let same = found.and_then(|found| self.current.on(found));
        let has_all = |same: &interface::External| self.families.iter().all(|of| same.addresses.get(*of).is_some());
        let now = match same {
            Some(same) if !routes && has_all(&same) => same,
            same => match (choose(&self.wanted, &self.families).await?, same) {
                (Ok(chosen), Some(same)) if chosen.interface == same.interface => same.or(&chosen),
                (Ok(chosen), _) => chosen,
                // Without a default route the address still is this node's.
                (Err(_), Some(same)) => same,
                (Err(problem), None) => {
                    let text = "this node's address is gone and there is no other; it stays as it was";
                    self.misses(Some(format!("{text}: {problem}")));
                    return Ok(None);
                }
            },
        };
        let lost = self.current.addresses.families().any(|family| now.addresses.get(family).is_none());
        let interface = &now.interface;
        let is_down = self.host.iter().any(|found| found.name == *interface && !found.up);
        self.misses(match (is_down, lost) {
            (true, _) => Some(format!("{interface} is down: no other node is reached")),
            (_, true) => {
                Some(format!("{interface}: this node's address of one family is gone; its lease stays as it was"))
            }
            _ => None,
        });
        // A family that goes for a moment (a link that is down has no IPv6 address) takes no subnet along.
        let now = now.or(&self.current);
        Ok((now != self.current).then(|| {
            self.current = now.clone();
            now
        }))
    }

    /// Notes what is missing of the interface, if something is; the log has it once.
    fn misses(&mut self, missing: Option<String>) {
        if let Some(text) = missing.as_ref().filter(|text| self.missing.as_ref() != Some(text)) {
            tracing::warn!("{text}");
        }
        self.missing = missing;
    }
}

/// The choice for the host as it is now.
async fn choose(wanted: &Wanted, families: &[IpFamily]) -> Result<Result<interface::External, Problem>, KernelError> {
    Ok(interface::choose(wanted, &facts::gather(wanted).await?, families))
}

/// The interface, waited for: an address, a link or a default route may still come. `report` is given what is missing,
/// whenever that changes.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) async fn wait(
    wanted: &Wanted,
    families: &[IpFamily],
    report: impl Fn(&str),
) -> Result<interface::External, KernelError> {
    let mut reported = String::new();
    // Open before the first look, so that nothing comes unnoticed.
    let mut watch = Watch::open(Interest::default());
    loop {
        let problem = match choose(wanted, families).await? {
            Ok(chosen) => return Ok(chosen),
            Err(problem) => problem.to_string(),
        };
        if problem != reported {
            tracing::warn!("waiting: {problem}");
            report(&problem);
            reported = problem;
        }
        match &mut watch {
            Ok(open) => {
                let _ = timeout(AUDIT, changed(open)).await;
                tokio::time::sleep(SETTLE).await;
            }
            Err(error) => {
                tracing::debug!(error = %Chain(error), "no monitor; the host is read again in a while");
                tokio::time::sleep(AUDIT).await;
            }
        }
    }
}

/// Waits for a change of links, addresses or routes; for ever when the monitor has ended.
async fn changed(watch: &mut Watch) {
    loop {
        match watch.next().await {
            Ok(Event::Neighbour | Event::Forwarding) => {}
            Ok(_) => return,
            Err(_) => std::future::pending().await,
        }
    }
}
