//! Which route the kernel takes to each of many addresses, as all its tables and rules make it.
//!
//! Invariant: an address without a route is an answer, not an error; one question each, and the links are named once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netstate::{Prefix, Route, RouteKey};

use crate::address::family;
use crate::error::{Cause, KernelError};
use crate::rtnl::{Indexes, Operation, Rtnl, encode};

/// RTM_F_FIB_MATCH and RTM_F_LOOKUP_TABLE (include/uapi/linux/rtnetlink.h): without the second every table is the main one.
const FIB_MATCH: u32 = 0x2000 | 0x1000;

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

impl Rtnl {
    /// The route to each of `addrs`; `None` for those that have none, or one that refuses (blackhole, prohibit).
    ///
    /// # Errors
    /// When the conversation breaks off.
    pub fn routes_to(
        &mut self,
        addrs: impl IntoIterator<Item = IpAddr>,
        asked: Asked,
    ) -> Result<Vec<Found>, KernelError> {
        let mut found = Vec::new();
        for addr in addrs {
            let mut message = RouteMessage::default();
            message.header.address_family = family(addr);
            message.header.destination_prefix_length = Prefix::host(addr).len();
            if asked == Asked::Entry {
                message.header.flags = RouteFlags::from_bits_retain(FIB_MATCH);
            }
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(addr)));
            let message = encode(&RouteNetlinkMessage::GetRoute(message), 0);
            let operation = Operation { op: "look up route to", object: addr.to_string(), message };
            match self.request(&operation) {
                Ok(frames) => found.push((addr, frames.iter().find_map(crate::route::parse))),
                Err(KernelError { cause: Cause::Nack(_), .. }) => found.push((addr, None)),
                Err(error) => return Err(error),
            }
        }
        let links: BTreeSet<u32> = found.iter().filter_map(|(_, route)| route.as_ref()?.link).collect();
        let indexes = Indexes::numbered(self, &links)?;
        Ok(found.into_iter().map(|(addr, route)| (addr, route.map(|route| route.named(&indexes)))).collect())
    }
}
