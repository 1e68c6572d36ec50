//! `Clock`: whether anything keeps this host's clock (adjtimex(2)).
//!
//! Invariant: reads only; nothing of the clock is changed.

use std::time::Duration;

use crate::error::KernelError;

/// What the kernel knows of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Somebody has set it by others, and goes on doing so (not STA_UNSYNC).
    pub synchronized: bool,
    /// How wrong it is at most, as far as whoever sets it knows.
    pub error: Duration,
}

impl Clock {
    /// The clock as it stands.
    ///
    /// # Errors
    /// When the kernel refuses, as a filter of system calls may have it.
    pub fn read() -> Result<Self, KernelError> {
        // SAFETY: the structure is plain numbers, for which zeroes are valid; modes 0 writes nothing.
        #[allow(unsafe_code, reason = "no library has this call")]
        let (state, timex) = unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            (libc::adjtimex(&raw mut timex), timex)
        };
        if state < 0 {
            let source = std::io::Error::last_os_error();
            return Err(KernelError::io("read", "clock", "adjtimex", source));
        }
        let synchronized = timex.status & libc::STA_UNSYNC == 0;
        let error = Duration::from_micros(u64::try_from(timex.maxerror).unwrap_or_default());
        Ok(Self { synchronized, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_says_how_wrong_it_may_be() {
        // Whatever this host's clock is like: an error that nobody bounds any more is 16 s (NTP_PHASE_LIMIT).
        let clock = Clock::read().unwrap();
        assert!(clock.error <= Duration::from_secs(17), "{clock:?}");
        assert!(clock.synchronized || clock.error > Duration::ZERO, "{clock:?}");
    }
}
