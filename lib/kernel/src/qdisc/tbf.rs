//! Token buckets on the wire (`tc_tbf_qopt`, include/uapi/linux/pkt_sched.h).
//!
//! Invariant: `depth` goes in ticks of `tc_tbf_qopt.buffer`, as the CNI bandwidth plugin sends it, and not as
//! TCA_TBF_BURST: the kernel then reports what was asked for.

use netstate::TokenBucket;

use crate::attribute::{self, Writer};

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;

/// `tc_ratespec`: cell_log, linklayer, overhead, cell_align, mpu, rate. A rate that 32 bits do not hold comes as
/// TCA_TBF_RATE64.
fn ratespec(rate: u64) -> [u8; 12] {
    let [a, b, c, d] = u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

/// Writes the options of `bucket`.
pub(super) fn write(bucket: &TokenBucket, options: &mut Writer) {
    let mut parameters = ratespec(bucket.rate).to_vec();
    // No peak rate.
    parameters.extend_from_slice(&ratespec(0));
    for number in [bucket.limit, bucket.ticks(), 0] {
        parameters.extend_from_slice(&number.to_ne_bytes());
    }
    options.put(TCA_TBF_PARMS, &parameters);
    if u32::try_from(bucket.rate).is_err() {
        options.put(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
    }
}

/// Reads options.
pub(super) fn read(options: &[u8]) -> Option<TokenBucket> {
    let parameters = attribute::find(options, TCA_TBF_PARMS)?;
    let number = |at: usize| parameters.get(at..).and_then(attribute::u32);
    let wide = attribute::find(options, TCA_TBF_RATE64)
        .and_then(|value| value.first_chunk::<8>())
        .map(|bytes| u64::from_ne_bytes(*bytes));
    Some(TokenBucket {
        rate: wide.or_else(|| number(8).map(u64::from))?,
        depth: TokenBucket::depth_of(number(28)?),
        limit: number(24)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for rate in [1, 125_000, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 12_500_000_000] {
            let bucket = TokenBucket { rate, depth: 100_000, limit: 7 };
            let mut options = Writer::default();
            write(&bucket, &mut options);
            assert_eq!(read(&options.finish()), Some(bucket));
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[8, 0, 1, 0, 1, 2, 3, 4]), None, "torn parameters");
    }
}
