//! What `ipvs-proxy` itself says of the time from an event to the kernel.
//!
//! Invariant: a quantile is a boundary of its histogram, so it was not more than that.

use anyhow::{Context, Result, ensure};
use lab::Host;

use crate::report::ms;

const METRICS: &str = "http://127.0.0.1:10249/metrics";
const BUCKET: &str = "ipvs_proxy_event_to_kernel_seconds_bucket{le=\"";

/// How many passes there were so far within each boundary, in seconds; the last one has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Latency(Vec<(f64, u64)>);

impl Latency {
    /// As the daemon on this machine says it now.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn read(host: &Host) -> Result<Self> {
        let page = host.run(&["curl", "-fsS", "--max-time", "20", METRICS])?.stdout;
        Self::parse(&page).context(METRICS)
    }

    fn parse(page: &str) -> Result<Self> {
        let bucket = |line: &str| {
            let (boundary, rest) = line.strip_prefix(BUCKET)?.split_once('"')?;
            let boundary = if boundary == "+Inf" { f64::INFINITY } else { boundary.parse().ok()? };
            Some((boundary, rest.split_whitespace().last()?.parse().ok()?))
        };
        let buckets: Vec<_> = page.lines().filter_map(bucket).collect();
        ensure!(!buckets.is_empty(), "no times from an event to the kernel");
        Ok(Self(buckets))
    }

    /// Those since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let count = |at: f64| before.0.iter().find(|(boundary, _)| *boundary == at).map_or(0, |(_, count)| *count);
        Self(self.0.iter().map(|(boundary, all)| (*boundary, all.saturating_sub(count(*boundary)))).collect())
    }

    /// With those of another round.
    pub(super) fn and(self, other: &Self) -> Self {
        let count = |at: f64| other.0.iter().find(|(boundary, _)| *boundary == at).map_or(0, |(_, count)| *count);
        Self(self.0.iter().map(|(boundary, own)| (*boundary, own + count(*boundary))).collect())
    }

    /// The boundary within which 99 of 100 are, and how many there are: `≤ 2.00 of 200`.
    pub(super) fn p99(&self) -> String {
        let all = self.0.last().map_or(0, |(_, count)| *count);
        let within = self.0.iter().find(|(_, count)| count * 100 >= all * 99);
        match within {
            Some((boundary, _)) if boundary.is_finite() && all > 0 => {
                format!("≤ {} of {all}", ms(boundary * 1000.0))
            }
            _ => "–".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_that_holds_99_of_100_of_the_new_ones_is_the_quantile() {
        let page = |counts: [u64; 3]| {
            let [one, five, all] = counts;
            let of = |boundary: &str, count: u64| format!("{BUCKET}{boundary}\"}} {count}\n");
            Latency::parse(&(of("0.001", one) + &of("0.005", five) + &of("+Inf", all))).unwrap()
        };
        let (before, after) = (page([1, 1, 9]), page([150, 200, 209]));
        assert_eq!(after.since(&before).p99(), "≤ 5.00 of 200", "the slow ones were before");
        assert_eq!(page([100, 198, 200]).p99(), "≤ 5.00 of 200");
        assert_eq!(page([100, 197, 200]).p99(), "–", "more than any boundary says");
        assert_eq!(Latency::default().p99(), "–");
        assert_eq!(page([1, 2, 2]).and(&page([1, 1, 2])), page([2, 3, 4]));
        assert!(Latency::parse("process_start_time_seconds 1").is_err());
    }
}
