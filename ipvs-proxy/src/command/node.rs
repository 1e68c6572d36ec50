//! What the settings say of this node.
//!
//! Invariant: what cannot be read is reported by the form of its field, so nothing here fails.

use std::net::IpAddr;

use netstate::family::PerFamily;
use netstate::{IfName, Prefix};

use super::settings::Settings;
use super::settings::fields::path;
use crate::plan::here::{Facts, Mode, NodePorts, OwnAddresses};
use crate::plan::pods::{Pods, PodsOfFamilies};

/// What is said of the node of this name and zone, where clients are known for Pods by `pods`.
pub(super) fn facts(settings: &Settings, (node, zone): (String, Option<String>), pods: PodsOfFamilies) -> Facts {
    Facts {
        node,
        zone,
        bind: bind(settings),
        node_ports: NodePorts::parse(settings.text(path::NODE_PORTS)).unwrap_or_default(),
        pods,
        pods_of_node: settings.text(path::DETECTION) == NODE_CIDR,
        object: None,
        masquerade_all: masquerade_all(settings),
        own: OwnAddresses::default(),
    }
}

/// By the Pod networks of the Node object.
const NODE_CIDR: &str = "NodeCIDR";

const LINK: &str = "the name of an interface such as cbr0, 1 to 15 bytes";
const LINK_PREFIX: &str = "what names of interfaces begin with, such as veth, 1 to 14 bytes without a wildcard";

/// How clients are known for Pods, where `networks` are the Pod networks. A family without one is not served; where nothing depends on
/// them both are, as by kube-proxy.
///
/// # Errors
/// The field that is wrong, and what is accepted.
pub(super) fn pods(
    settings: &Settings,
    networks: PerFamily<Option<Prefix>>,
) -> Result<PodsOfFamilies, (&'static str, &'static str)> {
    let link = |key, accepted| IfName::new(settings.text(key)).map_err(|_| (key, accepted));
    let both = |pods: Pods| PerFamily::from_fn(|_| Some(pods.clone()));
    match settings.text(path::DETECTION) {
        "BridgeInterface" => link(path::BRIDGE, LINK).map(|link| both(Pods::From(link))),
        "InterfaceNamePrefix" => {
            let prefix = link(path::LINK_PREFIX, LINK_PREFIX)?;
            let is_prefix = prefix.as_str().len() < 15 && !prefix.as_str().contains(['*', '+']);
            if is_prefix { Ok(both(Pods::FromAny(prefix))) } else { Err((path::LINK_PREFIX, LINK_PREFIX)) }
        }
        // Whatever is known of them comes with the Node.
        NODE_CIDR => Ok(both(Pods::Unknown)),
        _ if networks.is_empty() => Ok(both(Pods::Unknown)),
        _ => Ok(Pods::inside(networks)),
    }
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
    let nobody = !facts.pods_of_node && facts.pods.values().flatten().any(|pods| *pods == Pods::Unknown);
    let unknown = nobody.then(|| {
        let name = settings.name(path::CLUSTER_CIDR);
        format!(
            "{name}: empty, so nobody is known for a Pod: connections to ClusterIPs keep their source address, from outside too, \
             and externalTrafficPolicy Local leads Pods to endpoints of this node only"
        )
    });
    facts.node_ports.loopback().map(warning).chain(unknown).chain(unused(settings)).collect()
}

/// Names of interfaces by which Pods are not known.
fn unused(settings: &Settings) -> impl Iterator<Item = String> + '_ {
    let fields = [(path::BRIDGE, "BridgeInterface"), (path::LINK_PREFIX, "InterfaceNamePrefix")];
    fields.into_iter().filter_map(|(key, mode)| {
        let (text, detection) = (settings.text(key), settings.name(path::DETECTION));
        let is_unused = !text.is_empty() && settings.text(path::DETECTION) != mode;
        is_unused.then(|| format!("{}: {text} has no effect: {detection} is not {mode}", settings.name(key)))
    })
}
/// Networks that are to be local by a route each. A wide one that was a slip of the pen would take the node's ways to everywhere.
///
/// # Errors
/// What is accepted.
pub(super) fn local(settings: &Settings) -> Result<Vec<Prefix>, &'static str> {
    let networks = settings.networks(path::LOCAL);
    let least = |network: &Prefix| if network.is_ipv4() { 8 } else { 48 };
    let is_loopback = |network: &Prefix| network.overlaps(&network.family().loopback());
    if networks.iter().any(|network| network.len() < least(network) || is_loopback(network)) {
        return Err("networks of Services such as 10.96.0.0/12 or fd00:9::/108, from /8 and /48 on");
    }
    Ok(networks)
}

/// What has not to be done for this node.
pub(super) fn needless(settings: &Settings, local: &[Prefix]) -> Option<String> {
    let is_needless = settings.text(path::MODE) == "nftables" && !local.is_empty();
    let name = settings.name(path::LOCAL);
    is_needless.then(|| format!("{name} changes nothing with nftables, for which no address is local"))
}
