//! `Occasions`: when virtual servers are counted and when they are listed.
//!
//! Invariant: each is done when it is due, and nothing is done for its own sake that can be done on the same occasion: each time that the
//! thread wakes costs more than a count.

use std::time::Duration;

/// Time between two checks of tables that announce no changes: virtual servers are counted and some real servers compared, so that
/// what somebody deletes is back within a second.
const PERIOD: Duration = Duration::from_millis(500);

/// How many times longer than a listing of virtual servers takes is the time to the next, up to [`LONGEST`]: a quiet node shall cost nothing
/// that shows.
const SHARE: u32 = 1000;

/// The longest time between two listings, however long they take: what somebody else deleted is back within a second.
const LONGEST: Duration = Duration::from_millis(900);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Occasions {
    next_check: Duration,
    next_listing: Duration,
}

impl Occasions {
    /// Whether it is time for a check, and then whether for a listing as well, which counts too.
    pub(super) fn due(&mut self, now: Duration) -> Option<bool> {
        let lists = now >= self.next_listing;
        (lists || now >= self.next_check).then(|| {
            self.next_check = now + PERIOD;
            lists
        })
    }

    /// Virtual servers were listed, which took so long.
    pub(super) fn listed(&mut self, now: Duration, took: Duration) {
        self.next_listing = now + pause(took);
    }

    /// When something is due again.
    pub(super) fn next(&self) -> Duration {
        self.next_listing.min(self.next_check)
    }
}

/// The time to the next listing behind one that took so long.
pub(in crate::run) fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(PERIOD, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_takes_the_place_of_a_count_and_neither_comes_late() {
        for took in [100, 600, 2_000].map(Duration::from_micros) {
            let (mut occasions, mut now) = (Occasions::default(), Duration::ZERO);
            let (mut wakes, mut last, mut listed) = (0, Duration::ZERO, Duration::ZERO);
            while now < Duration::from_secs(90) {
                let lists = occasions.due(now).unwrap();
                assert_eq!(occasions.due(now).filter(|lists| !lists), None, "once each time");
                assert!(now - last <= PERIOD, "counted {last:?} and {now:?}");
                assert!(now - listed <= LONGEST, "listed {listed:?} and {now:?}");
                last = now;
                if lists {
                    occasions.listed(now, took);
                    listed = now;
                }
                (wakes, now) = (wakes + 1, occasions.next());
            }
            // Each apart, these were four.
            assert!(wakes <= 90 * 5 / 2 + 90, "{wakes} wakes in 90 s");
        }
    }
}
