//! `AddressWatch`: the kernel's own word that this host has got an address or lost one (RTM_NEWADDR, RTM_DELADDR), that a default route
//! has changed, that the local route of an address is gone, or how a link is named and whether it is up.
//!
//! Other routes, of which a node may have ten thousand, are dropped in the kernel. Invariants: every notification carries its address, so whoever follows them lists addresses once; where some were lost that
//! is reported, and addresses are to be listed anew. IPv6 link-local addresses, which come and go with every Pod, and those of
//! one link that is excepted are left out.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use netstate::route::TABLE_MAIN;
use netstate::{IfName, InterfaceAddress, IpFamily};
use nix::net::if_::if_indextoname;

use crate::address::{RTM_NEWADDR, interface_address};
use crate::attribute;
use crate::error::KernelError;
use crate::route::{RTM_NEWROUTE, key_in};
use crate::socket::{Frame, split};
use crate::watch::interest::{IFINFOMSG, IFLA_IFNAME, RTM_NEWLINK};
use crate::watch::own::{JUMP_EQUAL, KIND_AT, LOAD_HALF, LOAD_WORD, RETURN, attach, instruction, kind};

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR and _IPV6_ROUTE (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// Where `ifi_flags` is in `ifinfomsg`, and IFF_UP there.
const FLAGS_AT: usize = 8;
const IFF_UP: u32 = 1;
const RTM_DELADDR: u16 = 21;
const RTM_DELROUTE: u16 = 25;
/// RT_TABLE_LOCAL and RTN_LOCAL.
const TABLE_LOCAL: u32 = 255;
const LOCAL: u8 = 2;
/// Where `rtm_dst_len` and `rtm_table` are in a message, behind `nlmsghdr`.
const LENGTH_AT: u32 = 17;
/// Where `ifa_index` and `ifi_index` are, likewise.
const INDEX_AT: u32 = 20;
const TABLE_AT: u32 = 20;
/// BPF_LD with BPF_ABS of one byte.
const LOAD_BYTE: u16 = 0x30;

/// What became of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressChange {
    /// The link with this index has it, or has it in another state than before.
    Came(u32, InterfaceAddress),
    /// The link with this index has it no longer with a prefix of this length; it may have it with one of another (IPv4).
    Gone(u32, IpAddr, u8),
    /// A default route came or went.
    DefaultRoute,
    /// No local route leads to this address any more: because it is gone, or because somebody took the route away.
    Unrouted(IpAddr),
    /// The link with this index has this name, and is up or not; it may have had the same before. With a link that goes down its default
    /// routes of IPv4 go without an announcement, when this has been sent.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: IfName,
        /// Administratively up.
        up: bool,
    },
    /// Notifications were lost.
    Lost,
}

/// A stream of changes in the network namespace of the thread that opened it.
pub struct AddressWatch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    except: IfName,
    /// The excepted link's index, once it was seen: from then on the kernel drops what is about it.
    excepted: Option<u32>,
    /// Indexes of links that are not the excepted one.
    others: BTreeSet<u32>,
}

impl AddressWatch {
    /// Starts watching the addresses of all links but `except`. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(except: IfName) -> Result<Self, KernelError> {
        let error = |call: &'static str| move |source| KernelError::io("open", "monitor of addresses", call, source);
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(error("socket"))?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0)).map_err(error("bind"))?;
        // Where the kernel refuses, other routes are left out when they are read.
        let _ = attach(inner.as_raw_fd(), &mut filter(None));
        for group in GROUPS {
            inner.add_membership(group).map_err(error("NETLINK_ADD_MEMBERSHIP"))?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(32 * 1024), except, excepted: None, others: BTreeSet::new() })
    }

    /// The next changes, at least one. Dropping the future loses none.
    ///
    /// # Errors
    /// When the socket fails; the watch is of no use then.
    pub async fn next(&mut self) -> Result<Vec<AddressChange>, KernelError> {
        loop {
            self.buffer.clear();
            let changes = match self.socket.recv(&mut self.buffer).await {
                Ok(()) => changes(&self.buffer),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => vec![AddressChange::Lost],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Vec::new(),
                Err(source) => return Err(KernelError::io("read", "monitor of addresses", "recv", source)),
            };
            let of_interest: Vec<_> = changes.into_iter().filter(|change| self.is_of_interest(change)).collect();
            if !of_interest.is_empty() {
                return Ok(of_interest);
            }
        }
    }

    fn is_of_interest(&mut self, change: &AddressChange) -> bool {
        let index = match change {
            AddressChange::Came(index, _) | AddressChange::Gone(index, ..) => *index,
            AddressChange::Link { index, .. } => return self.excepted != Some(*index),
            AddressChange::DefaultRoute | AddressChange::Unrouted(_) | AddressChange::Lost => return true,
        };
        if self.excepted == Some(index) {
            return false;
        }
        if self.others.contains(&index) {
            return true;
        }
        // A link that is gone has no name, for which nix returns an empty one; its addresses are gone with it.
        let name = if_indextoname(index).unwrap_or_default();
        match name.to_str() {
            Ok("") | Err(_) => matches!(change, AddressChange::Gone(..)),
            Ok(name) if name == self.except.as_str() => {
                self.except(index);
                false
            }
            Ok(_) => self.others.insert(index),
        }
    }

    /// Has the kernel drop what is about the link of this index, which may get ten thousand addresses at once.
    fn except(&mut self, index: u32) {
        // Where the kernel refuses, it is left out when it is read.
        let _ = attach(self.socket.socket_mut().as_raw_fd(), &mut filter(Some(index)));
        self.excepted = Some(index);
    }
}

/// What the notifications of one datagram say; a datagram that cannot be read counts as lost.
fn changes(datagram: &[u8]) -> Vec<AddressChange> {
    let Ok(frames) = split(datagram) else { return vec![AddressChange::Lost] };
    let change = |frame: &Frame| {
        match frame.kind {
            RTM_NEWROUTE | RTM_DELROUTE => return route(frame),
            RTM_NEWLINK => return link(frame),
            _ => {}
        }
        let (index, address) = interface_address(frame)?;
        match frame.kind {
            RTM_NEWADDR => Some(AddressChange::Came(index, address)),
            RTM_DELADDR => Some(AddressChange::Gone(index, address.addr, address.len)),
            _ => None,
        }
    };
    let is_link_local = |change: &AddressChange| match change {
        AddressChange::Came(_, InterfaceAddress { addr: IpAddr::V6(addr), .. })
        | AddressChange::Gone(_, IpAddr::V6(addr), _) => addr.is_unicast_link_local(),
        _ => false,
    };
    frames.iter().filter_map(change).filter(|change| !is_link_local(change)).collect()
}

/// What a link is said to be; what cannot be read counts as lost.
fn link(frame: &Frame) -> Option<AddressChange> {
    let read = || {
        let (header, attributes) = frame.body.split_at_checked(IFINFOMSG)?;
        let name = IfName::new(attribute::text(attribute::find(attributes, IFLA_IFNAME)?)).ok()?;
        let word = |at: usize| header.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
        Some(AddressChange::Link { index: word(4)?, name, up: word(FLAGS_AT)? & IFF_UP != 0 })
    };
    Some(read().unwrap_or(AddressChange::Lost))
}

/// What a change of a route means here, if anything.
fn route(frame: &Frame) -> Option<AddressChange> {
    let (key, _) = key_in(&frame.body)?;
    let (dst, kind) = (key.dst, *frame.body.get(7)?);
    if dst.len() == 0 && key.table == TABLE_MAIN {
        return Some(AddressChange::DefaultRoute);
    }
    let is_of_address = dst.len() == IpFamily::of(dst.addr()).width() && kind == LOCAL && key.table == TABLE_LOCAL;
    (frame.kind == RTM_DELROUTE && is_of_address).then_some(AddressChange::Unrouted(dst.addr()))
}

/// A filter that lets of routes only pass default ones, and those of the table `local` that are removed; and no addresses of the link with
/// the index `except`, which none has that is 0.
fn filter(except: Option<u32>) -> [libc::sock_filter; 17] {
    [
        instruction(LOAD_HALF, 0, KIND_AT),
        instruction(JUMP_EQUAL, 5, kind(RTM_NEWROUTE)),
        instruction(JUMP_EQUAL, 8, kind(RTM_DELROUTE)),
        instruction(LOAD_WORD, 0, INDEX_AT),
        instruction(JUMP_EQUAL, 1, u32::from_be_bytes(except.unwrap_or(0).to_ne_bytes())),
        instruction(RETURN, 0, u32::MAX),
        instruction(RETURN, 0, 0),
        instruction(LOAD_BYTE, 0, LENGTH_AT),
        instruction(JUMP_EQUAL, 1, 0),
        instruction(RETURN, 0, 0),
        instruction(RETURN, 0, u32::MAX),
        instruction(LOAD_BYTE, 0, LENGTH_AT),
        instruction(JUMP_EQUAL, 3, 0),
        instruction(LOAD_BYTE, 0, TABLE_AT),
        instruction(JUMP_EQUAL, 1, TABLE_LOCAL),
        instruction(RETURN, 0, 0),
        instruction(RETURN, 0, u32::MAX),
    ]
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::attribute::Writer;
    use crate::socket::{Message, write_message};

    fn notification(kind: u16, family: u8, len: u8, flags: u8, addr: &[u8]) -> Vec<u8> {
        let mut body = Writer::behind(vec![family, len, flags, 0, 7, 0, 0, 0]);
        body.put(1, addr).put(2, addr);
        let mut bytes = Vec::new();
        write_message(&mut bytes, &Message { kind, flags: 0, body: body.finish() }, 0, 0);
        bytes
    }

    #[test]
    fn notifications_say_which_address_came_or_went() {
        let mut datagram = notification(RTM_NEWADDR, 2, 24, 0x80, &[10, 4, 7, 21]);
        datagram.extend(notification(RTM_DELADDR, 2, 32, 0x80, &[10, 4, 7, 99]));
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        datagram.extend(notification(RTM_NEWADDR, 10, 64, 0x80, &link_local));
        assert_eq!(
            changes(&datagram),
            [
                AddressChange::Came(7, InterfaceAddress::lasting([10, 4, 7, 21].into(), 24)),
                AddressChange::Gone(7, [10, 4, 7, 99].into(), 32),
            ]
        );
        assert_eq!(changes(&datagram[..20]), [AddressChange::Lost], "a torn one");
    }
}
