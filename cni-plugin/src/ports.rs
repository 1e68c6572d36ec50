//! Host ports in the kernel: claimed, released, and the UDP flows that remember another way forgotten.
//!
//! Invariant: an attachment's ports are found by the owner that each element names, never by what a configuration says
//! now; a port that somebody else holds is refused with the holder's name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::conntrack::{Conntrack, Flow};
use kernel::nft::{ClaimError, Nft};
use kernel::{KernelError, Rtnl};
use netstate::IfName;
use netstate::ipvs::Protocol;
use netstate::nft::{Element, ElementKey, NetworkFamily, Ruleset, TableKey};

use crate::attachment::Attachment;
use crate::error::{CniError, Code};
use crate::hands::refused;
use crate::plan::hostports::{StaleFlows, flow_of, owner_link, owns, table_key};

/// Makes the table as `ruleset` says and puts its elements in for `owner`. With `may_bury`, a holder whose host end is
/// gone gives way: it is an attachment that nobody deleted.
///
/// # Errors
/// Code 11 when a living attachment holds one of the ports; 100 when the kernel refuses. Then no port is open.
pub fn claim(
    nft: &mut Nft,
    host: &mut Rtnl,
    ruleset: &Ruleset,
    owner: &Attachment,
    may_bury: bool,
) -> Result<(), CniError> {
    nft.ensure(&ruleset.key, &ruleset.table).map_err(|e| refused(&e))?;
    let mut buried: BTreeSet<String> = BTreeSet::new();
    loop {
        let mine = |_: &ElementKey, element: &Element| owns(owner, element);
        let (key, by) = match nft.claim(ruleset, mine) {
            Ok(()) => return Ok(()),
            Err(ClaimError::Kernel(e)) => return Err(refused(&e)),
            Err(ClaimError::Held { key, by }) => (key, by.unwrap_or_default()),
        };
        let holder = by.split(' ').next().unwrap_or_default().to_owned();
        if !may_bury || is_alive(host, &holder)? || !buried.insert(holder.clone()) {
            let msg = format!("host port {} is held by {by}", wanted(&key));
            return Err(CniError::new(Code::TryAgainLater, msg).details("try again when that container is gone"));
        }
        nft.release(&ruleset.key, |_, element| owner_link(element) == Some(holder.as_str()))
            .map_err(|e| refused(&e))?;
    }
}

fn wanted(key: &ElementKey) -> String {
    key.key.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// False when no link has the name that an element's comment tells. A comment that tells none is somebody else's.
fn is_alive(host: &mut Rtnl, link: &str) -> Result<bool, CniError> {
    let Ok(name) = IfName::new(link) else { return Ok(true) };
    host.link(&name).map(|link| link.is_some()).map_err(|e| refused(&e))
}

/// Releases every port of `owner` in `table` and forgets the flows that used them.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn close(nft: &mut Nft, table: &TableKey, owner: &Attachment) -> Result<(), CniError> {
    release(nft, table, |_, element| owns(owner, element))
}

/// Releases every port in the table of `network` whose owner's host end is not among `valid`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn sweep(network: &str, valid: &BTreeSet<String>) -> Result<(), CniError> {
    let Some(table) = table_key(network) else { return Ok(()) };
    let mut nft = Nft::open().map_err(|e| refused(&e))?;
    release(&mut nft, &table, |_, element| owner_link(element).is_none_or(|link| !valid.contains(link)))
}

fn release(nft: &mut Nft, table: &TableKey, wanted: impl Fn(&ElementKey, &Element) -> bool) -> Result<(), CniError> {
    let released = nft.release(table, wanted).map_err(|e| refused(&e))?;
    let flows: Vec<StaleFlows> = released.iter().filter_map(|(key, element)| flow_of(key, element)).collect();
    if !flows.is_empty() {
        let led_there = |flow: &Flow, port: &StaleFlows| flow.reply.src.ip() == port.pod;
        Conntrack::open().and_then(|mut ct| forget(&mut ct, &flows, led_there)).map_err(|e| refused(&e))?;
    }
    Ok(())
}

/// Forgets flows to the addresses of this host, `local`, that lead past the Pods which the ports now lead to.
///
/// # Errors
/// What the kernel said.
pub fn forget_former(ct: &mut Conntrack, flows: &[StaleFlows], local: &[IpAddr]) -> Result<(), KernelError> {
    forget(ct, flows, |flow, port| {
        let dst = flow.original.dst.ip();
        let to_us = port.host_ip.map_or_else(|| dst.is_loopback() || local.contains(&dst), |ip| ip == dst);
        to_us && flow.reply.src.ip() != port.pod
    })
}

fn forget(
    ct: &mut Conntrack,
    flows: &[StaleFlows],
    is_stale: impl Fn(&Flow, &StaleFlows) -> bool,
) -> Result<(), KernelError> {
    for family in [NetworkFamily::Ip, NetworkFamily::Ip6] {
        let of_family = |port: &&StaleFlows| port.pod.is_ipv4() == (family == NetworkFamily::Ip);
        let ports: Vec<&StaleFlows> = flows.iter().filter(of_family).collect();
        if ports.is_empty() {
            continue;
        }
        ct.delete_stale(family, Protocol::Udp, |flow| {
            ports.iter().any(|port| flow.original.dst.port() == port.host_port && is_stale(flow, port))
        })?;
    }
    Ok(())
}
