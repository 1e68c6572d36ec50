//! Jittered waiting times between attempts.
//!
//! Pure: the seed comes in, the waiting is done by the caller. Invariant: every delay lies in
//! [`Backoff::MIN`]`..=`[`Backoff::MAX`], and nodes with different seeds do not come back in step: after an
//! outage of the store a thousand of them list within seconds, not within one instant.

use std::time::Duration;

/// A doubling, jittered sequence of delays.
#[derive(Debug, Clone)]
pub struct Backoff {
    random: fastrand::Rng,
    ceiling: Duration,
}

impl Backoff {
    /// The shortest delay, 100 ms: flannel's first one.
    pub const MIN: Duration = Duration::from_millis(100);
    /// The longest delay, 5 s: flannel's last one.
    pub const MAX: Duration = Duration::from_secs(5);

    /// A fresh sequence; the same seed gives the same delays.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), ceiling: Self::MIN * 2 }
    }

    /// How long to wait before the next attempt: a random time in the upper half of the current step, whose end
    /// doubles from 200 ms to 5 s.
    pub fn next_delay(&mut self) -> Duration {
        let half = self.ceiling / 2;
        let delay = half + half.mul_f64(self.random.f64());
        self.ceiling = (self.ceiling * 2).min(Self::MAX);
        delay.clamp(Self::MIN, Self::MAX)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.ceiling = Self::MIN * 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_grow_to_the_longest_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(7);
        assert!(backoff.next_delay() <= Duration::from_millis(200));
        let last = (0..20).map(|_| backoff.next_delay()).last().unwrap();
        assert!(last >= Backoff::MAX / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(200));
    }

    #[test]
    fn different_seeds_do_not_come_back_in_step() {
        let first = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..8).map(|_| backoff.next_delay()).collect::<Vec<_>>()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    proptest! {
        #[test]
        fn every_delay_is_within_bounds(seed in any::<u64>(), steps in 1..40_usize) {
            let mut backoff = Backoff::new(seed);
            for _ in 0..steps {
                let delay = backoff.next_delay();
                prop_assert!((Backoff::MIN..=Backoff::MAX).contains(&delay));
            }
        }
    }
}
