//! Back-off of one row: 100 ms, or 1 s behind a refusal, doubled at each failure, up to 60 s.
//!
//! Invariant: the delay depends on the row's own failures only; one bad row never delays another.

use std::time::Duration;

use crate::target::RetryClass;

/// Delay after the first failure.
pub const FIRST: Duration = Duration::from_millis(100);

/// Delay after the first failure that time alone is not expected to mend: a right may be given and a module be loaded within a second, but what
/// the kernel lacks is not asked for ten times in it.
pub const FIRST_REFUSED: Duration = Duration::from_secs(1);

/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(60);

/// How long to wait after `failures` failures in a row, of which the last had `class`.
#[must_use]
pub fn delay(failures: u32, class: RetryClass) -> Duration {
    let first = match class {
        RetryClass::Refuse => FIRST_REFUSED,
        RetryClass::Retry | RetryClass::Wait => FIRST,
    };
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_the_limit() {
        let ms = |n| delay(n, RetryClass::Retry).as_millis();
        assert_eq!([ms(1), ms(2), ms(3), ms(10), ms(33), ms(400)], [100, 200, 400, 51_200, 60_000, 60_000]);
        let seconds = |n| delay(n, RetryClass::Refuse).as_secs();
        assert_eq!([seconds(1), seconds(2), seconds(6), seconds(7), seconds(400)], [1, 2, 32, 60, 60]);
    }
}
