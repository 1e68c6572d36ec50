//! DEL: releases what an attachment holds, whichever name made it.
//!
//! A node's list of plugins changes while Pods run, so DEL of each name examines every class of record, and where there is none
//! those of the node's other networks: the list may have got another name. Nothing is needed but
//! the attachment's name; whatever is missing counts as removed. Fails only when something that exists cannot be removed,
//! and then the record stays, so that the next DEL finds its work.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use kernel::nft::Nft;
use kernel::orphan::close_aside;
use kernel::{Netns, Rtnl};
use netstate::{IfName, LinkKind};
use serde_json::Value;

use super::{ifb, predecessor};
use crate::apply::{hostports, spoof};
use crate::plan::detach::{self, Facts};
use crate::plan::tag::Tag;
use crate::protocol::args::Call;
use crate::protocol::attachment::Attachment;
use crate::protocol::error::CniError;
use crate::protocol::netconf::NetConf;
use crate::protocol::result;
use crate::state::places::Places;
use crate::state::record::{Ports, Record};
use crate::state::records::{Class, Held};
use crate::state::reservations::store::is_absence;
use crate::state::{ATTACHMENT_WAIT, RESERVATION_WAIT};

/// Releases everything, the interface first: for the names that make it.
///
/// # Errors
/// When something that exists could not be removed.
pub(crate) fn attachment(conf: &NetConf, call: &Call) -> Result<(), CniError> {
    renamed(conf, call).iter().try_for_each(|earlier| attachment_of(earlier, call))?;
    attachment_of(conf, call)
}

/// `conf` under the names of the networks that have records of the attachment where its own network has none: it was made
/// before the list got this name. An interface of a container is in one network, and its link here has one name in all.
pub(crate) fn renamed(conf: &NetConf, call: &Call) -> Vec<NetConf> {
    let places = Places::of(conf, None);
    let classes = [Class::Attachment, Class::HostPorts, Class::Bandwidth].into_iter();
    let records =
        || classes.clone().map(|class| places.records(class)).chain(places.leases().map(|(_, grants)| grants));
    if records().any(|records| records.has(&call.attachment)) {
        return Vec::new();
    }
    let names: BTreeSet<String> =
        records().flat_map(|records| records.elsewhere(&call.attachment).collect::<Vec<_>>()).collect();
    names.into_iter().map(|name| NetConf { name, ..conf.clone() }).collect()
}

fn attachment_of(conf: &NetConf, call: &Call) -> Result<(), CniError> {
    let places = Places::of(conf, Some(&call.attachment.container));
    let mut host = Rtnl::open()?;
    let chained = Chained::hold(&places, &call.attachment)?;
    let Some(mut held) = take(&places, conf, call, &chained, &mut host)? else {
        return predecessor::remove(&conf.name, &call.attachment);
    };
    let record = held.read();
    // Without a readable record the table is searched. The conversation stays open until the link's deletion was handed to
    // a process of its own, which inherits it.
    let ports = record.as_ref().map_or(Ports::Unlisted, |record| record.ports.clone().and(chained.ports()));
    let closed = close_ports(&conf.name, &call.attachment, &ports)?;
    let known = record.as_ref().map(|record| record.addresses.clone()).unwrap_or_default();
    let via = record.as_ref().and_then(|record| record.via.as_ref());
    let facts = observe(&places, conf, call, known, &mut host)?;
    let detach = detach::plan(&call.attachment, &facts);
    let mut bridge = None;
    for link in &detach.links {
        bridge = delete_link(&mut host, link)?.or(bridge);
    }
    let (class, device) = match &chained.bandwidth {
        Some((_, record)) => (Class::Bandwidth, record.as_ref()),
        None => (Class::Attachment, record.as_ref()),
    };
    ifb::remove(&mut host, &places.records(class), &conf.name, &call.attachment, device)?;
    drop(closed);
    // Behind the link: as long as it is there it is guarded.
    let unguarded = unguard(&conf.name, &call.attachment, record.as_ref())?;
    if record.is_none() {
        if !facts.host_link && !detach.addresses.is_empty() {
            predecessor::report_legacy(&conf.name, &call.attachment.container);
        }
        predecessor::remove(&conf.name, &call.attachment)?;
    }
    forget_neighbours(&detach.addresses, towards(via, &mut host)?.or(bridge), &mut host)?;
    release_leases(&places, call, &detach.addresses, record.is_some())?;
    chained.remove()?;
    held.remove()?;
    unguarded.map_or(Ok(()), |nft| Ok(close_aside(nft)?))
}

/// Releases what names other than `host-local` made: before a list of plugins changed, or behind it in the chain.
///
/// # Errors
/// As [`attachment`].
pub(crate) fn of_other_names(conf: &NetConf, call: &Call) -> Result<(), CniError> {
    let places = Places::of(conf, None);
    let has = |class| places.records(class).has(&call.attachment);
    if has(Class::Attachment) {
        return attachment(conf, call);
    }
    let is_chained = has(Class::HostPorts) || has(Class::Bandwidth);
    if is_chained { chained(conf, call, Part::Neither) } else { Ok(()) }
}

/// Which of the chained names a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// `portmap`.
    HostPorts,
    /// `bandwidth`.
    Bandwidth,
    /// None of them.
    Neither,
}

/// Releases host ports and limits, and leaves the interface to the name that makes interfaces: it comes next. What that name
/// will not come for, because the namespace is gone and so is the link, is released as well.
///
/// # Errors
/// As [`attachment`].
pub(crate) fn chained(conf: &NetConf, call: &Call, part: Part) -> Result<(), CniError> {
    renamed(conf, call).iter().try_for_each(|earlier| chained_of(earlier, call, part))?;
    chained_of(conf, call, part)
}

fn chained_of(conf: &NetConf, call: &Call, part: Part) -> Result<(), CniError> {
    let places = Places::of(conf, None);
    let chained = Chained::hold(&places, &call.attachment)?;
    let records = places.records(Class::Attachment);
    let whole = records.peek(&call.attachment);
    if whole.is_some() && is_namespace_gone(call) && Rtnl::open()?.link(call.attachment.host_link())?.is_none() {
        drop(chained);
        return attachment_of(conf, call);
    }
    let is_known = whole.is_some() || chained.is_any();
    let within = whole.flatten().filter(|record| record.ports != Ports::None || record.ifb);
    let mut held = within.map(|_| records.hold_existing(&call.attachment, ATTACHMENT_WAIT)).transpose()?.flatten();
    let within = held.as_mut().and_then(Held::read).unwrap_or_default();
    let closed = close_ports(&conf.name, &call.attachment, &chained.ports().and(within.ports.clone()))?;
    if chained.bandwidth.is_some() || within.ifb || (part == Part::Bandwidth && !is_known) {
        let records = places.records(Class::Bandwidth);
        let record = if within.ifb { Some(&within) } else { chained.device() };
        ifb::remove(&mut Rtnl::open()?, &records, &conf.name, &call.attachment, record)?;
    }
    if part == Part::HostPorts && !is_known {
        // Neither the ports are ours nor is the interface.
        predecessor::remove_ports(&conf.name, &call.attachment.container)?;
    }
    if let Some(mut held) = held {
        held.write(&Record { ports: Ports::None, ifb: false, ..within })?;
    }
    release_grants(&places, call)?;
    // Before there is a second process: that one would hold the records' locks when this one is killed.
    chained.remove()?;
    closed.map_or(Ok(()), |nft| Ok(close_aside(nft)?))
}

/// The records of the chained names, held.
#[derive(Debug)]
struct Chained {
    ports: Option<(Held, Ports)>,
    bandwidth: Option<(Held, Option<Record>)>,
}

impl Chained {
    fn hold(places: &Places, attachment: &Attachment) -> Result<Self, CniError> {
        let hold = |class| places.records(class).hold_existing(attachment, ATTACHMENT_WAIT);
        let ports = hold(Class::HostPorts)?.map(|mut held| {
            let ports = held.read().map_or(Ports::Unlisted, |record| record.ports);
            (held, ports)
        });
        let bandwidth = hold(Class::Bandwidth)?.map(|mut held| {
            let record = held.read();
            (held, record)
        });
        Ok(Self { ports, bandwidth })
    }

    fn is_any(&self) -> bool {
        self.ports.is_some() || self.bandwidth.is_some()
    }

    fn ports(&self) -> Ports {
        self.ports.as_ref().map(|(_, ports)| ports.clone()).unwrap_or_default()
    }

    fn device(&self) -> Option<&Record> {
        self.bandwidth.as_ref().and_then(|(_, record)| record.as_ref())
    }

    fn remove(self) -> Result<(), CniError> {
        self.ports.map_or(Ok(()), |(held, _)| held.remove())?;
        self.bandwidth.map_or(Ok(()), |(held, _)| held.remove())
    }
}

/// Nobody can name the Pod's namespace any more.
fn is_namespace_gone(call: &Call) -> bool {
    call.netns.as_ref().is_none_or(|path| fs::metadata(path).is_err())
}

/// Releases addresses that `host-local` gave to another plugin, once the interface that had them is gone: until then its
/// plugin will come for them.
fn release_grants(places: &Places, call: &Call) -> Result<(), CniError> {
    for (store, records) in places.leases() {
        let Some(mut held) = records.hold_existing(&call.attachment, ATTACHMENT_WAIT)? else { continue };
        if call.netns.as_deref().is_some_and(|path| has_interface(path, &call.attachment)) {
            continue;
        }
        let addresses = held.read().map(|record| record.addresses);
        if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
            let addresses = addresses.map_or_else(|| locked.find(&call.attachment), Ok)?;
            locked.free(&call.attachment, &addresses)?;
        }
        held.remove()?;
    }
    Ok(())
}

fn has_interface(path: &Path, attachment: &Attachment) -> bool {
    let link = || Rtnl::open_in(&Netns::open(path)?)?.link(&attachment.ifname);
    link().is_ok_and(|link| link.is_some())
}

/// Takes the attachment's port off the guard against spoofing. Without a record it is searched for there.
fn unguard(network: &str, attachment: &Attachment, record: Option<&Record>) -> Result<Option<Nft>, CniError> {
    let mac = record.and_then(|record| record.guarded);
    if record.is_some() && mac.is_none() { Ok(None) } else { spoof::unguard(&Tag::own(network, attachment), mac) }
}

/// Gives the addresses back and removes flannel's state file, both last: until then another DEL finds its work.
fn release_leases(places: &Places, call: &Call, addresses: &[IpAddr], has_record: bool) -> Result<(), CniError> {
    for (store, grants) in places.leases() {
        if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
            locked.free(&call.attachment, addresses)?;
        }
        if !has_record && let Some(grant) = grants.hold_existing(&call.attachment, ATTACHMENT_WAIT)? {
            // Another plugin's Pod, that got its addresses from `host-local`.
            grant.remove()?;
        }
    }
    places.flannel_files(&call.attachment.container).try_for_each(|path| remove_file(&path))
}

/// Takes the attachment's record. `None` when nothing is there to remove: an ADD that begins now comes after this DEL, and
/// what it makes is its own.
fn take(
    places: &Places,
    conf: &NetConf,
    call: &Call,
    chained: &Chained,
    host: &mut Rtnl,
) -> Result<Option<Held>, CniError> {
    let records = places.records(Class::Attachment);
    let found = records.hold_existing(&call.attachment, ATTACHMENT_WAIT)?;
    if found.is_some() || !(chained.is_any() || is_anything_there(places, conf, call, host)?) {
        return Ok(found);
    }
    // Made by the chain that ran here before us, or by an ADD at this very moment, which is waited for.
    records.hold(&call.attachment, ATTACHMENT_WAIT).map(Some)
}

/// True when something on this node belongs to the attachment.
fn is_anything_there(places: &Places, conf: &NetConf, call: &Call, host: &mut Rtnl) -> Result<bool, CniError> {
    let attachment = &call.attachment;
    if places.flannel_files(&attachment.container).any(|path| fs::symlink_metadata(path).is_ok()) {
        return Ok(true);
    }
    let facts = observe(places, conf, call, Vec::new(), host)?;
    if facts.host_link || !facts.addresses.is_empty() || places.leases().any(|(_, grants)| grants.has(attachment)) {
        return Ok(true);
    }
    if ifb::is_there(host, &places.records(Class::Attachment), &conf.name, attachment)? {
        return Ok(true);
    }
    hostports::is_any_open(&mut Nft::open()?, &Tag::own(&conf.name, attachment))
}

/// Releases the host ports of an attachment of `network`: those that its records list, or all that are found. Closing
/// the returned conversation takes the kernel some 10 ms when something was released.
pub(crate) fn close_ports(network: &str, attachment: &Attachment, known: &Ports) -> Result<Option<Nft>, CniError> {
    let tag = Tag::own(network, attachment);
    match known {
        Ports::None => Ok(None),
        Ports::Keys(keys) if keys.is_empty() => Ok(None),
        Ports::Keys(keys) => {
            let mut nft = Nft::open()?;
            hostports::close_known(&mut nft, keys, &tag).map(|()| Some(nft))
        }
        Ports::Unlisted => {
            let mut nft = Nft::open()?;
            hostports::close(&mut nft, &tag).map(|()| Some(nft))
        }
    }
}

/// Deletes the veth called `name` and returns the index of its bridge; absent is fine.
pub(super) fn delete_link(host: &mut Rtnl, name: &IfName) -> Result<Option<u32>, CniError> {
    let Some(link) = host.link(name)?.filter(|link| link.link.kind == LinkKind::Veth) else { return Ok(None) };
    host.delete_link_aside(link.index)?;
    Ok(link.master_index)
}

/// Makes the kernel forget who had `addresses`, before they are given back. `bridge` is the index of the bridge where
/// that is known; a link that vanished with its namespace names it no more.
pub(super) fn forget_neighbours(addresses: &[IpAddr], bridge: Option<u32>, host: &mut Rtnl) -> Result<(), CniError> {
    let Some(first) = addresses.first() else { return Ok(()) };
    match bridge.or_else(|| bridge_towards(*first, host)) {
        Some(index) => Ok(host.forget_neighbours(index, addresses)?),
        None => Ok(()),
    }
}

/// The index of the link through which the record says that an attachment is reached, where it is not the bridge.
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

/// `known` are the addresses of the record. Without any, every reservation of the network is read.
fn observe(
    places: &Places,
    conf: &NetConf,
    call: &Call,
    known: Vec<IpAddr>,
    host: &mut Rtnl,
) -> Result<Facts, CniError> {
    let mut addresses = known;
    if addresses.is_empty() {
        for (store, _) in places.leases() {
            if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
                // An ADD that was killed may have made a reservation that does not say whose it is.
                locked.remove_empty()?;
                addresses.extend(locked.find(&call.attachment)?);
            }
        }
    }
    // A link of another kind is somebody else's, whatever its name.
    let host_link = host.link(call.attachment.host_link())?;
    let host_link = host_link.is_some_and(|link| link.link.kind == LinkKind::Veth);
    let foreign_peer = if host_link || addresses.is_empty() {
        None
    } else {
        let inside = call.netns.as_deref().and_then(|path| peer_inside(path, &call.attachment, host));
        inside.or_else(|| peer_reported(conf.prev_result.as_ref()?, host))
    };
    Ok(Facts { host_link, addresses, foreign_peer })
}

/// The host end that the previous result reports, if a veth with that name and hardware address is there: the namespace
/// may live on somewhere although nobody can name it any more.
fn peer_reported(previous: &Value, host: &mut Rtnl) -> Option<IfName> {
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
