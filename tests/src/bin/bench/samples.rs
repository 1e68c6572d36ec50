//! Samples of a duration and what is shown of them.
//!
//! Invariant: a quantile is a value that was measured (nearest rank), never an interpolated one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Durations in milliseconds, in the order of measuring.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.0.push(milliseconds(duration));
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// The middle one; 0 of nothing.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(50)
    }

    /// The 99th of hundred; 0 of nothing.
    pub(crate) fn p99(&self) -> f64 {
        self.quantile(99)
    }

    pub(crate) fn least(&self) -> f64 {
        self.quantile(0)
    }

    pub(crate) fn most(&self) -> f64 {
        self.quantile(100)
    }

    /// The part of them from number `first` on, `count` of them or what there is.
    pub(crate) fn part(&self, first: usize, count: usize) -> Self {
        Self(self.0.iter().skip(first).take(count).copied().collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn quantile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).copied().unwrap_or(0.0)
    }
}

/// A duration in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values_by_nearest_rank() {
        let mut samples = Samples::default();
        assert_eq!((samples.median(), samples.p99()), (0.0, 0.0));
        for ms in [5, 1, 4, 2, 3] {
            samples.push(Duration::from_millis(ms));
        }
        assert_eq!((samples.least(), samples.median(), samples.p99(), samples.most()), (1.0, 3.0, 5.0, 5.0));
        assert_eq!(samples.part(1, 2).most(), 4.0, "in the order of measuring");
        assert_eq!(samples.part(4, 9).len(), 1);
        let mut hundred = Samples::default();
        (1..=200).for_each(|ms| hundred.push(Duration::from_millis(ms)));
        assert_eq!((hundred.median(), hundred.p99(), hundred.most()), (100.0, 198.0, 200.0));
    }
}
