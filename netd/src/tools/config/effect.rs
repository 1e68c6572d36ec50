//! What another net-conf means for the nodes that run.
//!
//! Pure. Invariant: nothing that costs Pods their addresses or their connections goes unsaid.

use netstate::Prefix;
use netstate::family::IpFamily;

use crate::choose::change;
use crate::format::lease::SubnetKey;
use crate::format::net_conf::{Network, Pool};

/// Leases that are named one by one.
const NAMED: usize = 5;

/// What nodes will do about `after` in the place of `before`, with these leases in the store, one statement each.
#[must_use]
pub(super) fn effects(before: Option<&Network>, after: &Network, leases: &[SubnetKey]) -> Vec<String> {
    let mut effects = Vec::new();
    let Some(before) = before else {
        effects.push("nodes that wait for a configuration take their subnets now".to_owned());
        return effects;
    };
    if before == after {
        effects.push("it says what is there already: no node changes anything".to_owned());
        return effects;
    }
    let pools = |network: &Network| -> Vec<Pool> { network.pools.present().map(|(_, pool)| pool.clone()).collect() };
    if pools(before) != pools(after) {
        addresses(before, after, leases, &mut effects);
    }
    let refusals = change::refusals(before, after, |_| {
        Some("on nodes where another interface has an address of the Pod subnet, such as cni0".to_owned())
    });
    if !refusals.is_empty() {
        effects
            .push(format!("nodes that run take nothing of it until netd is restarted there: {}", refusals.join("; ")));
    }
    if before.backend != after.backend {
        let (from, to) = (before.backend.name(), after.backend.name());
        effects.push(if after.backend.stands_beside(&before.backend) {
            let what =
                if from == to { format!("{to} gets another device") } else { format!("backend {from} becomes {to}") };
            format!(
                "{what}: nodes move by themselves, both data paths stand until all have; nodes of flannel move when they \
                 are restarted"
            )
        } else {
            format!("options of {to} change: each node writes them into its device and its routes")
        });
    }
    if let Some(what) = after.backend.interruption(&before.backend) {
        effects.push(format!("{what} differs: nodes lose packets to each other until all of them have changed"));
    }
    if before.egress != after.egress {
        effects
            .push(format!("{}; connections that are open keep the address they have", after.egress.of(&after.pools)));
    }
    if before.flowtable != after.flowtable {
        let way = if after.flowtable { "by the flowtable" } else { "by the rules of the forward hook again" };
        effects.push(format!("established flows of Pods go {way} from their next packet on; none is cut"));
    }
    effects
}

fn addresses(before: &Network, after: &Network, leases: &[SubnetKey], effects: &mut Vec<String>) {
    if before.networks().ne(after.networks()) {
        effects.push(format!("Pod network {before} becomes {after}"));
    }
    let fits = |subnet: &Prefix| after.pool(subnet).is_some_and(|pool| pool.may_lease(subnet));
    let same =
        |key: &SubnetKey| IpFamily::ALL.iter().all(|one| key.get(*one).is_some() == after.pools.get(*one).is_some());
    let whole = |key: &SubnetKey| same(key) && key.subnets().present().all(|(_, subnet)| fits(subnet));
    let lost: Vec<&SubnetKey> = leases.iter().filter(|key| !whole(key)).collect();
    if lost.is_empty() {
        effects.push("every lease fits: nodes keep their subnets, further nodes are given others by it".to_owned());
        return;
    }
    let named: Vec<String> = lost.iter().take(NAMED).map(|key| key.list()).collect();
    let more = lost.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    effects.push(format!(
        "{} of {} leases do not fit: {}{more}; their nodes take other subnets, and their Pods must be started anew",
        lost.len(),
        leases.len(),
        named.join(", ")
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;

    fn network(text: &str) -> Network {
        NetConf::parse(text).unwrap().network
    }

    #[test]
    fn leases_that_do_not_fit_are_counted_and_named() {
        let before = network(r#"{"Network":"172.7.0.0/16"}"#);
        let leases: Vec<SubnetKey> = (21..30).map(|n| format!("172.7.{n}.0-24").parse().unwrap()).collect();
        assert!(effects(None, &before, &[])[0].contains("wait"));
        assert!(effects(Some(&before), &before, &leases)[0].contains("no node changes"));
        let after = network(r#"{"Network":"172.7.0.0/16","SubnetMin":"172.7.23.0","Backend":{"Type":"host-gw"}}"#);
        let found = effects(Some(&before), &after, &leases);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("2 of 9 leases do not fit: 172.7.21.0/24, 172.7.22.0/24;"), "{found:?}");
        assert!(found[1].starts_with("backend vxlan becomes host-gw"), "{found:?}");
        let after = network(r#"{"Network":"172.8.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#);
        let found = effects(Some(&before), &after, &leases);
        assert_eq!(found[0], "Pod network 172.7.0.0/16 becomes 172.8.0.0/16");
        assert!(found[1].contains("and 4 more") && found[2].starts_with("nodes that run take nothing"), "{found:?}");
        assert!(found[3].starts_with("options of vxlan"), "{found:?}");
        let ports = |backend: &str| {
            let after = network(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"vxlan",{backend}}}}}"#));
            effects(Some(&before), &after, &leases)
        };
        assert!(
            ports(r#""Port":4789"#)[1].starts_with("Port (not so with another VNI"),
            "{:?}",
            ports(r#""Port":4789"#)
        );
        assert_eq!(ports(r#""Port":4789,"VNI":2"#).len(), 1);
        assert!(
            ports(r#""VNI":2"#)[0].starts_with("vxlan gets another device: nodes move"),
            "{:?}",
            ports(r#""VNI":2"#)
        );
        let after = network(r#"{"Network":"172.7.0.0/16","SubnetMax":"172.7.99.0"}"#);
        assert!(effects(Some(&before), &after, &leases)[0].starts_with("every lease fits"));
        let after = network(
            r#"{"Network":"172.7.0.0/16","MasqueradeIPv6":false,"NonMasqueradeCIDRs":["10.0.0.0/8"],"Flowtable":true}"#,
        );
        let egress = "with --ip-masq Pods are seen outside as their node, by IPv4, but not in 10.0.0.0/8";
        let found = effects(Some(&before), &after, &leases);
        assert_eq!(found[0], format!("{egress}; connections that are open keep the address they have"));
        assert!(found[1].contains("by the flowtable") && found.len() == 2, "{found:?}");
    }
}
