//! CHECK.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use kernel::link::LinkState;
use kernel::nft::Nft;
use kernel::{KernelError, Rtnl};
use netstate::LinkKind;
use netstate::nft::{Element, ElementKey, Ruleset};

use super::Bridge;
use super::network::Network;
use crate::apply;
use crate::plan::Cidr;
use crate::plan::bandwidth::Bandwidth;
use crate::plan::check::{Expected, Facts, LinkFact, differences};
use crate::plan::hostports::{HostPorts, keys};
use crate::plan::spoof;
use crate::plan::tag::Tag;
use crate::protocol::args::{Call, CniArgs};
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::NetConf;
use crate::protocol::result::{self, AddResult};
use crate::reclaim::ifb;
use crate::roles::open_namespace;
use crate::state::RESERVATION_WAIT;
use crate::state::reservations::Store;

/// Compares the attachment with the previous result.
///
/// # Errors
/// Code 102 with every difference; 7 without a previous result.
pub(crate) fn check(mut conf: NetConf, role: Bridge, call: &Call) -> Result<(), CniError> {
    let previous = conf.prev_result.take();
    let previous = previous.ok_or_else(|| CniError::new(Code::InvalidConfig, "Required prevResult missing"))?;
    let mut network = Network::load(conf, role, &CniArgs::parse(&call.args)?)?;
    let bridge = network.find_bridge(&mut Rtnl::open()?)?;
    let mut result = result::parse(previous)?;
    let netns_path = call.netns()?.to_string_lossy();
    call_alike(&mut result, &netns_path);
    let mut elements = wanted_ports(&network, call, &result);
    let guard = wanted_guard(&network, call, &result);
    elements.extend(guard.iter().flat_map(|ruleset| ruleset.elements.clone()));
    let has_gateway = network.bridge.gateway && network.bridge.ipam.is_some();
    let vlan = network.bridge.vlan.native.filter(|_| has_gateway);
    let vlan_link = vlan.and_then(|vlan| network.bridge.vlan_link(vlan));
    let expected = Expected {
        attachment: &call.attachment,
        bridge: &network.bridge.bridge,
        netns: &netns_path,
        result: &result,
        has_ipam: network.bridge.ipam.is_some(),
        pod_up: !network.bridge.interface_disabled,
        promiscuous: network.bridge.promiscuous,
        vlans: &network.bridge.vlan.port,
        vlan_link: vlan_link.as_ref(),
        elements: &elements,
    };
    let facts = observe(&network, &expected, guard.as_ref(), bridge.as_ref(), call)?;
    let mut found = differences(&expected, &facts);
    found.extend(bandwidth_differences(&network, &expected, &facts)?);
    if found.is_empty() {
        return Ok(());
    }
    let msg = format!("{} is not as ADD left it: {}", call.attachment, found.join("; "));
    Err(CniError::new(Code::Differs, msg).details("delete the Pod's sandbox to have it attached anew"))
}

/// Gives the sandboxes of `result` that are the namespace at `path` this path: a namespace has many.
fn call_alike(result: &mut AddResult, path: &str) {
    let identity = |path: &str| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    for sandbox in result.interfaces.iter_mut().filter_map(|i| i.sandbox.as_mut()).filter(|s| s.as_str() != path) {
        if identity(sandbox).is_some_and(|reported| identity(path) == Some(reported)) {
            path.clone_into(sandbox);
        }
    }
}

/// Limits that are not as they shall be.
fn bandwidth_differences(network: &Network, expected: &Expected<'_>, facts: &Facts) -> Result<Vec<String>, CniError> {
    let bandwidth = Bandwidth::new(network.bandwidth, &network.name, expected.attachment);
    let (Some(bandwidth), Some(host)) = (bandwidth, &facts.host) else { return Ok(Vec::new()) };
    let look = || ifb::observe(&mut Rtnl::open()?, &bandwidth, host.index);
    Ok(bandwidth.differences(&expected.host_link(), &look()?))
}

fn wanted_ports(network: &Network, call: &Call, result: &AddResult) -> BTreeMap<ElementKey, Element> {
    let Some((conf, mappings)) = network.ports.as_ref().filter(|(_, mappings)| !mappings.is_empty()) else {
        return BTreeMap::new();
    };
    let addresses: Vec<Cidr> = result.ips_of(&call.attachment.ifname).map(|ip| (ip.addr, ip.len)).collect();
    let tag = Tag::own(&network.name, &call.attachment);
    HostPorts { tag, mappings, addresses: &addresses, conf }.ruleset().elements
}

/// The guard of the Pod's port; its hardware address is the one that ADD reported.
fn wanted_guard(network: &Network, call: &Call, result: &AddResult) -> Option<Ruleset> {
    let of_pod = |i: &&result::Interface| i.name == call.attachment.ifname.as_str() && i.sandbox.is_some();
    let mac = result.interfaces.iter().find(of_pod)?.mac.filter(|_| network.bridge.spoof_guard)?;
    let tag = Tag::own(&network.name, &call.attachment);
    spoof::ruleset(&tag, mac)
}

/// Those of the wanted elements whose keys are there, as they are; nothing is asked where none is wanted.
pub(crate) fn present_ports(
    wanted: &BTreeMap<ElementKey, Element>,
) -> Result<BTreeMap<ElementKey, Element>, KernelError> {
    let mut present = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(present);
    }
    let mut nft = Nft::open()?;
    for key in wanted.keys() {
        let set = keys::declared(&key.set);
        let element = set.map(|set| nft.element(key, &set)).transpose()?.flatten();
        present.extend(element.map(|element| (key.clone(), element)));
    }
    Ok(present)
}

fn observe(
    network: &Network,
    expected: &Expected<'_>,
    guard: Option<&Ruleset>,
    bridge: Option<&LinkState>,
    call: &Call,
) -> Result<Facts, CniError> {
    let reserved = reserved(network, expected, call)?;
    let netns = open_namespace(call)?;
    let look = || -> Result<Facts, KernelError> {
        let mut pod = Rtnl::open_in(&netns)?;
        let inside = pod.link(&call.attachment.ifname)?;
        let addresses = match &inside {
            Some(link) => pod.addresses_of(link.index)?,
            None => Vec::new(),
        };
        let mut elements = present_ports(expected.elements)?;
        if let Some(guard) = guard {
            elements.extend(apply::spoof::present(guard)?);
        }
        let (bridge, pod_end, routes) = (bridge.map(fact), inside.as_ref().map(fact), pod.routes()?);
        let facts = Facts { bridge, pod: pod_end, addresses, routes, reserved, elements, ..Facts::default() };
        on_the_host(expected, facts)
    };
    look().map_err(CniError::from)
}

/// Those of the reported addresses that are reserved for the attachment.
fn reserved(network: &Network, expected: &Expected<'_>, call: &Call) -> Result<Vec<IpAddr>, CniError> {
    let Some(ipam) = &network.bridge.ipam else { return Ok(Vec::new()) };
    let store = Store::new(&ipam.data_dir, &network.name);
    let Some(locked) = store.lock_existing(RESERVATION_WAIT)? else {
        return Ok(Vec::new());
    };
    let reported = expected.result.ips.iter().map(|ip| ip.addr);
    Ok(reported.filter(|addr| locked.is_owned(&call.attachment, *addr)).collect())
}

/// Adds the host's end, the VLANs it carries, and the link that holds the VLAN's gateways.
fn on_the_host(expected: &Expected<'_>, mut facts: Facts) -> Result<Facts, KernelError> {
    let mut host = Rtnl::open()?;
    let host_end = host.link(&expected.host_link())?;
    if let Some(link) = host_end.as_ref().filter(|_| !expected.vlans.0.is_empty()) {
        facts.vlans = host.port_vlans(link.index)?;
    }
    if let Some(name) = expected.vlan_link {
        facts.vlan_link = host.link(name)?.as_ref().map(fact);
    }
    facts.host = host_end.as_ref().map(fact);
    Ok(facts)
}

fn fact(state: &LinkState) -> LinkFact {
    LinkFact {
        index: state.index,
        mac: state.link.mac,
        up: state.link.up,
        promiscuous: state.promiscuous,
        is_veth: state.link.kind == LinkKind::Veth,
        is_bridge: matches!(state.link.kind, LinkKind::Bridge(_)),
        master: state.master_index,
        peer: state.lower_index,
    }
}
