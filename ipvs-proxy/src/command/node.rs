//! What the settings say of this node.
//!
//! Invariant: what cannot be read is reported by the form of its field, so nothing here fails.

use std::net::IpAddr;

use netstate::Prefix;
use netstate::family::PerFamily;

use super::settings::Settings;
use super::settings::fields::path;
use crate::plan::here::{Facts, Mode, NodePorts, OwnAddresses};
use crate::plan::pods::{Pods, PodsOfFamilies};

/// What is said of the node of this name and zone, with Pods in the networks `pods`.
pub(super) fn facts(
    settings: &Settings,
    (node, zone): (String, Option<String>),
    pods: PerFamily<Option<Prefix>>,
) -> Facts {
    Facts {
        node,
        zone,
        bind: bind(settings),
        node_ports: NodePorts::parse(settings.text(path::NODE_PORTS)).unwrap_or_default(),
        pods: known(pods),
        masquerade_all: masquerade_all(settings),
        own: OwnAddresses::default(),
    }
}

/// How clients are known for Pods. Without a network of any family both are served, as by kube-proxy.
fn known(pods: PerFamily<Option<Prefix>>) -> PodsOfFamilies {
    if pods.is_empty() { PerFamily::from_fn(|_| Some(Pods::Unknown)) } else { Pods::inside(pods) }
}

/// The primary address, if the setting names one.
fn bind(settings: &Settings) -> Option<IpAddr> {
    let addr = settings.text(path::BIND).parse().ok();
    addr.filter(|addr: &IpAddr| !addr.is_unspecified() && !addr.is_loopback())
}

/// A file has a setting for each data path, the command line one for both.
fn masquerade_all(settings: &Settings) -> Vec<Mode> {
    let is_on = |key| settings.text(key) == "true";
    let by_flag = settings.is_by_flag(path::MASQUERADE_ALL) && is_on(path::MASQUERADE_ALL);
    let ipvs = is_on(path::MASQUERADE_ALL).then_some(Mode::Ipvs);
    let nftables = (by_flag || is_on(path::NFT_MASQUERADE_ALL)).then_some(Mode::Nftables);
    ipvs.into_iter().chain(nftables).collect()
}

/// What of it has no effect.
pub(super) fn warnings(settings: &Settings, facts: &Facts) -> Vec<String> {
    let name = settings.name(path::NODE_PORTS);
    let warning = |network| format!("{name}: {network} has no effect: there are no NodePorts at loopback");
    let unknown = facts.pods.values().flatten().any(|pods| *pods == Pods::Unknown).then(|| {
        let name = settings.name(path::CLUSTER_CIDR);
        format!(
            "{name}: empty, so nobody is known for a Pod: connections to ClusterIPs keep their source address, from outside too, \
             and externalTrafficPolicy Local leads Pods to endpoints of this node only"
        )
    });
    facts.node_ports.loopback().map(warning).chain(unknown).collect()
}
