//! Rules that deny what other hosts send here, followed with such packets.
//!
//! Invariants: reads only; a verdict that depends on a byte that is not known is no denial ([`kernel::nft::arrival`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::legacy::{self, arrival::Input};
use kernel::nft::Nft;
use kernel::nft::arrival::{Arrival, Arrivals};
use kernel::nft::forward::{Accept, Forward};
use kernel::{KernelError, Rtnl};
use netstate::nft::{Family, Name, TableKey};
use netstate::{IfName, IpFamily, Protocol};

use crate::preflight::{Denied, Facts, Plan};
use crate::topology::{Backend, Purpose, Transport};

/// Comments of our rules in foreign chains do not count here: none of ours runs yet.
const MARKER: &str = "netdadm: preflight";

/// Other hosts for which rules are followed.
const HOSTS: usize = 64;

/// Reads them.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn read(facts: &mut Facts, plan: Option<&Plan>) -> Result<(), KernelError> {
    let firewalld = TableKey { family: Family::Inet, name: Name::literal("firewalld") };
    let mut nft = Nft::open()?;
    // With its backend `iptables` it is known by a chain.
    let filter = TableKey { family: Family::Ip, name: Name::literal("filter") };
    facts.has_firewalld = nft.has_table(&firewalld)? || nft.has_chain(&filter, &Name::literal("INPUT_direct"))?;
    facts.iptables_nft = iptables(&mut nft)?;
    facts.legacy_tables = legacy_tables();
    let own: BTreeSet<TableKey> = ["netd", "ipvs-proxy"]
        .into_iter()
        .flat_map(|name| [Family::Ip, Family::Ip6].map(|family| TableKey { family, name: Name::literal(name) }))
        .collect();
    // Chains are surveyed for what ours will accept in them.
    let mut forward = Forward::new(Nft::open()?, own, MARKER);
    forward.want(BTreeSet::from([Accept::Established]));
    let denying = forward.survey()?;
    facts.forward = denying.iter().map(|chain| (chain.to_string(), chain.obstructed)).collect();
    if let Some(plan) = plan {
        facts.denied = denied(plan)?;
    }
    Ok(())
}

/// Tables of iptables-nft that hold rules, by their names.
fn iptables(nft: &mut Nft) -> Result<Vec<String>, KernelError> {
    let mut found = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        for name in ["filter", "nat", "mangle", "raw", "security"] {
            let key = TableKey { family, name: Name::literal(name) };
            if nft.has_table(&key)? && !nft.foreign_rules(&key)?.is_empty() {
                found.push(key.to_string());
            }
        }
    }
    Ok(found)
}

fn legacy_tables() -> Vec<String> {
    let mut found = Vec::new();
    for family in IpFamily::ALL {
        let tables =
            ["filter", "nat", "mangle", "raw", "security"].into_iter().filter(|table| legacy::has_table(family, table));
        let command = if family == IpFamily::V4 { "" } else { "ip6 " };
        found.extend(tables.map(|table| format!("{command}{table}")));
    }
    found
}

/// What is denied of what the other hosts send to the ports of this one.
fn denied(plan: &Plan) -> Result<Vec<Denied>, KernelError> {
    let mut rules = Arrivals::read(Nft::open()?)?;
    let mut old = Vec::new();
    for family in IpFamily::ALL {
        old.push(Input::of(family)?);
    }
    let links = uplinks(plan)?;
    let others = plan.topology.hosts.iter().filter(|host| host.name.value != plan.host.name.value).take(HOSTS);
    let others: Vec<IpAddr> = others.flat_map(|host| host.addresses.iter().map(|address| address.value)).collect();
    let mut found = Vec::new();
    for (purpose, port, _) in plan.topology.ports.iter().filter(|(purpose, ..)| is_asked(plan, *purpose)) {
        let transport = purpose.transport();
        let protocol = if transport == Transport::Tcp { Protocol::Tcp } else { Protocol::Udp }.number();
        for (link, to) in &links {
            for from in others.iter().copied().filter(|from| from.is_ipv4() == to.is_ipv4()) {
                let arrival = Arrival { link: link.clone(), from: Some(from), to: *to, protocol, port: Some(port) };
                let by = match rules.denied(&arrival)? {
                    Some(denied) => Some(denied.to_string()),
                    None => old.iter().find_map(|input| input.denied(&arrival)).map(|denied| denied.to_string()),
                };
                found.extend(by.map(|by| Denied { purpose: purpose.to_string(), port, transport, from, by }));
            }
        }
    }
    Ok(found)
}

/// Ports to which other hosts send.
fn is_asked(plan: &Plan, purpose: Purpose) -> bool {
    let backend = plan.topology.pods.backend.value;
    let is_outside = match purpose {
        Purpose::ApiServer | Purpose::EtcdClient | Purpose::EtcdPeer | Purpose::Kubelet => true,
        Purpose::Vxlan => backend == Backend::Vxlan,
        Purpose::Wireguard => backend == Backend::Wireguard,
        _ => false,
    };
    is_outside && purpose.is_served_by(&plan.topology, &plan.host)
}

/// A link by its name and index, and one of this host's addresses on it.
type Uplink = ((IfName, u32), IpAddr);

/// The links with this host's addresses.
fn uplinks(plan: &Plan) -> Result<Vec<Uplink>, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let own: BTreeSet<IpAddr> = plan.host.addresses.iter().map(|address| address.value).collect();
    let addresses = rtnl.addresses()?.into_iter().filter(|(_, address, _)| own.contains(address));
    let named = addresses.filter_map(|(index, address, _)| {
        let link = links.iter().find(|link| link.index == index)?;
        Some(((link.name.clone(), index), address))
    });
    Ok(named.collect())
}
