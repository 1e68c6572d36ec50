//! What an operator should know where the flags, the Node object and the machine do not say the same of this node.
//!
//! Invariant: each remark says what counts.

use netstate::IpFamily;

use super::here::Facts;
use crate::object::node::Node;

/// All of it; the settings are named as on the command line.
pub(crate) fn remarks(facts: &Facts) -> Vec<String> {
    let object = facts.object.as_ref();
    let of_object = object.into_iter().flat_map(|node| zone(facts, node).into_iter().chain(addresses(facts, node)));
    of_object.chain(pods(facts)).collect()
}

fn zone(facts: &Facts, node: &Node) -> Option<String> {
    let (asked, labelled) = (facts.zone.as_deref()?, node.zone.as_deref()?);
    (asked != labelled).then(|| {
        format!(
            "the zone of this node is {asked}, by --node-zone, and not {labelled}, by the label of Node {}",
            node.name
        )
    })
}

fn addresses<'a>(facts: &'a Facts, node: &'a Node) -> impl Iterator<Item = String> + 'a {
    let is_asked = move |family| facts.bind.is_some_and(|addr| IpFamily::of(addr) == family);
    let elsewhere =
        node.addresses.present().filter(move |(family, addr)| !is_asked(*family) && !facts.own.all.contains(addr));
    elsewhere.map(move |(family, addr)| {
        format!(
            "Node {} has the address {addr}, which this machine has not: the primary address of {family} is that of the default route",
            node.name
        )
    })
}

fn pods(facts: &Facts) -> Option<String> {
    if !facts.pods_of_node {
        return None;
    }
    let reason = match &facts.object {
        None => format!("the source has no Node {}", facts.node),
        Some(node) if node.pods.present().next().is_none() => format!("Node {} has no spec.podCIDRs", node.name),
        Some(_) => return None,
    };
    Some(format!("{reason}, so that nobody is known for a Pod with --detect-local-mode=NodeCIDR"))
}

#[cfg(test)]
mod tests {
    use netstate::family::PerFamily;
    use serde_json::json;

    use super::*;
    use crate::plan::here::{Here, OwnAddresses};

    #[test]
    fn what_differs_is_named_with_what_counts() {
        let node = json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.4.7.21"}]}});
        let object = Node::from_json(&node).ok();
        let own = OwnAddresses { all: [[10, 4, 7, 21].into()].into(), ..OwnAddresses::default() };
        let facts = Facts { zone: Some("z1".to_owned()), object, own, ..Facts::of(&Here::on("n1")) };
        assert_eq!(remarks(&facts), [""; 0]);
        let one = |facts: &Facts, part: &str| {
            let found = remarks(facts);
            assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
        };
        one(&Facts { zone: Some("z2".to_owned()), ..facts.clone() }, "is z2, by --node-zone, and not z1");
        one(&Facts { own: OwnAddresses::default(), ..facts.clone() }, "10.4.7.21, which this machine has not");
        let asked = Facts { own: OwnAddresses::default(), bind: Some([10, 4, 7, 9].into()), ..facts.clone() };
        assert_eq!(remarks(&asked), [""; 0]);
        one(&Facts { pods_of_node: true, ..facts.clone() }, "Node n1 has no spec.podCIDRs, so that nobody is known");
        one(&Facts { pods_of_node: true, object: None, ..facts.clone() }, "the source has no Node n1");
        let mut known = Facts { pods_of_node: true, ..facts };
        known.object.as_mut().unwrap().pods = PerFamily::only(IpFamily::V4, "172.7.21.0/24".parse().unwrap());
        assert_eq!(remarks(&known), [""; 0]);
    }
}
