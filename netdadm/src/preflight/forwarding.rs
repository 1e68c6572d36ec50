//! Whether this host forwards packets, now and after its next start, and by which way it takes replies.
//!
//! Pure. Invariant: only a host with Pods forwards.

use daemon::doctor::Trouble;
use netstate::IpFamily;

use super::facts::Case;
use super::sysctl::{self, Wanted};
use crate::topology::Role;

const COST: &str = "packets of Pods do not leave this node";

/// `ip_forward`, and forwarding of IPv6.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let keys = case.families().into_iter().map(|family| match family {
        IpFamily::V4 => "net.ipv4.ip_forward",
        IpFamily::V6 => "net.ipv6.conf.all.forwarding",
    });
    keys.filter_map(|key| sysctl::judge(case, &Wanted { key, value: 1, cost: COST })).collect()
}

/// The source check: the stricter one of `all` and the link counts, 1 is strict.
pub(super) fn reverse_path(case: &Case) -> Vec<Trouble> {
    let key = "net.ipv4.conf.all.rp_filter";
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let cost = "a reply that comes by another link than the way back, as with tunnels and two networks, is dropped";
    let now = case.facts.parameter(key) == Some(1);
    let later = sysctl::setting(&case.facts, key).filter(|(_, value)| *value == "1");
    let found = match (now, later) {
        (_, Some((file, _))) => format!("{file} sets {key} to 1, strict on every link: {cost}"),
        (true, None) => format!("{key} is 1, strict on every link: {cost}"),
        (false, None) => return Vec::new(),
    };
    let place = later.map_or("/etc/sysctl.d/90-kubernetes.conf", |(file, _)| file);
    vec![Trouble::problem(found, format!("sysctl -w {key}=2 (loose), and write {key} = 2 into {place}"))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    const NOW: &str = "/proc/sys/net/ipv4/ip_forward";

    #[test]
    fn a_node_that_does_not_forward_is_found_with_the_file_that_has_it_so() {
        assert_eq!(said(judge(&Case::planted(&[(NOW, "1\n")]))), "");
        let now = said(judge(&Case::planted(&[(NOW, "0\n")])));
        assert!(now.contains("net.ipv4.ip_forward is 0") && now.contains("sysctl -w net.ipv4.ip_forward=1"), "{now}");
        let file = ("/etc/sysctl.d/99-hardening.conf", "net.ipv4.ip_forward = 0\n");
        let later = said(judge(&Case::planted(&[(NOW, "1\n"), file])));
        assert!(later.starts_with("PROBLEM /etc/sysctl.d/99-hardening.conf sets net.ipv4.ip_forward to 0"), "{later}");
        let both = said(judge(&Case::planted(&[(NOW, "0\n"), file])));
        assert!(both.contains("is 0, and /etc/sysctl.d/99-hardening.conf sets it to 0"), "{both}");
        assert_eq!(said(judge(&Case::planted(&[(NOW, "0\n")]).of_host("hdss7-12"))), "", "no Pods there");
    }

    #[test]
    fn a_strict_source_check_is_found_now_and_in_a_file() {
        let all = "/proc/sys/net/ipv4/conf/all/rp_filter";
        for value in ["0\n", "2\n"] {
            assert_eq!(said(reverse_path(&Case::planted(&[(all, value)]))), "");
        }
        let now = said(reverse_path(&Case::planted(&[(all, "1\n")])));
        assert!(now.contains("rp_filter is 1, strict") && now.contains("rp_filter=2"), "{now}");
        let file = ("/usr/lib/sysctl.d/50-redhat.conf", "net.ipv4.conf.all.rp_filter = 1\n");
        let later = said(reverse_path(&Case::planted(&[(all, "2\n"), file])));
        assert!(later.contains("/usr/lib/sysctl.d/50-redhat.conf sets net.ipv4.conf.all.rp_filter to 1"), "{later}");
    }
}
