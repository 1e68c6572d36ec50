//! `Occasions`: when virtual servers are listed, which IPVS says nothing of.
//!
//! Invariants: what somebody else deletes is back within a second; as far as that allows, a listing takes a thousandth of a processor, and
//! none is made while changes come that somebody waits for: one of ten thousand virtual servers takes a millisecond.

use std::time::Duration;

/// The shortest time between two listings.
const SHORTEST: Duration = Duration::from_millis(500);

/// How many times longer than a listing takes is the time to the next, up to [`LONGEST`].
const SHARE: u32 = 1000;

/// The longest time to the next listing while nothing else is to be done.
const LONGEST: Duration = Duration::from_millis(850);

/// The longest time to the next listing, whatever is to be done.
const LATEST: Duration = Duration::from_millis(950);

/// Behind a change the next one may be on its way.
const QUIET: Duration = Duration::from_millis(25);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Occasions {
    next: Duration,
    latest: Duration,
}

impl Occasions {
    /// Whether it is time for a listing.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Somebody waits for a change: a listing may wait, and behind it a moment for the next one.
    pub(super) fn postpone(&mut self, now: Duration) {
        self.next = self.next.max((now + QUIET).min(self.latest));
    }

    /// Virtual servers were listed, which took so long.
    pub(super) fn listed(&mut self, now: Duration, took: Duration) {
        self.next = now + pause(took);
        self.latest = now + LATEST;
    }

    /// When it is time for a listing.
    pub(super) const fn next(&self) -> Duration {
        self.next
    }
}

/// The time to the next listing behind one that took so long.
pub(in crate::run) fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_waits_for_changes_but_never_for_a_second() {
        for (every, took) in
            [(1_u64, 2_000), (7, 600), (20, 100)].map(|(every, took)| (every, Duration::from_micros(took)))
        {
            let (mut occasions, mut listed, mut listings) = (Occasions::default(), Duration::ZERO, 0);
            for now in (0..20_000).map(Duration::from_millis) {
                // Changes come in bursts of a second.
                let is_change = now.as_secs().is_multiple_of(2) && u64::from(now.subsec_millis()).is_multiple_of(every);
                if is_change {
                    occasions.postpone(now);
                }
                if occasions.is_due(now) {
                    assert!(now - listed <= LATEST, "listed {listed:?} and {now:?}");
                    assert!(!is_change || now - listed == LATEST || listings == 0, "a change waits at {now:?}");
                    occasions.listed(now, took);
                    (listed, listings) = (now, listings + 1);
                }
            }
            assert!((20..=40).contains(&listings), "{listings} listings in 20 s");
        }
    }
}
