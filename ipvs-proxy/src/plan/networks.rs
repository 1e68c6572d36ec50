//! The networks of a cluster and whether they can stand side by side.
//!
//! Invariant: a node's own address, a Pod's address and a Service's address are never the same address. An overlap is named with both
//! networks, and a virtual address that lies in another network is refused by itself: it would show as traffic that vanishes, long
//! after the mistake was made. The rest is served: that libvirt's network lies inside the Service network harms nobody as long as no
//! Service has an address there.

use std::fmt;
use std::net::IpAddr;

use netstate::address_plan::{AddressPlan, Network, Overlap, Role};
use netstate::family::PerFamily;
use netstate::{IfName, IpFamily, Prefix};

use crate::object::service::Service;

/// A network of the node that this runs on, with the link it is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeNetwork {
    /// Name of the link.
    pub(crate) link: String,
    /// The node's address.
    pub(crate) addr: IpAddr,
    /// Its network.
    pub(crate) network: Prefix,
}

/// The networks; see the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Networks {
    /// The Pod networks of the cluster.
    pub(crate) pods: PerFamily<Option<Prefix>>,
    /// The Service networks that were given.
    pub(crate) services: PerFamily<Option<Prefix>>,
    /// The node's own networks.
    pub(crate) node: Vec<NodeNetwork>,
}

impl Networks {
    /// Every pair that overlaps, by its flags.
    #[must_use]
    pub(crate) fn overlaps(&self) -> Vec<String> {
        let given = |networks: PerFamily<Option<Prefix>>| [networks.v4, networks.v6].into_iter().flatten();
        let plan = given(self.pods).fold(AddressPlan::default(), AddressPlan::pods);
        let plan = given(self.services).fold(plan, AddressPlan::services);
        let add = |plan: AddressPlan, node: &NodeNetwork| plan.node(IfName::new(node.link.as_str()).ok(), node.network);
        let plan = self.node.iter().fold(plan, add);
        let text = |pair: &Overlap<'_>| {
            format!("{} overlaps {}; give one of them another network", named(pair.first), named(pair.second))
        };
        plan.overlaps().iter().map(text).collect()
    }

    /// Whether `addr` can be a virtual address here.
    ///
    /// # Errors
    /// Which network it would take an address from.
    pub(crate) fn check_virtual(&self, addr: IpAddr) -> Result<(), Misplaced> {
        let misplaced = |place: String| Err(Misplaced { addr, place });
        let family = IpFamily::of(addr);
        if let Some(services) = self.services.get(family).filter(|services| !services.contains(addr)) {
            return misplaced(format!("is outside the Service network {services}"));
        }
        if let Some(pods) = self.pods.get(family).filter(|pods| pods.contains(addr)) {
            return misplaced(format!("is in the Pod network {pods}"));
        }
        match self.node.iter().find(|node| node.network.contains(addr)) {
            Some(node) => misplaced(format!("is in the node network {} on {}", node.network, node.link)),
            None => Ok(()),
        }
    }
}

/// Where a Service is served: its virtual addresses as far as they can be virtual here. In place of one that cannot be it stays at that of
/// the same family where it was served `before`, which is asked for such an address only: the answer may cost a search of all rows. Each
/// refusal is returned as well.
pub(crate) fn placed(
    service: &Service,
    networks: &Networks,
    before: impl Fn() -> Vec<IpAddr>,
) -> (Vec<IpAddr>, Vec<Misplaced>) {
    let (mut addresses, mut refused) = (Vec::new(), Vec::new());
    for addr in &service.cluster_ips {
        match networks.check_virtual(*addr) {
            Ok(()) => addresses.push(*addr),
            Err(misplaced) => {
                refused.push(misplaced);
                let may_stay = |before: &IpAddr| {
                    IpFamily::of(*before) == IpFamily::of(*addr) && networks.check_virtual(*before).is_ok()
                };
                addresses.extend(before().into_iter().find(may_stay));
            }
        }
    }
    (addresses, refused)
}

/// A network under the name of the flag that sets it.
fn named(network: &Network) -> String {
    let prefix = network.prefix;
    match (network.role, &network.link) {
        (Role::Node, Some(link)) => format!("node network on {link} {prefix}"),
        (Role::Node, None) => format!("node network {prefix}"),
        (Role::Pod, _) => format!("Pod network (cluster-cidr) {prefix}"),
        (Role::Service, _) => format!("Service network (service-cidr) {prefix}"),
    }
}

/// An address that cannot be virtual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misplaced {
    addr: IpAddr,
    place: String,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec.clusterIP: {} {}; accepted: an address of the Service network", self.addr, self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(node: &str, pods: &str, services: Option<&str>) -> Networks {
        let network: Prefix = node.parse().unwrap();
        Networks {
            pods: PerFamily::only(IpFamily::V4, pods.parse().unwrap()),
            services: PerFamily::new(services.map(|net| net.parse().unwrap()), None),
            node: vec![NodeNetwork { link: "eth0".into(), addr: network.nth(21).unwrap(), network }],
        }
    }

    fn texts(networks: &Networks) -> Vec<String> {
        networks.overlaps()
    }

    #[test]
    fn the_reference_plans_are_accepted() {
        for (node, pods, services) in [
            ("10.4.7.0/24", "172.7.0.0/16", "192.168.0.0/16"),
            ("192.168.32.0/24", "10.244.0.0/16", "10.96.0.0/12"),
            ("192.168.197.0/24", "172.17.0.0/16", "192.254.0.0/16"),
        ] {
            assert!(texts(&networks(node, pods, Some(services))).is_empty(), "{node}");
        }
    }

    #[test]
    fn an_overlap_names_both_networks() {
        assert_eq!(
            texts(&networks("192.168.44.0/24", "172.7.0.0/16", Some("192.168.0.0/16"))),
            ["node network on eth0 192.168.44.0/24 overlaps Service network (service-cidr) 192.168.0.0/16; \
              give one of them another network"]
        );
        assert_eq!(texts(&networks("10.4.7.0/24", "10.0.0.0/8", Some("10.96.0.0/12"))).len(), 2);
    }

    #[test]
    fn a_virtual_address_comes_from_no_other_network() {
        let plan = networks("10.4.7.0/24", "172.7.0.0/16", Some("192.168.0.0/16"));
        assert!(plan.check_virtual("192.168.0.10".parse().unwrap()).is_ok());
        let unbound = networks("10.4.7.0/24", "172.7.0.0/16", None);
        for (plan, addr, part) in [
            (&plan, "10.0.0.1", "outside the Service network 192.168.0.0/16"),
            (&unbound, "172.7.1.1", "in the Pod network 172.7.0.0/16"),
            (&unbound, "10.4.7.22", "in the node network 10.4.7.0/24 on eth0"),
        ] {
            let text = plan.check_virtual(addr.parse().unwrap()).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
        assert!(plan.check_virtual("fd00::10".parse().unwrap()).is_ok(), "a network says nothing of the other family");
    }

    #[test]
    fn a_service_stays_where_it_was_in_place_of_an_address_that_cannot_be_virtual() {
        let networks = networks("10.4.7.0/24", "172.7.0.0/16", Some("192.168.0.0/16"));
        let object = serde_json::json!({"kind": "Service", "metadata": {"name": "web"},
            "spec": {"clusterIP": "172.7.21.9", "clusterIPs": ["172.7.21.9", "fd00::10"]}});
        let service = Service::from_json(&object).unwrap();
        let at = |before: &[&str]| {
            let before: Vec<IpAddr> = before.iter().map(|addr| addr.parse().unwrap()).collect();
            let (addresses, refused) = placed(&service, &networks, || before.clone());
            assert_eq!(refused.len(), 1);
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(at(&[]), ["fd00::10"]);
        assert_eq!(at(&["fd00::9", "192.168.0.10"]), ["192.168.0.10", "fd00::10"]);
        assert_eq!(at(&["172.7.21.8"]), ["fd00::10"], "nor could that be");
        let object =
            serde_json::json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "192.168.0.10"}});
        let (addresses, refused) =
            placed(&Service::from_json(&object).unwrap(), &networks, || panic!("nothing is refused"));
        assert_eq!((addresses.len(), refused.len()), (1, 0));
    }
}
