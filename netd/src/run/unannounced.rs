//! When tables are listed whose changes nobody announces: WireGuard's peers, files.
//!
//! Invariant: listing them takes at most a thousandth of a processor, however many rows they have, and a listing is never
//! more than an audit apart from the next.

use std::time::Duration;

/// Shortest time between two listings.
const SHORTEST: Duration = Duration::from_secs(1);

/// Share of the time that listings may take: one in so many.
const SHARE: u32 = 1000;

/// When the tables are listed next.
#[derive(Debug, Default)]
pub(super) struct Unannounced {
    next: Duration,
    /// How long the last listings took. The shortest counts: a busy machine makes one long, not all.
    took: [Duration; 4],
}

impl Unannounced {
    /// True when it is time; then the next listing is a pause away.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let due = self.next <= now;
        if due {
            let shortest = self.took.iter().min().copied().unwrap_or_default();
            self.next = now + SHORTEST.max(shortest * SHARE);
        }
        due
    }

    /// The last listing took this long, and nothing else was done in that time.
    pub(super) const fn note(&mut self, took: Duration) {
        let [_, second, third, fourth] = self.took;
        self.took = [second, third, fourth, took];
    }

    /// When the tables are listed next, on the caller's clock.
    pub(super) const fn next(&self) -> Duration {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_listed_each_second_or_for_a_thousandth_of_a_processor() {
        let mut tables = Unannounced::default();
        let second = Duration::from_secs(1);
        assert!(tables.is_due(Duration::ZERO) && !tables.is_due(second / 2) && tables.is_due(second));
        for _ in 0..8 {
            tables.note(Duration::from_micros(300));
        }
        tables.note(second);
        assert!(tables.is_due(2 * second));
        assert_eq!(tables.next(), 3 * second, "one that was interrupted does not count");
        for _ in 0..4 {
            tables.note(Duration::from_millis(10));
        }
        assert!(tables.is_due(3 * second));
        assert_eq!(tables.next(), 13 * second);
    }
}
