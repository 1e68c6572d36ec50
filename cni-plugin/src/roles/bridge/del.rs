//! DEL.
//!
//! Needs nothing but the attachment's name; whatever is missing counts as removed. Fails only when something that
//! exists cannot be removed, and then the record stays, so that the next DEL finds its work.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use kernel::nft::Nft;
use kernel::orphan::close_aside;
use kernel::{Netns, Rtnl};
use netstate::{IfName, LinkKind};
use serde_json::Value;

use super::Bridge;
use super::network::Places;
use crate::apply::hostports;
use crate::apply::spoof;
use crate::plan::detach::{self, Facts};
use crate::plan::tag::Tag;
use crate::protocol::args::Call;
use crate::protocol::attachment::Attachment;
use crate::protocol::error::CniError;
use crate::protocol::netconf::NetConf;
use crate::protocol::result;
use crate::reclaim::ifb;
use crate::reclaim::predecessor;
use crate::roles::{ATTACHMENT_WAIT, RESERVATION_WAIT};
use crate::state::record::{self, Held, Ports, Record};
use crate::state::reservations::store::is_absence;
use crate::state::reservations::{Store, owners};

/// Removes the attachment.
///
/// # Errors
/// When something that exists could not be removed.
pub fn del(conf: &NetConf, role: Bridge, call: &Call) -> Result<(), CniError> {
    let places = Places::of(&conf.fields, role, Some(&call.attachment.container));
    let mut host = Rtnl::open()?;
    let Some(mut held) = take(&places, conf, role, call, &mut host)? else {
        return predecessor::remove(&conf.name, &call.attachment);
    };
    let record = held.read();
    // Without a readable record the table is looked at. The conversation stays open until the link's deletion was handed to
    // a process of its own, which inherits it.
    let ports = record.as_ref().map_or(&Ports::Unlisted, |record| &record.ports);
    let closed = if role == Bridge::Native { close_ports(&conf.name, &call.attachment, ports)? } else { None };
    let known = record.as_ref().map(|record| record.addresses.clone()).unwrap_or_default();
    let via = record.as_ref().and_then(|record| record.via.as_ref());
    let facts = observe(&places, conf, call, known, &mut host)?;
    let detach = detach::plan(&call.attachment, &facts);
    let mut bridge = None;
    for link in &detach.links {
        bridge = delete_link(&mut host, link)?.or(bridge);
    }
    ifb::remove(&mut host, &places.records, &conf.name, &call.attachment, record.as_ref())?;
    drop(closed);
    // Behind the link: as long as it is there it is guarded.
    let unguarded = unguard(&conf.name, &call.attachment, record.as_ref())?;
    if record.is_none() {
        if !facts.host_link && !detach.addresses.is_empty() {
            predecessor::tell_of_legacy(&conf.name, &call.attachment.container);
        }
        predecessor::remove(&conf.name, &call.attachment)?;
    }
    forget_neighbours(&detach.addresses, towards(via, &mut host)?.or(bridge), &mut host)?;
    release(&places, conf, call, &detach.addresses, record.is_some())?;
    held.remove()?;
    unguarded.map_or(Ok(()), |nft| close_aside(nft).map_err(CniError::from))
}

/// Takes the attachment's port off the guard against spoofing. Without a record it is looked for there.
fn unguard(network: &str, attachment: &Attachment, record: Option<&Record>) -> Result<Option<Nft>, CniError> {
    let mac = record.and_then(|record| record.guarded);
    if record.is_some() && mac.is_none() { Ok(None) } else { spoof::unguard(&Tag::own(network, attachment), mac) }
}

/// Gives the addresses back and removes flannel's state file, both last: until then another DEL finds its work.
fn release(
    places: &Places,
    conf: &NetConf,
    call: &Call,
    addresses: &[IpAddr],
    has_record: bool,
) -> Result<(), CniError> {
    for dir in &places.reservations {
        let store = Store::new(dir, &conf.name);
        if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
            locked.free(&call.attachment, addresses)?;
        }
        if !has_record {
            // Another plugin's Pod, that got its addresses from `host-local`.
            owners::forget(&dir.join(&conf.name), &conf.name, &call.attachment)?;
        }
    }
    places.flannel_state.iter().chain(&places.flannel_draft).try_for_each(|path| remove_file(path))
}

/// Takes the attachment's record. `None` when nothing is there to remove: an ADD that begins now comes after this DEL, and
/// what it makes is its own.
fn take(places: &Places, conf: &NetConf, role: Bridge, call: &Call, host: &mut Rtnl) -> Result<Option<Held>, CniError> {
    let found = record::hold_existing(&places.records, &conf.name, &call.attachment, ATTACHMENT_WAIT)?;
    if found.is_some() || !is_anything_there(places, conf, role, call, host)? {
        return Ok(found);
    }
    // Made by the chain that ran here before us, or by an ADD at this very moment, which is waited for.
    record::hold(&places.records, &conf.name, &call.attachment, ATTACHMENT_WAIT).map(Some)
}

/// True when something on this node belongs to the attachment.
fn is_anything_there(
    places: &Places,
    conf: &NetConf,
    role: Bridge,
    call: &Call,
    host: &mut Rtnl,
) -> Result<bool, CniError> {
    let files = places.flannel_state.iter().chain(&places.flannel_draft);
    if files.into_iter().any(|path| fs::symlink_metadata(path).is_ok()) {
        return Ok(true);
    }
    let facts = observe(places, conf, call, Vec::new(), host)?;
    if facts.host_link || !facts.addresses.is_empty() {
        return Ok(true);
    }
    if ifb::is_there(host, &places.records, &conf.name, &call.attachment)? {
        return Ok(true);
    }
    if role != Bridge::Native {
        return Ok(false);
    }
    hostports::is_any_open(&mut Nft::open()?, &Tag::own(&conf.name, &call.attachment))
}

/// Releases the host ports of an attachment of `network`: those that its record tells, or all that are found. Closing
/// the answered conversation takes the kernel some 10 ms when something was released.
pub(crate) fn close_ports(network: &str, attachment: &Attachment, known: &Ports) -> Result<Option<Nft>, CniError> {
    let tag = Tag::own(network, attachment);
    let open = || Nft::open().map_err(CniError::from);
    match known {
        Ports::None => Ok(None),
        Ports::Keys(keys) if keys.is_empty() => Ok(None),
        Ports::Keys(keys) => {
            let mut nft = open()?;
            hostports::close_known(&mut nft, keys, &tag).map(|()| Some(nft))
        }
        Ports::Unlisted => {
            let mut nft = open()?;
            hostports::close(&mut nft, &tag).map(|()| Some(nft))
        }
    }
}

/// Deletes the veth called `name` and answers the index of its bridge; absent is fine.
pub(super) fn delete_link(host: &mut Rtnl, name: &IfName) -> Result<Option<u32>, CniError> {
    let link = host.link(name)?.filter(|link| link.link.kind == LinkKind::Veth);
    let Some(link) = link else { return Ok(None) };
    host.delete_link_aside(link.index)?;
    Ok(link.master_index)
}

/// Makes the kernel forget who had `addresses`, before they are given back. `bridge` is the index of the bridge where
/// that is known; a link that vanished with its namespace cannot tell it any more.
pub(super) fn forget_neighbours(addresses: &[IpAddr], bridge: Option<u32>, host: &mut Rtnl) -> Result<(), CniError> {
    let Some(first) = addresses.first() else { return Ok(()) };
    match bridge.or_else(|| bridge_towards(*first, host)) {
        Some(index) => host.forget_neighbours(index, addresses).map_err(CniError::from),
        None => Ok(()),
    }
}

/// The index of the link that the record says an attachment is reached through, where it is not the bridge.
pub(super) fn towards(via: Option<&IfName>, host: &mut Rtnl) -> Result<Option<u32>, CniError> {
    let Some(name) = via else { return Ok(None) };
    Ok(host.link(name)?.map(|link| link.index))
}

/// The bridge through which this host would reach `addr`.
fn bridge_towards(addr: IpAddr, host: &mut Rtnl) -> Option<u32> {
    let name = host.route_to(addr).ok()?.link?;
    let link = host.link(&name).ok()??;
    matches!(link.link.kind, LinkKind::Bridge(_)).then_some(link.index)
}

/// Removes a file; absent is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(e) if is_absence(&e) => Ok(()),
        other => other.map_err(|e| CniError::io("remove", path, &e)),
    }
}

/// `known` are the addresses that the record tells. Without any, every reservation of the network is looked at.
fn observe(
    places: &Places,
    conf: &NetConf,
    call: &Call,
    known: Vec<IpAddr>,
    host: &mut Rtnl,
) -> Result<Facts, CniError> {
    let unread = if known.is_empty() { &places.reservations[..] } else { &[] };
    let mut addresses = known;
    for dir in unread {
        let store = Store::new(dir, &conf.name);
        if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
            // An ADD that was killed may have made a reservation that does not say whose it is.
            locked.remove_empty()?;
            addresses.extend(locked.find(&call.attachment)?);
        }
    }
    // A link of another kind is somebody else's, whatever its name.
    let host_link = host.link(call.attachment.host_link())?;
    let host_link = host_link.is_some_and(|link| link.link.kind == LinkKind::Veth);
    let foreign_peer = if host_link || addresses.is_empty() {
        None
    } else {
        let inside = call.netns.as_deref().and_then(|path| peer_inside(path, &call.attachment, host));
        inside.or_else(|| peer_told(conf.prev_result.as_ref()?, host))
    };
    Ok(Facts { host_link, addresses, foreign_peer })
}

/// The host end that the previous result tells, if a veth with that name and hardware address is there: the namespace
/// may live on somewhere although nobody can name it any more.
fn peer_told(previous: &Value, host: &mut Rtnl) -> Option<IfName> {
    let result = result::parse(previous.clone()).ok()?;
    result.interfaces.iter().filter(|interface| interface.sandbox.is_none()).find_map(|interface| {
        let link = host.link(&IfName::new(interface.name.clone()).ok()?).ok()??;
        let is_same = link.link.kind == LinkKind::Veth && interface.mac.is_some() && link.link.mac == interface.mac;
        is_same.then_some(link.name)
    })
}

/// The host's name for the other end of the Pod's interface. A namespace that is gone, or a path that is no
/// namespace, has no interface.
fn peer_inside(path: &Path, attachment: &Attachment, host: &mut Rtnl) -> Option<IfName> {
    let netns = Netns::open(path).ok()?;
    if netns.is_current().ok()? {
        return None;
    }
    let mut pod = Rtnl::open_in(&netns).ok()?;
    let inside = pod.link(&attachment.ifname).ok()??;
    let outside = host.link_by_index(inside.lower_index?).ok()??;
    let is_pair = matches!((&inside.link.kind, &outside.link.kind), (LinkKind::Veth, LinkKind::Veth))
        && outside.lower_index == Some(inside.index);
    is_pair.then_some(outside.name)
}
