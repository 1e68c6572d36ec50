//! Whether packets between Pods of one node pass the rules.
//!
//! Pure. Invariant: both families are judged where the cluster has both.

use daemon::doctor::Trouble;
use netstate::IpFamily;

use super::facts::Case;
use super::sysctl::{self, Wanted};
use crate::topology::Role;

const COST: &str = "a Pod that reaches a Pod of its own node by a Service gets the answer past the rules";

/// `br_netfilter` and its parameters.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let keys = case.families().into_iter().map(|family| match family {
        IpFamily::V4 => "net.bridge.bridge-nf-call-iptables",
        IpFamily::V6 => "net.bridge.bridge-nf-call-ip6tables",
    });
    let keys: Vec<&str> = keys.collect();
    if keys.iter().all(|key| case.facts.parameter(key).is_none()) {
        let settings: Vec<String> = keys.iter().map(|key| format!("{key}=1")).collect();
        let fix = format!(
            "modprobe br_netfilter && sysctl -w {}, and write br_netfilter into /etc/modules-load.d/kubernetes.conf",
            settings.join(" ")
        );
        return vec![Trouble::problem(format!("br_netfilter is not loaded: {COST}"), fix)];
    }
    keys.into_iter().filter_map(|key| sysctl::judge(case, &Wanted { key, value: 1, cost: COST })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    #[test]
    fn bridged_packets_that_pass_no_rules_are_found() {
        let absent = said(judge(&Case::default()));
        assert!(absent.contains("br_netfilter is not loaded") && absent.contains("modprobe br_netfilter"), "{absent}");
        let file = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let off = said(judge(&Case::planted(&[(file, "0\n")])));
        assert!(off.contains("net.bridge.bridge-nf-call-iptables is 0"), "{off}");
        assert_eq!(said(judge(&Case::planted(&[(file, "1\n")]))), "");
        assert_eq!(said(judge(&Case::default().of_host("hdss7-11"))), "", "no Pods there");
    }
}
