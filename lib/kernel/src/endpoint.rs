//! A Pod's interface: addresses, up, routes, in one datagram.
//!
//! Invariant: the messages stand in the order in which the kernel needs them, because it handles a datagram's messages
//! one by one: a route whose gateway no address covers yet, or over a link that is down, would be refused.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netstate::{IfName, Route, RouteKey};

use crate::address;
use crate::error::KernelError;
use crate::rtnl::{Indexes, Operation, Rtnl, encode};

impl Rtnl {
    /// Gives the link `name`, which has `index`, its addresses, sets it up and adds `routes`, all of which leave through
    /// it. A route that exists already is left as it is. With `detect`, IPv6 addresses are usable only when nobody else on
    /// the link turns out to have them, see [`Rtnl::unusable_addresses`]; at once otherwise.
    ///
    /// # Errors
    /// The first message that the kernel refuses; those behind it were handled all the same.
    pub fn configure_endpoint(
        &mut self,
        name: &IfName,
        index: u32,
        addresses: &[(IpAddr, u8)],
        detect: bool,
        routes: &[(RouteKey, Route)],
    ) -> Result<(), KernelError> {
        let mut indexes = Indexes::knowing(name, index);
        let exclusive = NLM_F_CREATE | NLM_F_EXCL;
        let mut operations: Vec<Result<Operation, KernelError>> =
            addresses.iter().map(|(addr, len)| Ok(address::add(index, *addr, *len, detect, exclusive))).collect();
        operations.push(Ok(set_up(name, index)));
        let first_route = operations.len();
        for (key, route) in routes {
            operations.push(self.operation(key, route, NLM_F_CREATE, &mut indexes));
        }
        let fine = |(position, result): (usize, Result<(), KernelError>)| match result {
            Err(error) if position >= first_route && error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        };
        self.batch(operations).into_iter().enumerate().try_for_each(fine)
    }
}

fn set_up(name: &IfName, index: u32) -> Operation {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Operation {
        op: "set link up",
        object: name.to_string(),
        message: encode(&RouteNetlinkMessage::SetLink(message), 0),
    }
}
