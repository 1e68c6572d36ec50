//! Nothing grows: what is used in one quiet state early and late.
//!
//! Invariant: only states that are alike are compared: every node in, the same number of Pods and Services, nothing broken. What is counted
//! may grow by a fixed number, memory by a part of what it was and a fixed number; both are stated in the report.

use std::collections::BTreeMap;

/// How much something may grow between the first and the last quiet state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) more: u64,
    pub(crate) percent: u64,
}

/// First, last and most of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trend {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) most: u64,
}

/// What may grow by how much.
pub(crate) fn allowed(what: &str) -> Allowed {
    match what {
        // Its own, in KiB: heaps keep what a listing needed once.
        what if what.contains("KiB") => Allowed { more: 2048, percent: 15 },
        what if what.contains("descriptors") => Allowed { more: 4, percent: 0 },
        what if what.contains("threads") => Allowed { more: 2, percent: 0 },
        // Locks and marks that a first fault makes.
        what if what.contains("files") => Allowed { more: 3, percent: 0 },
        _ => Allowed { more: 0, percent: 0 },
    }
}

/// Samples of quiet states, in order.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    trends: BTreeMap<String, Trend>,
}

impl Samples {
    /// Adds one quiet state.
    pub(crate) fn add(&mut self, sample: &BTreeMap<String, u64>) {
        for (what, &count) in sample {
            let trend = self.trends.entry(what.clone()).or_insert(Trend { first: count, last: count, most: count });
            trend.last = count;
            trend.most = trend.most.max(count);
        }
    }

    pub(crate) fn trends(&self) -> impl Iterator<Item = (&str, Trend)> {
        self.trends.iter().map(|(what, trend)| (what.as_str(), *trend))
    }

    /// What grew by more than it may.
    pub(crate) fn grown(&self) -> Vec<String> {
        let grew = |(what, trend): (&str, Trend)| {
            let Allowed { more, percent } = allowed(what);
            let limit = trend.first + trend.first * percent / 100 + more;
            let Trend { first, last, .. } = trend;
            (last > limit)
                .then(|| format!("{what}: {first} at the first quiet point, {last} at the last, allowed {limit}"))
        };
        self.trends().filter_map(grew).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(what: &str, counts: &[u64]) -> Vec<String> {
        let mut samples = Samples::default();
        for count in counts {
            samples.add(&BTreeMap::from([(what.to_owned(), *count)]));
        }
        samples.grown()
    }

    #[test]
    fn leak_is_found_by_the_last_state_and_a_peak_is_none() {
        assert!(after("namespaces", &[10, 12, 10]).is_empty());
        assert_eq!(
            after("namespaces", &[10, 11]),
            ["namespaces: 10 at the first quiet point, 11 at the last, allowed 10"]
        );
        assert!(after("nft elements", &[40, 41]).len() == 1);
        assert!(after("files of state", &[40, 43]).is_empty() && after("files of state", &[40, 44]).len() == 1);
        assert!(after("netd on n1: descriptors", &[20, 24]).is_empty());
        assert!(after("netd on n1: descriptors", &[20, 25]).len() == 1);
        assert!(after("netd on n1: threads", &[5, 8]).len() == 1);
        assert!(after("netd on n1: KiB", &[20_000, 25_048]).is_empty());
        assert!(after("netd on n1: KiB", &[20_000, 25_049]).len() == 1);
    }
}
