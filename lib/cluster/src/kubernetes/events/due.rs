//! `Due`: which Events are to be created when.
//!
//! Pure; time is an argument. Invariants: what passes by itself within [`DWELL`] is no Event; one that stands is repeated every
//! [`REPEAT`], since the API server forgets Events after an hour; of all together there are at most [`BURST`] in [`WINDOW`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long something must be wrong.
const DWELL: Duration = Duration::from_secs(10);

/// When it is reported again.
pub(super) const REPEAT: Duration = Duration::from_secs(30 * 60);

/// Events within [`WINDOW`].
const BURST: usize = 10;
const WINDOW: Duration = Duration::from_secs(10 * 60);

/// What is to be reported, since when, and when it was.
#[derive(Debug)]
pub struct Due<T> {
    standing: BTreeMap<T, Times>,
    /// What is reported once, and not before that time.
    once: Vec<(Duration, T)>,
    sent: VecDeque<Duration>,
}

impl<T> Default for Due<T> {
    fn default() -> Self {
        Self { standing: BTreeMap::new(), once: Vec::new(), sent: VecDeque::new() }
    }
}

#[derive(Debug, Clone, Copy)]
struct Times {
    since: Duration,
    reported: Option<Duration>,
}

impl Times {
    fn due(self) -> Duration {
        self.reported.map_or_else(|| self.since.saturating_add(DWELL), |reported| reported.saturating_add(REPEAT))
    }
}

impl<T: Ord + Clone> Due<T> {
    /// Exactly this stands at `now`.
    pub fn set(&mut self, standing: Vec<T>, now: Duration) {
        self.standing.retain(|one, _| standing.contains(one));
        for one in standing {
            self.standing.entry(one).or_insert(Times { since: now, reported: None });
        }
    }

    /// This is to be reported one time, at once.
    pub fn add_once(&mut self, one: T, now: Duration) {
        self.once.push((now, one));
    }

    /// What is to be reported at `now`; it counts as reported.
    pub fn take(&mut self, now: Duration) -> Option<T> {
        while self.sent.front().is_some_and(|sent| now.saturating_sub(*sent) >= WINDOW) {
            self.sent.pop_front();
        }
        if self.sent.len() >= BURST {
            return None;
        }
        let once = self.once.iter().position(|(due, _)| *due <= now).map(|at| self.once.remove(at).1);
        let taken = once.or_else(|| {
            let (one, times) = self.standing.iter_mut().find(|(_, times)| times.due() <= now)?;
            times.reported = Some(now);
            Some(one.clone())
        })?;
        self.sent.push_back(now);
        Some(taken)
    }

    /// What was taken could not be reported: it is due again after [`DWELL`], and counts among those that were.
    pub fn failed(&mut self, one: T, now: Duration) {
        match self.standing.get_mut(&one) {
            Some(times) => *times = Times { since: now, reported: None },
            None => self.once.push((now.saturating_add(DWELL), one)),
        }
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        let once = self.once.iter().map(|(due, _)| *due);
        let due = self.standing.values().map(|times| times.due()).chain(once).min()?;
        let free = self.sent.front().filter(|_| self.sent.len() >= BURST).map(|first| first.saturating_add(WINDOW));
        Some(free.map_or(due, |free| free.max(due)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_passes_is_no_event_and_what_stands_is_reported_again_every_half_hour() {
        let mut due = Due::default();
        due.set(vec![1], at(0));
        assert_eq!((due.take(at(9)), due.next()), (None, Some(at(10))));
        due.set(Vec::new(), at(9));
        assert_eq!((due.take(at(60)), due.next()), (None, None));
        due.set(vec![1], at(100));
        for now in 101..3000 {
            due.set(vec![1], at(now));
            let reported = due.take(at(now)).is_some();
            assert_eq!(reported, now == 110 || now == 1910, "at {now}");
        }
    }

    #[test]
    fn a_flood_is_a_few_events() {
        let mut due = Due::default();
        let mut reported = 0;
        for now in 0..599 {
            // Another one every second, all of which stand.
            due.set((0..40).collect(), at(now));
            reported += std::iter::from_fn(|| due.take(at(now))).count();
        }
        assert_eq!((reported, due.next()), (10, Some(at(610))));
        assert!(due.take(at(610)).is_some());
    }

    #[test]
    fn what_could_not_be_reported_is_tried_again_until_it_could_or_has_passed() {
        let mut due = Due::default();
        due.add_once(7, at(0));
        due.set(vec![1], at(0));
        assert_eq!((due.take(at(0)), due.take(at(0))), (Some(7), None));
        due.failed(7, at(3));
        assert_eq!((due.next(), due.take(at(10)), due.take(at(10))), (Some(at(10)), Some(1), None));
        due.failed(1, at(12));
        assert_eq!((due.take(at(13)), due.take(at(14)), due.next()), (Some(7), None, Some(at(22))));
        due.set(Vec::new(), at(20));
        assert_eq!((due.take(at(60)), due.next()), (None, None));
    }
}
