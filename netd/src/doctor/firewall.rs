//! Rules that deny packets: those that dropped something while probes were under way, those that must not be passed by the
//! tunnel's packets, and those of iptables-legacy.
//!
//! Other packets may have met the first, and the second may let the nodes pass by another rule, so both are notes unless a probe
//! was lost.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let lost = facts.paths.iter().any(|(_, paths)| !paths.direct.arrived() || !paths.carries());
    let by_loss = |found: String, fix: String| {
        if lost { Trouble::problem(found, fix) } else { Trouble::note(found, fix) }
    };
    let dropped = |(rule, packets): &(String, u64)| {
        let found = format!("{rule} dropped {packets} packets during the probes");
        by_loss(found, "if these are the nodes' or the Pods', put an accept in front of it".to_owned())
    };
    // Packets that arrive all the same pass by another rule.
    let closed = facts.closed.iter().filter(|_| lost || facts.paths.is_empty()).map(|(chain, port)| {
        let found = format!("{chain}, and none of its table's rules is for the tunnel's UDP port {port}");
        by_loss(found, format!("{}; for other firewalls see docs/firewalls.md", opening(chain, *port)))
    });
    let legacy = facts.legacy.iter().map(|advice| Trouble::problem(advice.found.clone(), advice.fix.clone()));
    facts.drops.iter().map(dropped).chain(closed).chain(legacy).collect()
}

/// How the port is opened to the other nodes in the firewall that a chain belongs to.
fn opening(chain: &str, port: u16) -> String {
    if chain.contains(" firewalld ") {
        format!("firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload")
    } else if chain.contains(" filter INPUT ") {
        format!(
            "ufw allow from NODES to any port {port} proto udp, or iptables -I INPUT -p udp -s NODES --dport {port} -j ACCEPT"
        )
    } else {
        format!("let UDP port {port} pass from the other nodes there")
    }
}
