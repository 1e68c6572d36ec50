//! How the other nodes' addresses are reached, asked of the kernel and asked again when its routes change.
//!
//! Invariants: a lease is planned only when its addresses have been asked; asking blocks no loop, and takes at most a
//! twentieth of the time, however often routes change. What is learned of a node costs that node, however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use daemon::liveness::{Heartbeat, Liveness};
use kernel::way::{Asked, Packet};
use kernel::{Chain, KernelError, Rtnl};
use netstate::IfName;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::plan::{Answers, Ways, direct};

/// How long routes must have been quiet before they are asked again: they rarely change alone.
const SETTLE: Duration = Duration::from_millis(200);

/// Times the duration of one asking, that pass before the next.
const SHARE: u32 = 20;

/// Time until a kernel that could not be asked is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Longest time of one asking: 20,000 addresses take a tenth of a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Answers that differ from what the plan goes by: it takes what it does not know for beyond a router.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Learned {
    pub(super) answers: Answers,
    /// Some of these addresses had been asked for before, so any lease may name them; the others are of leases that wait to be planned.
    pub(super) anew: bool,
}

/// What is known of the ways, and what is being asked.
#[derive(Default)]
pub(super) struct Reach {
    /// This program's devices, which are no way to a node.
    tunnels: BTreeSet<IfName>,
    /// Answers by address: the link of those that are reached directly.
    known: Answers,
    own: BTreeMap<IpAddr, IfName>,
    vrf: Option<IfName>,
    learned: Learned,
    asking: Option<JoinHandle<Result<(Answers, Duration), KernelError>>>,
    /// What is being asked for.
    asked: BTreeSet<IpAddr>,
    /// When everything is asked again.
    at: Option<Instant>,
    /// Not before this.
    not_before: Option<Instant>,
    /// The log has that the kernel could not be asked.
    failed: bool,
    heartbeat: Option<Heartbeat>,
}

impl Reach {
    /// With this program's devices, and what is known of this host.
    pub(super) fn new(tunnels: BTreeSet<IfName>, Ways { own, vrf, .. }: Ways) -> Self {
        Self { tunnels, own, vrf, ..Self::default() }
    }

    /// The same, with an asking that takes too long noticed.
    #[must_use]
    pub(super) fn judged_by(self, liveness: &Liveness) -> Self {
        Self { heartbeat: Some(liveness.heartbeat("ways", LIMIT)), ..self }
    }

    /// Routes have changed.
    pub(super) fn note(&mut self) {
        if !self.known.is_empty() {
            let earliest = self.not_before.unwrap_or_else(Instant::now);
            self.at.get_or_insert(earliest.max(Instant::now() + SETTLE));
        }
    }

    /// When everything is asked again; not while something is being asked.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at.filter(|_| !self.is_asking())
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// This program's devices.
    pub(super) fn set_tunnels(&mut self, tunnels: BTreeSet<IfName>) {
        self.tunnels = tunnels;
    }

    /// This host's own addresses.
    pub(super) fn set_own(&mut self, own: BTreeMap<IpAddr, IfName>) {
        self.own = own;
    }

    /// The VRF of the interface towards the other nodes. Returns whether it is another one than before.
    pub(super) fn set_vrf(&mut self, vrf: Option<IfName>) -> bool {
        let changed = self.vrf != vrf;
        self.vrf = vrf;
        changed
    }

    /// Begins to ask for those of `addresses` that are not known. Returns whether there are any.
    pub(super) fn ask(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let new: BTreeSet<IpAddr> = addresses.into_iter().filter(|addr| !self.known.contains_key(addr)).collect();
        if !new.is_empty() && !self.is_asking() {
            self.begin(new);
        }
        self.is_asking()
    }

    /// Begins to ask for everything again.
    pub(super) fn ask_again(&mut self) {
        self.at = None;
        self.begin(self.known.keys().copied().collect());
    }

    fn begin(&mut self, addresses: BTreeSet<IpAddr>) {
        let tunnels = self.tunnels.clone();
        self.asked.clone_from(&addresses);
        self.heartbeat.iter().for_each(Heartbeat::busy);
        self.asking = Some(tokio::task::spawn_blocking(move || {
            let begun = std::time::Instant::now();
            let routes = Rtnl::open()?.routes_to(addresses.into_iter().map(Packet::own), Asked::Way)?;
            let answer =
                |(addr, route): (IpAddr, Option<_>)| (addr, route.and_then(|(_, route)| direct(&route, &tunnels)));
            Ok((routes.into_iter().map(answer).collect(), begun.elapsed()))
        }));
    }

    /// Waits for the answers to what is being asked. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answers = asking.await;
        self.asking = None;
        self.heartbeat.iter().for_each(Heartbeat::idle);
        match answers {
            Ok(Ok((answers, took))) => {
                self.failed = false;
                self.not_before = Some(Instant::now() + took * SHARE);
                self.learn(answers);
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(error = %Chain(&error), "the routes to the other nodes cannot be read; tunnels are used");
                }
                for addr in std::mem::take(&mut self.asked) {
                    self.known.entry(addr).or_default();
                }
                self.at = Some(Instant::now() + AGAIN);
            }
            // Only when the runtime shuts down.
            Err(_) => {}
        }
    }

    fn learn(&mut self, answers: Answers) {
        for (addr, link) in answers {
            let before = self.known.insert(addr, link.clone());
            // In a VRF nothing is direct.
            if self.vrf.is_none() && before.clone().flatten() != link {
                self.learned.anew |= before.is_some();
                self.learned.answers.insert(addr, link);
            }
        }
    }

    /// What was learned since this was called last.
    pub(super) fn take_learned(&mut self) -> Learned {
        std::mem::take(&mut self.learned)
    }

    /// True when `ways` say of this host what is known.
    pub(super) fn agrees_on_host(&self, ways: &Ways) -> bool {
        ways.own == self.own && ways.vrf == self.vrf
    }

    /// Forgets addresses that no lease names any more.
    pub(super) fn retain(&mut self, used: &BTreeSet<IpAddr>) {
        self.known.retain(|addr, _| used.contains(addr));
    }

    /// What is known, for the plan.
    pub(super) fn ways(&self) -> Ways {
        let known = self.known.iter().filter(|_| self.vrf.is_none());
        let direct = known.filter_map(|(addr, link)| Some((*addr, link.clone()?))).collect();
        Ways { direct, own: self.own.clone(), vrf: self.vrf.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn address_of_one_more_node_is_all_that_is_learned_however_many_are_known() {
        let (direct, beyond) = (Some(IfName::literal("eth0")), None);
        let mut reach = Reach::default();
        reach.learn((0..10_000).map(|n| (addr(n), direct.clone())).collect());
        let first = reach.take_learned();
        assert_eq!((first.answers.len(), first.anew), (10_000, false));
        reach.learn([(addr(10_000), direct.clone())].into());
        assert_eq!(reach.take_learned(), Learned { answers: [(addr(10_000), direct.clone())].into(), anew: false });
        // What is beyond a router is what was taken for granted.
        reach.learn([(addr(10_001), beyond.clone())].into());
        assert_eq!(reach.take_learned(), Learned::default());
        // All of them are asked for again, and one has another answer.
        let mut again: Answers = (0..=10_000).map(|n| (addr(n), direct.clone())).collect();
        again.insert(addr(7), beyond.clone());
        reach.learn(again);
        assert_eq!(reach.take_learned(), Learned { answers: [(addr(7), beyond)].into(), anew: true });
        assert_eq!(reach.ways().direct.len(), 10_000);
    }

    #[test]
    fn nothing_is_learned_in_a_vrf_where_nothing_is_direct() {
        let mut reach = Reach::default();
        assert!(reach.agrees_on_host(&Ways::default()));
        assert!(reach.set_vrf(Some(IfName::literal("blue"))) && !reach.agrees_on_host(&Ways::default()));
        reach.learn([(addr(1), Some(IfName::literal("eth0")))].into());
        assert_eq!((reach.take_learned(), reach.ways().direct.len()), (Learned::default(), 0));
        reach.set_vrf(None);
        assert_eq!(reach.ways().direct.len(), 1);
    }
}
