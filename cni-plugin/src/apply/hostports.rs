//! Host ports in the kernel: claimed, released, and the UDP flows that remember another way forgotten.
//!
//! Invariant: an attachment's ports are found by the tag that each element names, never by what a configuration says
//! now; a port that another container holds, of whichever network, is refused with the holder's name.

use std::net::IpAddr;

use kernel::conntrack::{Conntrack, Flow, Selection};
use kernel::nft::{ClaimError, Nft};
use kernel::{KernelError, Rtnl};
use netstate::nft::{Element, ElementKey, Family, Ruleset, TableKey};
use netstate::{IpFamily, Protocol};

use crate::plan::hostports::{StaleFlows, flow_of, keys, predecessor, table};
use crate::plan::tag::{ObservedTag, Tag};
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};

/// Attempts on a ruleset that others change at the same time.
const TRIES: u32 = 30;

/// Puts the elements of `ruleset` in for `tag`. Where everything is there and free, that is one request; otherwise
/// the table is made or completed, and a holder whose link is gone gives way: it is an attachment that nobody deleted.
///
/// # Errors
/// Code 11 when a living attachment holds one of the ports; 100 when the kernel refuses. Then no port is open.
pub(crate) fn claim(nft: &mut Nft, host: &mut Rtnl, ruleset: &Ruleset, tag: &Tag) -> Result<(), CniError> {
    if nft.claim_free(ruleset)? {
        return Ok(());
    }
    take_over_earlier(nft, host)?;
    let mut buried: Vec<ObservedTag> = Vec::new();
    loop {
        let shape = |have: Option<&_>| table::merged(have, &ruleset.table);
        let (key, by) = match nft.claim(ruleset, shape, |_: &ElementKey, element: &Element| tag.owns(element)) {
            Ok(()) => return Ok(()),
            Err(ClaimError::Kernel(e)) => return Err(CniError::from(e)),
            Err(ClaimError::Held { key, by }) => (key, by.unwrap_or_default()),
        };
        let Some(holder) = ObservedTag::read(&by) else { return Err(held(&key, &by)) };
        let shares = ObservedTag::read(&tag.comment()).is_some_and(|own| own.shares_container(&holder));
        if shares && !buried.contains(&holder) {
            // The same container by another network: the later one has the ports that both ask for.
            let asked = |key: &ElementKey| ruleset.elements.keys().any(|own| keys::is_same_port(own, key));
            let is_its = |element: &Element| ObservedTag::of(element).is_some_and(|other| other.is_same(&holder));
            nft.release(&ruleset.key, |key, element| is_its(element) && asked(key))?;
            buried.push(holder);
            continue;
        }
        if is_alive(host, &holder)? || buried.contains(&holder) {
            return Err(held(&key, &holder.to_string()));
        }
        let is_theirs = |element: &Element| ObservedTag::of(element).is_some_and(|other| other.is_same(&holder));
        nft.release(&ruleset.key, |_, element| is_theirs(element))?;
        buried.push(holder);
    }
}

fn held(key: &ElementKey, by: &str) -> CniError {
    let port = key.key.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if by.is_empty() {
        let msg = format!("host port {port} is held by an element of set {} that names no holder", key.set);
        return CniError::new(Code::TryAgainLater, msg).details("see nft list table inet netd-ports");
    }
    CniError::new(Code::TryAgainLater, format!("host port {port} is held by {by}"))
        .details("try again when that container is gone")
}

/// False when the holder's own link is gone. Where no link says, the holder counts as alive.
fn is_alive(host: &mut Rtnl, holder: &ObservedTag) -> Result<bool, CniError> {
    let Some(link) = holder.link() else { return Ok(true) };
    host.link(&link).map(|link| link.is_some()).map_err(CniError::from)
}

/// Moves the ports of tables of the earlier form into the shared one, where that does not exist yet. A table with a
/// port that is taken meanwhile stays as it is.
fn take_over_earlier(nft: &mut Nft, host: &mut Rtnl) -> Result<(), CniError> {
    let tables = nft.tables(Family::Inet)?;
    if tables.contains(&table::key()) {
        return Ok(());
    }
    for key in tables {
        let Some(network) = predecessor::network_of(&key) else { continue };
        let Some(found) = nft.ruleset(&key)? else { continue };
        let links = host.links()?;
        let alive = links.iter().map(|link| link.name.to_string()).collect();
        let moved = predecessor::moved(&found, network, &alive);
        let shape = |have: Option<&_>| table::merged(have, &moved.table);
        match nft.claim(&moved, shape, |at: &ElementKey, element: &Element| moved.elements.get(at) == Some(element)) {
            // Somebody of the earlier form may have come meanwhile.
            Ok(()) => nft.remove_table(&key, |now| *now == found)?,
            Err(ClaimError::Held { .. }) => {}
            Err(ClaimError::Kernel(e)) => return Err(CniError::from(e)),
        }
    }
    Ok(())
}

/// True when `tag` has a port, in the shared table or in that of the earlier form.
///
/// # Errors
/// Code 100 when the kernel cannot be asked.
pub(crate) fn is_any_open(nft: &mut Nft, tag: &Tag) -> Result<bool, CniError> {
    let mut any = |key: &TableKey, owns: &dyn Fn(&Element) -> bool| -> Result<bool, CniError> {
        let found = nft.ruleset(key)?;
        Ok(found.is_some_and(|ruleset| ruleset.elements.values().any(owns)))
    };
    if any(&table::key(), &|element| tag.owns(element))? {
        return Ok(true);
    }
    let earlier = predecessor::key(&tag.network);
    earlier.map_or(Ok(false), |key| any(&key, &|element| predecessor::owns(&tag.attachment, element)))
}

/// Releases those of the ports with these keys that are `tag`'s, and forgets the flows that used them. Nothing is
/// listed.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn close_known(nft: &mut Nft, keys: &[ElementKey], tag: &Tag) -> Result<(), CniError> {
    for _ in 0..TRIES {
        let generation = nft.generation()?;
        let mut released = Vec::new();
        for key in keys.iter().filter(|key| keys::is_target(key)) {
            let Some(set) = keys::declared(&key.set) else { continue };
            let found = nft.element(key, &set)?;
            released.extend(found.filter(|element| tag.owns(element)).map(|element| (key, element)));
        }
        let is_released = |key: &&ElementKey| released.iter().any(|(port, _)| keys::is_same_port(port, key));
        let all: Vec<&ElementKey> = keys.iter().filter(is_released).collect();
        if nft.remove(&table::key(), all.iter().copied(), generation)? {
            return forget_released(released.iter().filter_map(|(key, element)| flow_of(key, element)).collect());
        }
    }
    // The table changes all the time, or is not as it was made: what is there is examined.
    close(nft, tag)
}

/// Releases every port of `tag`, in the shared table and in that of the earlier form, and forgets the flows that used
/// them.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn close(nft: &mut Nft, tag: &Tag) -> Result<(), CniError> {
    release(nft, &table::key(), |element| tag.owns(element))?;
    let Some(earlier) = predecessor::key(&tag.network) else { return Ok(()) };
    release(nft, &earlier, |element| predecessor::owns(&tag.attachment, element))?;
    remove_empty(nft, &earlier)
}

/// Releases every port of `network` whose holder is not among `valid`, and what the table holds for no port.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn sweep(network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    let mut nft = Nft::open()?;
    let is_stale = |holder: &ObservedTag| holder.is_of(network) && !holder.is_among(valid);
    release(&mut nft, &table::key(), |element| ObservedTag::of(element).is_some_and(|holder| is_stale(&holder)))?;
    nft.reshape(&table::key(), table::pruned)?;
    let Some(earlier) = predecessor::key(network) else { return Ok(()) };
    let is_valid = |link: &str| valid.iter().any(|valid| valid.host_link().as_str() == link);
    release(&mut nft, &earlier, |element| predecessor::holder_link(element).is_none_or(|link| !is_valid(link)))?;
    remove_empty(&mut nft, &earlier)
}

/// Removes a table of the earlier form that leads nowhere any more.
fn remove_empty(nft: &mut Nft, earlier: &TableKey) -> Result<(), CniError> {
    nft.remove_table(earlier, |found| found.elements.is_empty()).map_err(CniError::from)
}

fn release(nft: &mut Nft, table: &TableKey, wanted: impl Fn(&Element) -> bool) -> Result<(), CniError> {
    let released = nft.release(table, |_, element| wanted(element))?;
    forget_released(released.iter().filter_map(|(key, element)| flow_of(key, element)).collect())
}

/// Forgets flows that led to where these ports led.
fn forget_released(flows: Vec<StaleFlows>) -> Result<(), CniError> {
    if flows.is_empty() {
        return Ok(());
    }
    let led_there = |flow: &Flow, port: &StaleFlows| {
        let was_ours = port.host_ip.map_or_else(|| flow.is_redirected(), |ip| flow.original.dst.ip() == ip);
        was_ours && flow.reply.src.ip() == port.pod
    };
    Conntrack::open().and_then(|mut ct| forget(&mut ct, &flows, led_there)).map_err(CniError::from)
}

/// Forgets flows to the addresses of this host, `local`, that lead past the Pods which the ports now lead to.
///
/// # Errors
/// What the kernel said.
pub(crate) fn forget_earlier(ct: &mut Conntrack, flows: &[StaleFlows], local: &[IpAddr]) -> Result<(), KernelError> {
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
    for family in IpFamily::ALL {
        let of_family = |port: &&StaleFlows| IpFamily::of(port.pod) == family;
        let ports: Vec<&StaleFlows> = flows.iter().filter(of_family).collect();
        if ports.is_empty() {
            continue;
        }
        ct.delete_stale(&Selection::all(family, Protocol::Udp), |flow| {
            ports.iter().any(|port| flow.original.dst.port() == port.host_port && is_stale(flow, port))
        })?;
    }
    Ok(())
}
