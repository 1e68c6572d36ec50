//! When tables are checked whose changes nobody announces: WireGuard's peers, files.
//!
//! Peers are listed only when a check shows that somebody changed them, or an audit is due. Invariant: checks take at most a
//! hundredth of a processor, however many rows there are, and are never more than an audit apart.

use std::time::Duration;

use kernel::wireguard::Fingerprint;

/// True when a table may have changed since the last check.
pub(super) type Check = Box<dyn FnMut() -> bool + Send>;

/// What cannot be read counts as changed: the table's own listing says why.
pub(super) fn check(mut fingerprint: Fingerprint) -> Check {
    Box::new(move || fingerprint.has_changed().unwrap_or(true))
}

/// Shortest time between two checks.
const SHORTEST: Duration = Duration::from_secs(1);

/// Share of the time that checks may take: one in so many.
const SHARE: u32 = 100;

/// When the tables are listed next.
#[derive(Debug, Default)]
pub(super) struct Unannounced {
    next: Duration,
    /// How long the last checks took. The shortest counts: a busy machine makes one long, not all.
    took: [Duration; 4],
}

impl Unannounced {
    /// True when it is time; then the next check is a pause away.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let due = self.next <= now;
        if due {
            let shortest = self.took.iter().min().copied().unwrap_or_default();
            self.next = now + SHORTEST.max(shortest * SHARE);
        }
        due
    }

    /// The last check took this long, and nothing else was done in that time.
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
    fn tables_are_checked_each_second_or_for_a_hundredth_of_a_processor() {
        let mut tables = Unannounced::default();
        let second = Duration::from_secs(1);
        assert!(tables.is_due(Duration::ZERO) && !tables.is_due(second / 2) && tables.is_due(second));
        for _ in 0..8 {
            tables.note(Duration::from_millis(3));
        }
        tables.note(second);
        assert!(tables.is_due(2 * second));
        assert_eq!(tables.next(), 3 * second, "one that was interrupted does not count");
        for _ in 0..4 {
            tables.note(Duration::from_millis(100));
        }
        assert!(tables.is_due(3 * second));
        assert_eq!(tables.next(), 13 * second);
    }
}
