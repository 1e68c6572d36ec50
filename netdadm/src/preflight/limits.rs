//! Limits of the kernel that clusters meet: inotify, tracked connections, neighbours.
//!
//! Pure. Invariant: what slows down or ends some day is a note; nothing here keeps a cluster from starting.

use daemon::doctor::Trouble;

use super::facts::Case;
use crate::topology::Role;

/// Kubelet, containerd and log collectors each take one for every Pod.
const INSTANCES: u64 = 8192;
const WATCHES: u64 = 524_288;

/// As kube-proxy sizes the table (`--conntrack-max-per-core`, `--conntrack-min`).
const PER_CORE: u64 = 32_768;
const AT_LEAST: u64 = 131_072;

/// Pods of a node beside its hosts.
const PODS: u64 = 110;

/// inotify.
pub(super) fn inotify(case: &Case) -> Vec<Trouble> {
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let wanted = [("fs.inotify.max_user_instances", INSTANCES), ("fs.inotify.max_user_watches", WATCHES)];
    wanted
        .into_iter()
        .filter_map(|(key, least)| low(case, key, least, "kubelet and Pods end with \"too many open files\""))
        .collect()
}

/// Tracked connections.
pub(super) fn conntrack(case: &Case) -> Vec<Trouble> {
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let cpus = case.facts.text("/proc/cpuinfo").unwrap_or_default();
    let cores = u64::try_from(cpus.lines().filter(|line| line.starts_with("processor")).count()).unwrap_or(1);
    let least = cores.saturating_mul(PER_CORE).max(AT_LEAST);
    low(case, "net.netfilter.nf_conntrack_max", least, "new connections are dropped when that many are tracked")
        .into_iter()
        .collect()
}

/// Neighbours: hosts and Pods.
pub(super) fn neighbours(case: &Case) -> Vec<Trouble> {
    let hosts = u64::try_from(case.others().count()).unwrap_or_default();
    let least = hosts.saturating_add(PODS).saturating_mul(4).next_power_of_two().max(1024);
    let keys = ["net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"];
    let keys = keys.into_iter().take(case.families().len());
    keys.filter_map(|key| {
        low(case, key, least, "\"neighbour table overflow\", and packets to new neighbours are dropped")
    })
    .collect()
}

fn low(case: &Case, key: &str, least: u64, cost: &str) -> Option<Trouble> {
    let now = case.facts.parameter(key).filter(|now| *now < least)?;
    let fix = format!("sysctl -w {key}={least}, and write {key} = {least} into /etc/sysctl.d/90-kubernetes.conf");
    Some(Trouble::note(format!("{key} is {now}: {cost}"), fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    #[test]
    fn few_inotify_instances_are_found() {
        let instances = "/proc/sys/fs/inotify/max_user_instances";
        let few = said(inotify(&Case::planted(&[(instances, "128\n")])));
        assert!(few.starts_with("note fs.inotify.max_user_instances is 128") && few.contains("=8192"), "{few}");
        assert_eq!(said(inotify(&Case::planted(&[(instances, "8192\n")]))), "");
    }

    #[test]
    fn a_table_of_connections_that_is_small_for_the_processors_is_found() {
        let cpus = "processor\t: 0\n".repeat(8);
        let max =
            |value| Case::planted(&[("/proc/cpuinfo", &cpus), ("/proc/sys/net/netfilter/nf_conntrack_max", value)]);
        let few = said(conntrack(&max("131072\n")));
        assert!(few.contains("net.netfilter.nf_conntrack_max=262144"), "{few}");
        assert_eq!(said(conntrack(&max("262144\n"))), "");
    }

    #[test]
    fn few_neighbours_are_found() {
        let limit = |value| Case::planted(&[("/proc/sys/net/ipv4/neigh/default/gc_thresh3", value)]);
        let few = said(neighbours(&limit("512\n")));
        assert!(few.contains("net.ipv4.neigh.default.gc_thresh3 is 512") && few.contains("=1024"), "{few}");
        assert_eq!(said(neighbours(&limit("1024\n"))), "");
    }
}
