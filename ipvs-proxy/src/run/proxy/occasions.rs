//! `Occasions`: when virtual servers are counted and listed, of which IPVS announces nothing.
//!
//! Invariants: what changes their number is found within a second. What does not, within [`SELDOM`], and as much sooner as listings then take no
//! more than a five-thousandth of a processor: one of ten thousand virtual servers takes a millisecond or two. Nothing of it is done while changes
//! come that somebody waits for.

use std::time::Duration;

/// Time between two counts of the virtual servers while nothing else is to be done.
const OFTEN: Duration = Duration::from_millis(850);

/// The longest time to the next look, whatever is to be done.
const LATEST: Duration = Duration::from_millis(950);

/// How many times longer than a listing takes is the time to the next, up to [`SELDOM`].
const SHARE: u32 = 5000;

/// The longest time between two listings: kube-proxy's `syncPeriod`.
const SELDOM: Duration = Duration::from_secs(30);

/// Behind a change the next one may be on its way.
const QUIET: Duration = Duration::from_millis(25);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Occasions {
    next: Duration,
    latest: Duration,
    listing: Duration,
}

impl Occasions {
    /// Whether it is time for a look.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Somebody waits for a change: a look may wait, and behind it a moment for the next one.
    pub(super) fn postpone(&mut self, now: Duration) {
        self.next = self.next.max((now + QUIET).min(self.latest));
    }

    /// A look is taken; returns whether they are listed whatever it shows.
    pub(super) fn look(&mut self, now: Duration) -> bool {
        (self.next, self.latest) = (now + OFTEN, now + LATEST);
        now >= self.listing
    }

    /// Virtual servers were listed, which took so long.
    pub(super) fn listed(&mut self, now: Duration, took: Duration) {
        self.listing = now + pause(took);
    }

    /// When it is time for a look.
    pub(super) const fn next(&self) -> Duration {
        self.next
    }
}

/// The time to the next listing behind one that took so long.
pub(in crate::run) fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).min(SELDOM)
}

/// Whether a listing that took so long is one of many virtual servers: it is done more rarely than the count.
pub(super) fn is_large(took: Duration) -> bool {
    pause(took) > OFTEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_waits_for_changes_but_never_for_a_second_and_listings_take_their_share() {
        let micros = Duration::from_micros;
        for (every, took, expected) in [(1_u64, 2_000, 2..=3), (7, 600, 6..=8), (20, 100, 20..=24), (3, 90_000, 1..=1)]
        {
            let (mut occasions, mut last, mut counts, mut listings) = (Occasions::default(), Duration::ZERO, 0, 0);
            for now in (0..20_000).map(Duration::from_millis) {
                // Changes come in bursts of a second.
                let is_change = now.as_secs().is_multiple_of(2) && u64::from(now.subsec_millis()).is_multiple_of(every);
                if is_change {
                    occasions.postpone(now);
                }
                if occasions.is_due(now) {
                    assert!(now - last <= LATEST, "{last:?} and {now:?}");
                    assert!(!is_change || now - last == LATEST || counts == 0, "a change waits at {now:?}");
                    (last, counts) = (now, counts + 1);
                    if occasions.look(now) {
                        occasions.listed(now, micros(took));
                        listings += 1;
                    }
                }
            }
            assert!((20..=24).contains(&counts), "{counts} counts in 20 s");
            assert!(expected.contains(&listings), "{listings} listings of {took} us in 20 s");
        }
    }
}
