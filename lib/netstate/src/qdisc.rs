//! Queueing disciplines: how fast a link sends.
//!
//! A token bucket fills with `rate` and holds what flows in during `depth`; a packet leaves when the bucket holds as
//! many bytes (net/sched/sch_tbf.c).

/// Nanoseconds of one tick of the packet scheduler, the unit of `depth` on the wire (PSCHED_TICKS2NS(1), second number
/// of /proc/net/psched).
pub const NANOSECONDS_PER_TICK: u64 = 64;

/// The longest `depth` in microseconds: what 32 bits of ticks hold.
pub const MAX_DEPTH: u32 = 274_877_906;

/// A limit on what a link sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenBucket {
    /// Bytes per second, 1 and up.
    pub rate: u64,
    /// For how many microseconds the full bucket lasts at `rate`, 1 to [`MAX_DEPTH`].
    pub depth: u32,
    /// The most that waits for tokens, in bytes; more is dropped.
    pub limit: u32,
}

/// Why there is no such bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoBucket {
    /// Less than a byte in a second.
    NoRate,
    /// The kernel's clock is too coarse for a burst that is over so soon, or there is none.
    BurstTooSmall,
}

impl TokenBucket {
    /// A bucket that lets `rate` bytes a second pass and `burst` bytes at once. What waits, waits no longer than 25 ms
    /// behind a full bucket's worth: the CNI bandwidth plugin's rule. A burst that lasts longer than [`MAX_DEPTH`] is cut
    /// down to that.
    ///
    /// # Errors
    /// When the kernel could not let a single byte pass.
    pub fn new(rate: u64, burst: u64) -> Result<Self, NoBucket> {
        if rate == 0 {
            return Err(NoBucket::NoRate);
        }
        let wide = |number: u64| u128::from(number);
        let lasts = wide(burst) * 1_000_000 / wide(rate);
        let depth = u32::try_from(lasts).unwrap_or(MAX_DEPTH).min(MAX_DEPTH);
        let held = wide(burst).min((wide(depth.into()) + 1) * wide(rate) / 1_000_000);
        let limit = u32::try_from(wide(rate / 40) + held).unwrap_or(u32::MAX);
        let bucket = Self { rate, depth, limit };
        let nanoseconds = wide(bucket.ticks().into()) * wide(NANOSECONDS_PER_TICK);
        if nanoseconds * wide(rate) < 1_000_000_000 {
            return Err(NoBucket::BurstTooSmall);
        }
        Ok(bucket)
    }

    /// `depth` in ticks of the packet scheduler.
    #[must_use]
    pub fn ticks(&self) -> u32 {
        u32::try_from(u64::from(self.depth) * 1000 / NANOSECONDS_PER_TICK).unwrap_or(u32::MAX)
    }

    /// The `depth` that `ticks` came from.
    #[must_use]
    pub fn depth_of(ticks: u32) -> u32 {
        u32::try_from((u64::from(ticks) * NANOSECONDS_PER_TICK).div_ceil(1000))
            .map_or(MAX_DEPTH, |us| us.min(MAX_DEPTH))
    }
}

impl std::fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tbf rate {}Bps depth {}us limit {}b", self.rate, self.depth, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_burst_become_depth_and_limit_as_in_the_reference() {
        for (rate, burst, depth, limit) in [
            (1_000_000, 100_000, 100_000, 125_000),
            (2_000_000, 200_000, 100_000, 250_000),
            (1, 1, 1_000_000, 1),
            (125_000_000, 536_870_911, 4_294_967, 539_995_911),
        ] {
            assert_eq!(TokenBucket::new(rate, burst), Ok(TokenBucket { rate, depth, limit }));
        }
    }

    #[test]
    fn bursts_that_runtimes_send_by_default_overflow_nothing() {
        // containerd: u32::MAX bits. CRI-O: u32::MAX * 8 - 1 bits.
        for burst in [u64::from(u32::MAX) / 8, (u64::from(u32::MAX) * 8 - 1) / 8] {
            let slow = TokenBucket::new(125_000, burst).unwrap();
            assert_eq!((slow.depth, slow.limit), (MAX_DEPTH, 34_362_863));
            let fast = TokenBucket::new(u64::MAX / 8, burst).unwrap_err();
            assert_eq!(fast, NoBucket::BurstTooSmall);
            assert!(TokenBucket::new(12_500_000_000, burst).unwrap().limit >= u32::try_from(burst).unwrap());
        }
    }

    #[test]
    fn what_passes_nothing_is_refused() {
        assert_eq!(TokenBucket::new(0, 100), Err(NoBucket::NoRate));
        assert_eq!(TokenBucket::new(100, 0), Err(NoBucket::BurstTooSmall));
        assert_eq!(TokenBucket::new(1_000_000, 1), Err(NoBucket::BurstTooSmall), "15 ticks are 960 ns");
    }

    #[test]
    fn depth_survives_the_way_through_ticks() {
        for depth in (1..10_000).chain([99_999, 1_000_001, 4_294_967, MAX_DEPTH - 1, MAX_DEPTH]) {
            let bucket = TokenBucket { rate: 1, depth, limit: 0 };
            assert_eq!(TokenBucket::depth_of(bucket.ticks()), depth);
        }
        assert_eq!(TokenBucket::depth_of(u32::MAX), MAX_DEPTH);
    }
}
