//! `Counted`: the nft tables, of which refused transactions are counted; `Numbers`: what is counted where the kernel is written and
//! connections are read, under kube-proxy's names.
//!
//! Invariant: a family counts once for each try that left rows of it out, however many.

use std::collections::BTreeSet;
use std::time::Duration;

use daemon::metrics::{Label, Metrics};
use kernel::KernelError;
use netstate::IpFamily;
use netstate::nft::{Family as TableFamily, Row, RowKey};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use reconcile::{Layer, Step, Target};

/// The numbers; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    /// Tries at which rows could not be put in, and could not be taken out.
    failures: [Family<Label, Counter>; 2],
    deleted: Family<Label, Counter>,
    read: Family<Label, Histogram>,
}

impl Default for Numbers {
    fn default() -> Self {
        let read = Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.001, 2.0, 15))) as fn() -> _);
        Self { failures: Default::default(), deleted: Family::default(), read }
    }
}

impl Numbers {
    /// Numbers that `metrics` show.
    pub(crate) fn shown_by(metrics: &Metrics) -> Self {
        let numbers = Self::default();
        let [sync, cleanup] = numbers.failures.clone();
        for family in [IpFamily::V4, IpFamily::V6] {
            // A rate needs the number from before the first failure.
            for counter in [&sync, &cleanup, &numbers.deleted] {
                drop(counter.get_or_create(&label(family)));
            }
            drop(numbers.read.get_or_create(&label(family)));
        }
        let (deleted, read) = (numbers.deleted.clone(), numbers.read.clone());
        metrics.extend(|registry| {
            let names = registry.sub_registry_with_prefix("kubeproxy");
            let about = "Tries at which the nft table of the family could not be given what is wanted";
            names.register("sync_proxy_rules_nftables_sync_failures", about, sync);
            let about = "Tries at which what is not wanted any more could not be removed from it";
            names.register("sync_proxy_rules_nftables_cleanup_failures", about, cleanup);
            names.register(
                "conntrack_reconciler_deleted_entries",
                "Stale tracked connections that were deleted",
                deleted,
            );
            names.register("conntrack_reconciler_sync_duration_seconds", "Time of a search for stale ones", read);
        });
        numbers
    }

    /// Connections of a family were searched for `took`, and so many deleted.
    pub(crate) fn searched(&self, family: IpFamily, took: Duration, deleted: usize) {
        self.read.get_or_create(&label(family)).observe(took.as_secs_f64());
        self.deleted.get_or_create(&label(family)).inc_by(u64::try_from(deleted).unwrap_or(u64::MAX));
    }

    fn count_failures<E>(&self, steps: &[Step<RowKey, Row>], results: &[Result<(), E>]) {
        let failed = steps.iter().zip(results).filter(|(_, result)| result.is_err());
        let failed: BTreeSet<(bool, IpFamily)> =
            failed.filter_map(|(step, _)| Some((matches!(step, Step::Remove(..)), family(step.key())?))).collect();
        let [sync, cleanup] = &self.failures;
        for (is_removal, family) in failed {
            let counter = if is_removal { cleanup } else { sync };
            counter.get_or_create(&label(family)).inc();
        }
    }
}

fn label(family: IpFamily) -> Label {
    // As kube-proxy has it.
    let name = if family.is_v4() { "IPv4" } else { "IPv6" };
    [("ip_family", name.to_owned())]
}

/// The family of a row's table.
const fn family(key: &RowKey) -> Option<IpFamily> {
    let table = match key {
        RowKey::Table(table) => table,
        RowKey::Set(set) => &set.table,
        RowKey::Chain(chain) => &chain.table,
        RowKey::Element(element) | RowKey::List(element) => &element.table,
    };
    match table.family {
        TableFamily::Ip => Some(IpFamily::V4),
        TableFamily::Ip6 => Some(IpFamily::V6),
        TableFamily::Inet | TableFamily::Netdev | TableFamily::Bridge => None,
    }
}

/// See the module's text.
pub(crate) struct Counted<T> {
    table: T,
    numbers: Numbers,
}

impl<T> Counted<T> {
    /// The rows of `table`, whose failures go to `numbers`.
    pub(crate) const fn new(table: T, numbers: Numbers) -> Self {
        Self { table, numbers }
    }
}

impl<T: Target<Key = RowKey, Value = Row, Error = KernelError>> Layer for Counted<T> {
    type Inner = T;

    fn inner(&self) -> &T {
        &self.table
    }

    fn inner_mut(&mut self) -> &mut T {
        &mut self.table
    }

    fn apply(&mut self, steps: &[Step<RowKey, Row>]) -> Vec<Result<(), KernelError>> {
        let results = self.table.apply(steps);
        self.numbers.count_failures(steps, &results);
        results
    }
}

#[cfg(test)]
mod tests {
    use daemon::readiness::Readiness;
    use kernel::Cause;
    use netstate::nft::{Name, Ruleset, TableKey};
    use reconcile::Rows;

    use super::*;

    /// A table that refuses whatever is about these families.
    struct Refusing(Vec<TableFamily>);

    impl Target for Refusing {
        type Key = RowKey;
        type Value = Row;
        type Error = KernelError;

        fn observe(&mut self) -> Result<Rows<RowKey, Row>, KernelError> {
            Ok(Rows::new())
        }

        fn apply(&mut self, steps: &[Step<RowKey, Row>]) -> Vec<Result<(), KernelError>> {
            let refuses = |key: &RowKey| matches!(key, RowKey::Table(table) if self.0.contains(&table.family));
            let refused = |key: &RowKey| Err(KernelError::new("create", key, Cause::Unexpected("no".to_owned())));
            steps.iter().map(|step| if refuses(step.key()) { refused(step.key()) } else { Ok(()) }).collect()
        }
    }

    #[test]
    fn a_try_counts_once_for_each_family_that_it_left_out_by_what_was_to_be_done() {
        let metrics = Metrics::new("ipvs-proxy", "0.1.0", Readiness::new([]));
        let numbers = Numbers::shown_by(&metrics);
        let rows = |family| {
            let names = ["a", "b"].map(|name| TableKey { family, name: Name::new(name).unwrap() });
            names.into_iter().flat_map(|key| Ruleset::new(key).rows()).collect::<Vec<_>>()
        };
        let all: Vec<_> = [TableFamily::Ip, TableFamily::Ip6].into_iter().flat_map(rows).collect();
        let create: Vec<_> = all.iter().cloned().map(|(key, row)| Step::Create(key, row)).collect();
        let remove: Vec<_> = all.into_iter().map(|(key, row)| Step::Remove(key, row)).collect();
        let apply = |refuses: &[TableFamily], steps: &[Step<RowKey, Row>]| {
            let mut table = Counted::new(Refusing(refuses.to_vec()), numbers.clone());
            let results = Target::apply(&mut table, steps);
            assert_eq!(results.iter().filter(|result| result.is_err()).count(), 2 * refuses.len());
        };
        apply(&[], &create);
        apply(&[TableFamily::Ip6], &create);
        apply(&[TableFamily::Ip, TableFamily::Ip6], &create);
        apply(&[TableFamily::Ip], &remove);
        numbers.searched(IpFamily::V4, Duration::from_millis(3), 7);
        let text = metrics.encode();
        for line in [
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 2",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv6\"} 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 7",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}\nlacks {line}");
        }
    }
}
