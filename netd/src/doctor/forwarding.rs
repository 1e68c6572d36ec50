//! Whether the kernel forwards packets: at all, and on each interface that carries the Pods'.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut check = |name: &str, what: String| {
        if facts.parameter(name) == Some(0) {
            let key = name.replace('/', ".");
            let fix = format!("sysctl -w net.{key}=1, and look for who turns it off in /etc/sysctl.d");
            troubles.push(Trouble::problem(format!("{what} is not forwarded: net.{key} is 0"), fix));
        }
    };
    let networks = facts.networks();
    if networks.iter().any(netstate::Prefix::is_ipv4) {
        check("ipv4/ip_forward", "IPv4".to_owned());
        for carrier in facts.carriers() {
            check(&format!("ipv4/conf/{carrier}/forwarding"), format!("IPv4 that comes in by {carrier}"));
        }
    }
    if networks.iter().any(|network| !network.is_ipv4()) {
        check("ipv6/conf/all/forwarding", "IPv6".to_owned());
    }
    troubles
}
