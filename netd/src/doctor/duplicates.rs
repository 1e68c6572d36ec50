//! Whether two nodes have one address or one subnet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netstate::Prefix;

use super::probing::Outcome;
use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = on_the_link(facts);
    let mut holders: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    for (peer, paths) in &facts.paths {
        holders.entry(peer.direct.ip()).or_default().push(&peer.name);
        let Outcome::Answered(answer, _) = paths.direct else { continue };
        if let Some(subnet) = answer.subnet.filter(|subnet| *subnet != peer.subnet) {
            let address = peer.direct.ip();
            if !facts.networks().iter().any(|network| network.covers(&subnet)) {
                troubles.push(of_another_network(peer.direct, subnet));
                continue;
            }
            let found = format!("{address} should have {}, and a node with {subnet} answers there", peer.subnet);
            let fix = format!(
                "give each node an address of its own; a key that nobody needs: netd lease release {}",
                peer.name
            );
            troubles.push(Trouble::problem(found, fix));
        }
    }
    for (address, subnets) in holders.iter().filter(|(_, subnets)| subnets.len() > 1) {
        let fix = "release the key that nobody needs (`netd lease list`, `netd lease release`)";
        troubles.push(Trouble::problem(format!("{address} has several subnets: {}", subnets.join(", ")), fix));
    }
    for (key, reason) in facts.daemon.iter().flat_map(|daemon| daemon.skipped.iter().chain(&daemon.invalid)) {
        let fix = "correct the node that wrote it, or release the key (`netd lease release`)";
        troubles.push(Trouble::problem(format!("lease {key} is not used: {reason}"), fix));
    }
    troubles
}

/// A node that is in two Pod networks has one port for probes.
fn of_another_network(at: SocketAddr, subnet: Prefix) -> Trouble {
    let found = format!("{} answers for {subnet}, which is a subnet of another Pod network", at.ip());
    let port = at.port();
    let fix =
        format!("give each network of these nodes a --probe-port of its own, the same on all nodes; both have {port}");
    Trouble::note(found, fix)
}

fn on_the_link(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for (address, held) in &facts.holders {
        match held {
            Ok(others) => troubles.extend(others.iter().map(|mac| {
                let found = format!("{address}: another host on the link has it as well, with hardware address {mac}");
                let fix =
                    "find that host by its hardware address (the switch's table), and give each an address of its own";
                Trouble::problem(found, fix)
            })),
            Err(error) => {
                let found = format!("{address}: whether another host on the link has it was not found out: {error}");
                troubles.push(Trouble::note(found, "run `netd doctor` as root: it needs CAP_NET_RAW"));
            }
        }
    }
    troubles
}
