//! Whether addresses of this host lie in the Pod network without being Pods'.

use netstate::Prefix;

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let (networks, subnets) = (facts.networks(), facts.subnets());
    let mut troubles = Vec::new();
    if subnets.is_empty() {
        // Nobody knows then which addresses are the Pods'.
        return troubles;
    }
    for interface in &facts.interfaces {
        for own in &interface.addresses {
            let name = &interface.name;
            if subnets.iter().any(|subnet| subnet.contains(own.addr)) {
                continue;
            }
            let Ok(network) = Prefix::new(own.addr, own.len) else { continue };
            let Some(pods) = networks.iter().find(|pods| pods.overlaps(&network)) else { continue };
            let found = format!("{name} has {}/{}, which overlaps the Pod network {pods}", own.addr, own.len);
            let fix = format!("give {name} another network (docker0: `bip` in /etc/docker/daemon.json), or the Pods");
            troubles.push(Trouble::problem(found, fix));
        }
    }
    troubles
}
