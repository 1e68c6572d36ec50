//! `Interest`: which of the kernel's notifications concern a program.
//!
//! Invariants: what cannot be read concerns it, so nothing is missed for being unknown; what concerns a link of interest is found
//! by the link's index, which is followed through renaming and through making it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use netstate::route::TABLE_MAIN;
use netstate::{IfName, RouteKey};
use nix::net::if_::if_nametoindex;

use super::Event;
use crate::attribute;
use crate::fdb::WrittenFdb;
use crate::neighbour::{Entry, RemovedNeighbours, entry_in};
use crate::route::key_in;
use crate::writer::{Subject, Writers};

/// Message types (include/uapi/linux/rtnetlink.h); what is removed is one more than what is set.
pub(crate) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
/// NLMSG_OVERRUN.
const OVERRUN: u16 = 4;
/// Bytes of `ifinfomsg`.
pub(crate) const IFINFOMSG: usize = 16;
pub(crate) const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const AF_BRIDGE: u8 = 7;
/// Bytes of `ndmsg`.
const NDMSG: usize = 12;
const NDA_CACHEINFO: u16 = 3;

/// Says whether a route of this key and protocol is of interest, or stands in the place of one.
pub type WantsRoute = Arc<dyn Fn(&RouteKey, u8) -> bool + Send + Sync>;

/// What a program wants to know of. The default is everything.
#[derive(Clone, Default)]
pub struct Interest {
    /// Port ids of our own conversations, [`crate::Rtnl::port`]: what they changed concerns nobody.
    pub own: BTreeSet<u32>,
    /// Forwarding entries that we write.
    pub written: WrittenFdb,
    /// Neighbours that we remove.
    pub removed: RemovedNeighbours,
    /// Links whose neighbours and forwarding entries are of interest, and they themselves; every link when absent.
    pub devices: Option<BTreeSet<IfName>>,
    /// Further links that are of interest themselves, with their addresses.
    pub links: BTreeSet<IfName>,
    /// Kinds of links that are of interest whatever their names.
    pub kinds: BTreeSet<&'static str>,
    /// Routes of interest; every route when absent.
    pub routes: Option<WantsRoute>,
    /// Where it is noted who wrote what is of interest.
    pub writers: Writers,
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, devices, links, .. } = self;
        f.debug_struct("Interest")
            .field("own", own)
            .field("devices", devices)
            .field("links", links)
            .finish_non_exhaustive()
    }
}

/// An [`Interest`] with the indexes of its links.
#[derive(Debug)]
pub(super) struct Filter {
    interest: Interest,
    /// Links of interest that there are, with whether their neighbours are, too.
    indexes: BTreeMap<u32, bool>,
}

impl Filter {
    /// Looks up the links in the calling thread's network namespace.
    pub(super) fn new(interest: Interest) -> Self {
        let devices = interest.devices.iter().flatten().map(|name| (name, true));
        let links = interest.links.iter().map(|name| (name, false));
        // Devices last: what is both is a device.
        let found =
            links.chain(devices).filter_map(|(name, device)| Some((if_nametoindex(name.as_str()).ok()?, device)));
        let indexes = found.collect();
        Self { interest, indexes }
    }

    /// What the notifications of one datagram are about.
    pub(super) fn read(&mut self, mut datagram: &[u8], events: &mut BTreeSet<Event>) {
        while let Some([l0, l1, l2, l3, k0, k1, _, _, _, _, _, _, p0, p1, p2, p3]) = datagram.first_chunk::<HEADER>() {
            let length = usize::try_from(u32::from_ne_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
            let body = datagram.get(HEADER..length).unwrap_or_default();
            let port = u32::from_ne_bytes([*p0, *p1, *p2, *p3]);
            let event = self.event(u16::from_ne_bytes([*k0, *k1]), body, self.interest.own.contains(&port));
            if let Some(subject) = event.and_then(subject) {
                self.interest.writers.note(subject, port);
            }
            events.extend(event);
            datagram = datagram.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn event(&mut self, kind: u16, body: &[u8], own: bool) -> Option<Event> {
        match kind {
            OVERRUN => Some(Event::Resync),
            // Read even when it is our own, for the index.
            RTM_NEWLINK | RTM_DELLINK => Some(self.link(kind == RTM_DELLINK, body)).filter(|_| !own),
            _ if own => None,
            RTM_NEWADDR | RTM_DELADDR => Some(self.address(kind == RTM_DELADDR, body)),
            RTM_NEWROUTE | RTM_DELROUTE => Some(self.route(body)),
            RTM_NEWRULE | RTM_DELRULE => Some(Event::Rule),
            RTM_NEWNEIGH | RTM_DELNEIGH => self.neighbour(kind == RTM_DELNEIGH, body),
            _ => None,
        }
    }

    fn link(&mut self, gone: bool, body: &[u8]) -> Event {
        let Some(devices) = &self.interest.devices else { return Event::Link };
        let (Some(index), Some(attributes)) = (index(body), body.get(IFINFOMSG..)) else { return Event::Link };
        let name =
            attribute::find(attributes, IFLA_IFNAME).map(attribute::text).and_then(|name| IfName::new(name).ok());
        let device = name.as_ref().is_some_and(|name| devices.contains(name));
        let named = device || name.as_ref().is_some_and(|name| self.interest.links.contains(name));
        let info = attribute::find(attributes, IFLA_LINKINFO);
        let kind = info.and_then(|info| attribute::find(info, IFLA_INFO_KIND)).map(attribute::text);
        let of_kind = kind.is_some_and(|kind| self.interest.kinds.contains(kind.as_str()));
        // One that was of interest under another name concerns us for the last time.
        let known = self.indexes.remove(&index);
        if named && !gone {
            self.indexes.insert(index, device);
        }
        if named || of_kind || known.is_some() { Event::Link } else { Event::OtherLink }
    }

    fn address(&self, gone: bool, body: &[u8]) -> Event {
        let Some(index) = index(body) else { return Event::Address };
        if self.interest.devices.is_some() && !self.indexes.contains_key(&index) {
            return Event::OtherLink;
        }
        if gone { Event::Address } else { Event::NewAddress }
    }

    fn route(&self, body: &[u8]) -> Event {
        let Some((key, protocol)) = key_in(body) else { return Event::Route };
        if key.dst.len() == 0 && key.table == TABLE_MAIN {
            return Event::DefaultRoute;
        }
        let wanted = self.interest.routes.as_ref().is_none_or(|wants| wants(&key, protocol));
        if wanted { Event::Route } else { Event::OtherRoute }
    }

    fn neighbour(&self, gone: bool, body: &[u8]) -> Option<Event> {
        let Some(entry) = entry_in(body) else { return Some(Event::Neighbour) };
        let of_device = self.indexes.get(&entry.index).is_some_and(|device| *device);
        if self.interest.devices.is_some() && !of_device {
            return None;
        }
        let Entry { family, index, dst, mac, .. } = entry;
        if family == AF_BRIDGE && of_device && !has_age(body) {
            // Up to Linux 6.12, rtnl_fdb_add and rtnl_fdb_del announce what vxlan has announced itself once more, without where it leads.
            return None;
        }
        if family != AF_BRIDGE {
            let own = gone && dst.is_some_and(|dst| self.interest.removed.is_own((index, dst), &()));
            return (!own).then_some(Event::Neighbour);
        }
        let own = mac.is_some_and(|mac| self.interest.written.is_own((index, mac), &dst.filter(|_| !gone)));
        (!own).then_some(Event::Forwarding)
    }

    /// Notifications were lost: which links there are, and what was announced.
    pub(super) fn start_over(&mut self) {
        self.interest.written.clear();
        self.interest.removed.clear();
        *self = Self::new(self.interest.clone());
    }
}

/// What an event of interest is about.
const fn subject(event: Event) -> Option<Subject> {
    match event {
        Event::Link => Some(Subject::Link),
        Event::Address | Event::NewAddress => Some(Subject::Address),
        Event::Route => Some(Subject::Route),
        Event::Neighbour => Some(Subject::Neighbour),
        Event::Forwarding => Some(Subject::Forwarding),
        Event::OtherLink | Event::DefaultRoute | Event::OtherRoute | Event::Rule | Event::Resync => None,
    }
}

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// Whether an entry has its age, which every table that announces its entries itself says (include/uapi/linux/neighbour.h).
fn has_age(body: &[u8]) -> bool {
    body.get(NDMSG..).is_some_and(|attributes| attribute::find(attributes, NDA_CACHEINFO).is_some())
}

/// The link's index in `ifinfomsg` and `ifaddrmsg`, where it is in the same place.
fn index(body: &[u8]) -> Option<u32> {
    body.get(4..)?.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests;
