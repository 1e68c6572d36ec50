//! Back-off of one row: 100 ms, doubled at each failure, up to 60 s.
//!
//! Invariant: the delay depends on the row's own failures only; one bad row never delays another.

use std::time::Duration;

use crate::target::RetryClass;

/// Delay after the first failure.
pub const FIRST: Duration = Duration::from_millis(100);

/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(60);

/// How long to wait after `failures` failures in a row, of which the last had `class`.
#[must_use]
pub fn delay(failures: u32, class: RetryClass) -> Duration {
    match class {
        RetryClass::Refuse => LONGEST,
        RetryClass::Retry | RetryClass::Wait => {
            let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
            FIRST.saturating_mul(factor).min(LONGEST)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_the_limit() {
        let ms = |n| delay(n, RetryClass::Retry).as_millis();
        assert_eq!([ms(1), ms(2), ms(3), ms(10), ms(33), ms(400)], [100, 200, 400, 51_200, 60_000, 60_000]);
        assert_eq!(delay(1, RetryClass::Refuse), LONGEST);
    }
}
