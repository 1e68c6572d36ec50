//! Whether two nodes have one address or one subnet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::probing::Outcome;
use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut holders: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    for (peer, paths) in &facts.paths {
        holders.entry(peer.direct.ip()).or_default().push(&peer.name);
        let Outcome::Answered(answer, _) = paths.direct else { continue };
        if let Some(subnet) = answer.subnet.filter(|subnet| *subnet != peer.subnet) {
            let address = peer.direct.ip();
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
