//! Networks of this host that share addresses with the Pod network.
//!
//! Such an address is not the Pod's that has it: packets for it stay on this host. Invariant: what belongs to this node's
//! own Pods and to the tunnel devices is no clash.

use std::collections::BTreeSet;

use netstate::address_plan::{AddressPlan, Role};
use netstate::{IfName, Prefix};

use super::interface::Interface;
use crate::format::net_conf::Network;

/// One text for each network of a link that shares addresses with the Pod network, for an operator. `own` are this node's
/// subnets.
#[must_use]
pub(crate) fn clashes(network: &Network, own: &[Prefix], interfaces: &[Interface]) -> Vec<String> {
    let tunnels: BTreeSet<IfName> = network.devices();
    let links = interfaces.iter().filter(|interface| !tunnels.contains(&interface.name));
    let all = links.flat_map(|interface| {
        let networks = interface.addresses.iter().filter_map(|own| Prefix::new(own.addr, own.len).ok());
        networks.map(|prefix| (interface.name.clone(), prefix))
    });
    let foreign = all.filter(|(_, prefix)| !own.iter().any(|own| own.covers(prefix)));
    let plan = foreign.fold(AddressPlan::default(), |plan, (link, prefix)| plan.node(Some(link), prefix));
    let plan = network.networks().fold(plan, AddressPlan::pods);
    let with_pods = plan.overlaps().into_iter().filter(|overlap| overlap.first.role == Role::Node);
    with_pods.map(|overlap| overlap.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;
    use netstate::InterfaceAddress;

    fn interface(name: &str, addresses: &[(&str, u8)]) -> Interface {
        let addresses = addresses.iter().map(|(addr, len)| InterfaceAddress::lasting(addr.parse().unwrap(), *len));
        let (name, addresses) = (name.parse().unwrap(), addresses.collect());
        Interface { name, mtu: 1500, up: true, addresses, is_bridge: false, master: None, vlan_of: None }
    }

    #[test]
    fn networks_of_links_inside_or_around_the_pod_network_are_named_and_the_own_ones_are_not() {
        let conf =
            r#"{"Network":"172.16.0.0/12","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"}}"#;
        let network = NetConf::parse(conf).unwrap().network;
        let own = ["172.16.21.0/24".parse().unwrap(), "fd00:7:0:21::/64".parse().unwrap()];
        let host = [
            interface("lo", &[("127.0.0.1", 8), ("::1", 128)]),
            interface("eth0", &[("10.4.7.21", 24), ("fd00:10::21", 64), ("fe80::1", 64)]),
            interface("flannel.1", &[("172.16.21.0", 32)]),
            interface("cbr0", &[("172.16.21.1", 24), ("fd00:7:0:21::1", 64)]),
        ];
        assert_eq!(clashes(&network, &own, &host), Vec::<String>::new());
        let strays = [
            interface("docker0", &[("172.17.0.1", 16)]),
            interface("cni0", &[("172.16.5.1", 24)]),
            interface("wide0", &[("fd00::1", 16)]),
            interface("vip0", &[("fd00:7:0:99::9", 128)]),
        ];
        let found = clashes(&network, &own, &[&host[..], &strays].concat());
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].starts_with("node network 172.17.0.0/16 on docker0 lies inside Pod network 172.16.0.0/12"));
        assert!(found[2].starts_with("node network fd00::/16 on wide0 contains part of Pod network fd00:7::/48"));
    }
}
