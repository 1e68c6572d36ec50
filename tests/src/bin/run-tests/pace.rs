//! When a further binary may begin: while a third of the processors' time is left.
//!
//! Invariant: what counts is the time since the last reading or since the last one began, so that a binary that has just begun shows
//! what it takes before the next one begins.

use std::fs;

/// A binary begins while this part of the time is idle, as its denominator.
const PART: u64 = 3;

/// Ticks of all processors since the boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    fn now() -> Self {
        fs::read_to_string("/proc/stat").ok().and_then(|text| Self::read(&text)).unwrap_or_default()
    }

    /// The first line of `/proc/stat` (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    fn read(text: &str) -> Option<Self> {
        let numbers = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let numbers: Vec<u64> = numbers.map(|number| number.parse().ok()).collect::<Option<_>>()?;
        Some(Self { idle: numbers.get(3)? + numbers.get(4)?, all: numbers.iter().sum() })
    }

    fn leave_room_since(self, before: Self) -> bool {
        let (idle, all) = (self.idle.saturating_sub(before.idle), self.all.saturating_sub(before.all));
        all > 0 && idle * PART >= all
    }
}

/// How idle the processors are.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Ticks,
}

impl Pace {
    /// A binary begins.
    pub(crate) fn begin(&mut self) {
        self.last = Ticks::now();
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&mut self) -> bool {
        let (now, before) = (Ticks::now(), self.last);
        self.last = now;
        now.leave_room_since(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_where_a_third_of_the_time_was_idle() {
        let ticks = |idle, all| Ticks { idle, all };
        assert!(ticks(150, 300).leave_room_since(ticks(100, 150)));
        assert!(!ticks(149, 300).leave_room_since(ticks(100, 150)));
        assert!(!ticks(100, 150).leave_room_since(ticks(100, 150)), "no time has passed");
        assert!(!Ticks::default().leave_room_since(ticks(100, 150)), "what cannot be read");
    }

    #[test]
    fn ticks_are_read_as_the_kernel_writes_them() {
        let text = "cpu  10 1 20 300 40 0 5 6 7 8\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(Ticks::read(text), Some(Ticks { idle: 340, all: 382 }));
        assert_eq!(Ticks::read("intr 1 2 3"), None);
        assert!(Ticks::now().all > 0);
    }
}
