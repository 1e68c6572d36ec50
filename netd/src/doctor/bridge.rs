//! Whether packets between Pods of one node pass the rules, which Services need.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for (family, name) in [("IPv4", "bridge-nf-call-iptables"), ("IPv6", "bridge-nf-call-ip6tables")] {
        let v4 = family == "IPv4";
        if !facts.networks().iter().any(|network| network.is_ipv4() == v4) {
            continue;
        }
        let cost = "a Pod that reaches a Pod of its own node by a Service gets the answer past the proxy";
        match facts.parameter(&format!("bridge/{name}")) {
            Some(0) => {
                let fix = format!("sysctl -w net.bridge.{name}=1");
                troubles.push(Trouble::note(format!("net.bridge.{name} is 0: {cost}"), fix));
            }
            None => {
                let fix = format!("modprobe br_netfilter && sysctl -w net.bridge.{name}=1");
                troubles.push(Trouble::note(format!("br_netfilter is not loaded: {cost}"), fix));
            }
            Some(_) => {}
        }
    }
    troubles
}
