//! Back-off of one row: 100 ms, doubled at each failure, up to 60 s, and behind a refusal no less than 1 s.
//!
//! Invariant: the delay depends on the row's own failures only, one bad row never delays another. A refusal behind failures of another kind is
//! waited for no longer than a further one of theirs, but for its shortest delay.

use std::time::Duration;

use crate::target::RetryClass;

/// Delay after the first failure.
pub const FIRST: Duration = Duration::from_millis(100);

/// Shortest delay after a failure that time alone is not expected to mend: a right may be given and a module be loaded within a second, but what
/// the kernel lacks is not asked for ten times in it.
pub const SHORTEST_REFUSED: Duration = Duration::from_secs(1);

/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(60);

/// How long to wait after `failures` failures in a row, of which the last had `class`.
#[must_use]
pub fn delay(failures: u32, class: RetryClass) -> Duration {
    let shortest = match class {
        RetryClass::Refuse => SHORTEST_REFUSED,
        RetryClass::Retry | RetryClass::Wait => FIRST,
    };
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST.saturating_mul(factor).clamp(shortest, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_the_limit_whatever_the_kinds_of_failures() {
        let ms = |n| delay(n, RetryClass::Retry).as_millis();
        assert_eq!([ms(1), ms(2), ms(3), ms(10), ms(33), ms(400)], [100, 200, 400, 51_200, 60_000, 60_000]);
        let ms = |n| delay(n, RetryClass::Refuse).as_millis();
        assert_eq!([ms(1), ms(4), ms(5), ms(10), ms(11), ms(400)], [1000, 1000, 1600, 51_200, 60_000, 60_000]);
    }
}
