//! `Drains`: real servers that were taken out of service while clients may still be connected to them.
//!
//! A TCP real server gets weight 0: the kernel sends it no new connection and keeps the old ones. It is removed when its
//! last connection has ended, or when its grace period has (a connection that never ends must not keep it for ever).
//! A real server that comes back keeps its connections: its weight is set again, it is never deleted for that. UDP knows no
//! end of a connection and SCTP moves its own, so their real servers are removed at once and are never seen here.
//!
//! Invariant: the grace period of a drain is counted from its beginning, by the clock of the boot, through every restart of this
//! program ([`super::since`]). Pure: the clock and what the kernel counts are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netstate::Protocol;
use netstate::ipvs::{RealServerKey, VirtualServerKey};

/// Pause before the first look at the connections; doubled after each look.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause. A closed TCP connection is counted for two minutes (TIME_WAIT), so looking more often finds little.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drain {
    /// In seconds of the boot.
    since: u64,
    deadline: Duration,
    next: Duration,
    pause: Duration,
}

/// Why a drain has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The last connection is gone.
    Idle,
    /// The grace period is over; connections that are left will break.
    Expired,
    /// The kernel does not hold the real server any more.
    Gone,
}

/// The real servers being drained.
#[derive(Debug, Clone)]
pub(crate) struct Drains {
    grace: Duration,
    /// Time since the boot at which the clock of this program shows zero.
    boot: Duration,
    open: BTreeMap<RealServerKey, Drain>,
    /// Drains of an earlier run, with the second of the boot at which each began.
    earlier: BTreeMap<RealServerKey, u64>,
}

impl Drains {
    /// No drains; each will have `grace` at most. The clock of this program shows zero when the machine is up for `boot`.
    #[must_use]
    pub(crate) const fn new(grace: Duration, boot: Duration) -> Self {
        Self { grace, boot, open: BTreeMap::new(), earlier: BTreeMap::new() }
    }

    /// Takes in what an earlier run has left: each drain with the second of the boot at which it began.
    pub(crate) fn remember(&mut self, earlier: BTreeMap<RealServerKey, u64>) {
        self.earlier = earlier;
    }

    /// Forgets the drains of an earlier run that have not begun again: what drains from now on begins now.
    pub(crate) fn forget_earlier(&mut self) {
        self.earlier.clear();
    }

    /// True when a real server of this protocol is drained before it is removed.
    #[must_use]
    pub(crate) fn apply_to(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Tcp && self.are_given()
    }

    /// True when anything is drained at all.
    #[must_use]
    pub(crate) const fn are_given(&self) -> bool {
        !self.grace.is_zero()
    }

    /// Begins, or goes on with, the drain of `key`. Returns the second of the boot at which it began.
    pub(crate) fn begin(&mut self, key: RealServerKey, now: Duration) -> u64 {
        let at_boot = self.boot + now;
        // A clock that was set back cannot be this one; what is in the future began now.
        let since = self.earlier.remove(&key).map_or(at_boot, |since| Duration::from_secs(since).min(at_boot));
        let deadline = (since + self.grace).saturating_sub(self.boot);
        let drain = Drain { since: since.as_secs(), deadline, next: now + FIRST_PAUSE, pause: FIRST_PAUSE };
        self.open.entry(key).or_insert(drain).since
    }

    /// Ends the drain of `key`, because it is back in service or its virtual server is gone. Returns whether there was one.
    pub(crate) fn cancel(&mut self, key: &RealServerKey) -> bool {
        self.open.remove(key).is_some()
    }

    /// True while this real server is being drained.
    #[must_use]
    pub(crate) fn has(&self, key: &RealServerKey) -> bool {
        self.open.contains_key(key)
    }

    /// The real servers of `service` that are being drained.
    pub(crate) fn of(&self, service: VirtualServerKey) -> Vec<RealServerKey> {
        self.open.keys().filter(|key| key.service == service).copied().collect()
    }

    /// The real servers being drained with the time left to each.
    pub(crate) fn remaining(&self, now: Duration) -> impl Iterator<Item = (&RealServerKey, Duration)> {
        self.open.iter().map(move |(key, drain)| (key, drain.deadline.saturating_sub(now)))
    }

    /// The virtual servers whose connections are to be counted now.
    #[must_use]
    pub(crate) fn due(&self, now: Duration) -> BTreeSet<VirtualServerKey> {
        let due = |drain: &Drain| drain.next <= now || drain.deadline <= now;
        self.open.iter().filter(|(_, drain)| due(drain)).map(|(key, _)| key.service).collect()
    }

    /// When [`Drains::due`] will have something.
    #[must_use]
    pub(crate) fn next(&self) -> Option<Duration> {
        self.open.values().map(|drain| drain.next.min(drain.deadline)).min()
    }

    /// Takes in a look at the real servers of `service`: for each that the kernel holds, whether it is without
    /// connections. Returns those whose drain has ended.
    pub(crate) fn look(
        &mut self,
        service: VirtualServerKey,
        idle: &BTreeMap<RealServerKey, bool>,
        now: Duration,
    ) -> Vec<(RealServerKey, Ended)> {
        let mut ended = Vec::new();
        for (key, drain) in self.open.iter_mut().filter(|(key, _)| key.service == service) {
            match idle.get(key) {
                None => ended.push((*key, Ended::Gone)),
                Some(true) => ended.push((*key, Ended::Idle)),
                Some(false) if drain.deadline <= now => ended.push((*key, Ended::Expired)),
                Some(false) => {
                    drain.pause = (drain.pause * 2).min(LONGEST_PAUSE);
                    drain.next = now + drain.pause;
                }
            }
        }
        self.open.retain(|key, _| ended.iter().all(|(done, _)| done != key));
        ended
    }

    /// Puts off the next look after one that failed.
    pub(crate) fn postpone(&mut self, service: VirtualServerKey, now: Duration) {
        for (_, drain) in self.open.iter_mut().filter(|(key, _)| key.service == service) {
            drain.next = now + LONGEST_PAUSE;
            drain.deadline = drain.deadline.max(drain.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(900);

    fn pod(last: u8) -> RealServerKey {
        let service = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
        RealServerKey { service, addr: [172, 7, 21, last].into(), port: 80 }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn look(drains: &mut Drains, idle: &[(u8, bool)], now: u64) -> Vec<(RealServerKey, Ended)> {
        let idle = idle.iter().map(|(last, idle)| (pod(*last), *idle)).collect();
        drains.look(pod(2).service, &idle, at(now))
    }

    #[test]
    fn a_real_server_leaves_with_its_last_connection() {
        let mut drains = Drains::new(GRACE, at(5000));
        drains.begin(pod(2), at(0));
        drains.begin(pod(3), at(0));
        assert!(drains.due(at(0)).is_empty(), "the kernel needs a moment to see what is connected");
        assert_eq!(drains.due(at(1)), BTreeSet::from([pod(2).service]));
        assert_eq!(look(&mut drains, &[(2, false), (3, true)], 1), [(pod(3), Ended::Idle)]);
        assert_eq!(drains.next(), Some(at(3)));
        assert_eq!(look(&mut drains, &[(2, true)], 3), [(pod(2), Ended::Idle)]);
        assert_eq!(drains.next(), None);
    }

    #[test]
    fn the_grace_period_bounds_it() {
        let mut drains = Drains::new(GRACE, at(5000));
        drains.begin(pod(2), at(0));
        let mut now = 0;
        while look(&mut drains, &[(2, false)], now).is_empty() {
            let next = drains.next().unwrap().as_secs();
            assert!(next > now && next - now <= 15, "from {now} to {next}");
            now = next;
        }
        assert_eq!(now, 900);
    }

    #[test]
    fn the_end_of_the_grace_period_is_no_later_than_said_whenever_the_next_look_would_be() {
        let mut drains = Drains::new(at(5), at(5000));
        drains.begin(pod(2), at(0));
        for now in [1, 3] {
            assert_eq!(look(&mut drains, &[(2, false)], now), []);
        }
        assert_eq!((drains.next(), drains.due(at(4))), (Some(at(5)), BTreeSet::new()));
        assert_eq!(drains.due(at(5)), BTreeSet::from([pod(2).service]));
        assert_eq!(look(&mut drains, &[(2, false)], 5), [(pod(2), Ended::Expired)]);
    }

    #[test]
    fn a_look_that_failed_is_put_off_for_its_virtual_server_alone_also_behind_the_grace_period() {
        let mut drains = Drains::new(at(5), at(5000));
        let other = RealServerKey { service: VirtualServerKey { port: 81, ..pod(2).service }, ..pod(2) };
        drains.begin(pod(2), at(0));
        drains.begin(other, at(0));
        drains.postpone(pod(2).service, at(3));
        assert_eq!(
            drains.due(at(17)),
            BTreeSet::from([other.service]),
            "what cannot be read is not asked for all the time"
        );
        assert_eq!(drains.due(at(18)), BTreeSet::from([pod(2).service, other.service]));
        assert!(drains.cancel(&other));
        assert_eq!(drains.next(), Some(at(18)));
        assert_eq!(look(&mut drains, &[(2, false)], 17), [], "nobody knows how many connections there were");
        assert_eq!(look(&mut drains, &[(2, false)], 18), [(pod(2), Ended::Expired)]);
    }

    #[test]
    fn one_that_begins_twice_keeps_its_deadline_and_one_that_is_back_is_forgotten() {
        let mut drains = Drains::new(GRACE, at(5000));
        drains.begin(pod(2), at(0));
        drains.begin(pod(2), at(500));
        assert_eq!(drains.remaining(at(500)).map(|(_, left)| left).collect::<Vec<_>>(), [at(400)]);
        assert!(drains.cancel(&pod(2)));
        assert!(!drains.cancel(&pod(2)));
        assert_eq!(drains.next(), None);
    }

    #[test]
    fn a_drain_of_an_earlier_run_has_the_rest_of_its_time() {
        let mut drains = Drains::new(GRACE, at(5000));
        drains.remember(BTreeMap::from([(pod(2), 4800), (pod(3), 3000), (pod(4), 4900), (pod(5), 9000)]));
        assert_eq!([2, 3, 5].map(|last| drains.begin(pod(last), at(10))), [4800, 3000, 5010]);
        drains.forget_earlier();
        assert_eq!(drains.begin(pod(4), at(20)), 5020, "it was in service meanwhile");
        let left: Vec<_> = drains.remaining(at(20)).map(|(_, left)| left).collect();
        assert_eq!(left, [at(680), at(0), at(900), at(890)]);
        assert_eq!(
            look(&mut drains, &[(2, false), (3, false), (4, false), (5, false)], 20),
            [(pod(3), Ended::Expired)]
        );
    }

    #[test]
    fn one_that_the_kernel_no_longer_holds_is_done() {
        let mut drains = Drains::new(GRACE, at(5000));
        drains.begin(pod(2), at(0));
        assert_eq!(look(&mut drains, &[], 1), [(pod(2), Ended::Gone)]);
    }

    #[test]
    fn udp_and_a_grace_period_of_zero_are_not_drained() {
        assert!(!Drains::new(GRACE, at(5000)).apply_to(Protocol::Udp));
        assert!(!Drains::new(Duration::ZERO, at(0)).apply_to(Protocol::Tcp));
        assert!(Drains::new(GRACE, at(5000)).apply_to(Protocol::Tcp));
    }
}
