//! Which route the kernel takes to an address or with a packet, as all its tables and rules make it.
//!
//! Invariant: an address without a route is an answer, not an error; one question each, and the links are named once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::{IfName, LinkKind, MacAddr, Prefix, Protocol, Route, RouteKey};

use crate::address::family;
use crate::error::{Cause, KernelError};
use crate::link::LinkState;
use crate::rtnl::{Indexes, Operation, Rtnl, encode};

/// RTM_F_FIB_MATCH and RTM_F_LOOKUP_TABLE (include/uapi/linux/rtnetlink.h): without the second every table is the main one
/// of IPv4; IPv6 names the table anyway and refuses it.
const FIB_MATCH: u32 = 0x2000;
const LOOKUP_TABLE: u32 = 0x1000;

const fn entry_flags(addr: IpAddr) -> RouteFlags {
    RouteFlags::from_bits_retain(if addr.is_ipv4() { FIB_MATCH | LOOKUP_TABLE } else { FIB_MATCH })
}
/// RTA_IP_PROTO, RTA_SPORT and RTA_DPORT (include/uapi/linux/rtnetlink.h).
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Where a packet of this host would go: one next hop, the address itself as destination.
    Way,
    /// The entry of the routing tables that decides: its destination, table and metric.
    Entry,
}

/// An address with its route, if it has one.
pub type Found = (IpAddr, Option<(RouteKey, Route)>);

/// A packet whose route is looked up as if it were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Its source; `None` for what the kernel chooses.
    pub from: Option<IpAddr>,
    /// Where it goes.
    pub to: IpAddr,
    /// Index of the interface that it comes in by; `None` for one of this host's own.
    pub came_by: Option<u32>,
    /// Index of the interface that it has to leave by, or of the VRF; `None` for any.
    pub leaves_by: Option<u32>,
    /// Its mark, 0 for none.
    pub mark: u32,
    /// Its protocol and destination port.
    pub port: Option<(Protocol, u16)>,
    /// Its source port; of a packet that has a destination port.
    pub source_port: Option<u16>,
}

impl Packet {
    /// One of this host's own to `to`, with nothing else known of it.
    #[must_use]
    pub const fn own(to: IpAddr) -> Self {
        Self { from: None, to, came_by: None, leaves_by: None, mark: 0, port: None, source_port: None }
    }

    fn look_up(&self, asked: Asked) -> Operation {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.to);
        message.header.destination_prefix_length = Prefix::host(self.to).len();
        if asked == Asked::Entry {
            message.header.flags = entry_flags(self.to);
        }
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(self.to)));
        if let Some(from) = self.from {
            message.header.source_prefix_length = Prefix::host(from).len();
            message.attributes.push(RouteAttribute::Source(RouteAddress::from(from)));
        }
        message.attributes.extend(self.came_by.map(RouteAttribute::Iif));
        message.attributes.extend(self.leaves_by.map(RouteAttribute::Oif));
        if self.mark != 0 {
            message.attributes.push(RouteAttribute::Mark(self.mark));
        }
        if let Some((protocol, port)) = self.port {
            message.attributes.push(RouteAttribute::Other(DefaultNla::new(RTA_IP_PROTO, vec![protocol.number()])));
            message.attributes.push(RouteAttribute::Other(DefaultNla::new(RTA_DPORT, port.to_be_bytes().to_vec())));
            if let Some(port) = self.source_port {
                message.attributes.push(RouteAttribute::Other(DefaultNla::new(RTA_SPORT, port.to_be_bytes().to_vec())));
            }
        }
        let message = encode(&RouteNetlinkMessage::GetRoute(message), 0);
        Operation { op: "look up route to", object: self.to.to_string(), message }
    }
}

impl Rtnl {
    /// The entry of the routing tables that `packet` meets, by all rules, with the check of its source where it comes in.
    ///
    /// # Errors
    /// ENETUNREACH when there is none, EXDEV when the source check drops it, EHOSTUNREACH when nothing is forwarded there,
    /// and what a route that refuses says.
    pub fn entry_for(&mut self, packet: &Packet) -> Result<(RouteKey, Route), KernelError> {
        let operation = packet.look_up(Asked::Entry);
        let frames = self.request(&operation)?;
        let none = || KernelError::new("look up route to", packet.to, Cause::Missing("a route".to_owned()));
        let found = frames.iter().find_map(crate::route::parse).ok_or_else(none)?;
        let indexes = Indexes::numbered(self, &found.link.into_iter().collect())?;
        Ok(found.named(&indexes))
    }

    /// The VRF that `link` belongs to.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn vrf_of(&mut self, link: &IfName) -> Result<Option<LinkState>, KernelError> {
        let Some(master) = self.link(link)?.and_then(|state| state.master_index) else { return Ok(None) };
        let is_vrf = |kind: &LinkKind| matches!(kind, LinkKind::Other(kind) if kind == "vrf");
        Ok(self.link_by_index(master)?.filter(|state| is_vrf(&state.link.kind)))
    }

    /// The hardware address that the kernel knows of `addr` on the link with `index`, and whether it was set for good.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn neighbour_on(&mut self, index: u32, addr: IpAddr) -> Result<Option<(MacAddr, bool)>, KernelError> {
        let found = self.entries(family(addr), index, |entry| entry.index == index && entry.dst == Some(addr))?;
        Ok(found.into_iter().find_map(|entry| Some((entry.mac?, entry.permanent))))
    }

    /// Where the tunnel with `index` sends frames for `mac`: one address for each entry.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn tunnel_ends_of(&mut self, index: u32, mac: MacAddr) -> Result<Vec<IpAddr>, KernelError> {
        let wanted = |entry: &crate::neighbour::Entry| entry.index == index && entry.mac == Some(mac);
        let found = self.entries(AddressFamily::Bridge, index, wanted)?;
        Ok(found.into_iter().filter_map(|entry| entry.dst).collect())
    }

    /// The route that each of `packets` takes; `None` for those that have none, or one that refuses (blackhole, prohibit).
    ///
    /// # Errors
    /// When the conversation breaks off.
    pub fn routes_to(
        &mut self,
        packets: impl IntoIterator<Item = Packet>,
        asked: Asked,
    ) -> Result<Vec<Found>, KernelError> {
        let mut found = Vec::new();
        for packet in packets {
            match self.request(&packet.look_up(asked)) {
                Ok(frames) => found.push((packet.to, frames.iter().find_map(crate::route::parse))),
                Err(KernelError { cause: Cause::Nack(_), .. }) => found.push((packet.to, None)),
                Err(error) => return Err(error),
            }
        }
        let links: BTreeSet<u32> = found.iter().filter_map(|(_, route)| route.as_ref()?.link).collect();
        let indexes = Indexes::numbered(self, &links)?;
        Ok(found.into_iter().map(|(addr, route)| (addr, route.map(|route| route.named(&indexes)))).collect())
    }
}
