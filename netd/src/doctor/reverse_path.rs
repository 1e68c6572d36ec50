//! Whether packets are dropped because their source is reached by another interface.
//!
//! A strict check alone drops nothing: only what grew while packets were under way is a problem.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    if facts.reverse_path_drops == 0 {
        return Vec::new();
    }
    let all = facts.parameter("ipv4/conf/all/rp_filter").unwrap_or_default();
    let strict = |name: &&netstate::IfName| {
        all.max(facts.parameter(&format!("ipv4/conf/{name}/rp_filter")).unwrap_or_default()) == 1
    };
    let names: Vec<&str> = facts.carriers().filter(strict).map(netstate::IfName::as_str).collect();
    let found = format!(
        "{} packets of other nodes were dropped for their source address; strict on {}",
        facts.reverse_path_drops,
        if names.is_empty() { "other interfaces".to_owned() } else { names.join(", ") }
    );
    let fix = "sysctl -w net.ipv4.conf.IFACE.rp_filter=2 (loose), and in net.ipv4.conf.all; or remove the route that \
               sends answers another way (`netd tables`, `ip route get ADDRESS`)";
    vec![Trouble::problem(found, fix)]
}
