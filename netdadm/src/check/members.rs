//! Roles: each is there, members of etcd are of an odd number, and nobody is for nothing and something.

use crate::document::Findings;
use crate::topology::{Role, Topology};

/// More members than these only slow down writes.
const MEMBERS: usize = 7;

/// Asks whether every role has its hosts.
pub(super) fn check(topology: &Topology, findings: &mut Findings) {
    let first = topology.hosts.first().map(|host| host.name.at);
    for role in [Role::Etcd, Role::ControlPlane, Role::Node] {
        if let (None, Some(at)) = (topology.of(role).next(), first) {
            findings.error(at, "hosts", format!("no host has the role {role}"), "at least one");
        }
    }
    members(topology, findings);
    for host in &topology.hosts {
        let field = format!("hosts.{}.roles", host.name.value);
        for (index, role) in host.roles.iter().enumerate() {
            let again = host.roles.iter().take(index).any(|other| other.value == role.value);
            if again {
                findings.error(role.at, &field, format!("{} stands there twice", role.value), "each role once");
            } else if role.value == Role::Nothing && host.roles.len() > 1 {
                findings.error(role.at, &field, "none beside other roles", "none alone, or the others");
            }
        }
    }
}

fn members(topology: &Topology, findings: &mut Findings) {
    let members: Vec<_> = topology.of(Role::Etcd).collect();
    let count = members.len();
    let Some(last) = members.last().map(|host| host.name.at) else { return };
    if count.is_multiple_of(2) {
        let found = format!("{count} members of etcd survive no more losses than {}", count.saturating_sub(1));
        findings.error(last, "hosts", found, "an odd number: 1, 3, 5 or 7");
    } else if count > MEMBERS {
        findings.error(last, "hosts", format!("{count} members of etcd"), "at most 7");
    } else if count == 1 {
        findings.warning(last, "hosts", "one member of etcd: its loss is the loss of the cluster", "3 members");
    }
}
