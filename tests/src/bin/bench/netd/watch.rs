//! Counting what changes in a machine's kernel, by the kernel's own announcements (rtnetlink(7), nfnetlink).
//!
//! Invariant: every change of a link, an IPv4 address, an IPv4 route, a neighbour or forwarding entry of the watched device, or
//! an nftables object counts; ARP entries of other devices, which traffic makes, do not.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use lab::Host;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE (linux/rtnetlink.h).
const ROUTE_GROUPS: [u32; 4] = [1, 3, 5, 7];
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 7;
/// RTM_NEWROUTE.
const NEW_ROUTE: u16 = 24;
/// RTM_NEWNEIGH, RTM_DELNEIGH.
const NEIGHBOURS: [u16; 2] = [28, 29];
/// AF_INET, AF_BRIDGE: the family of neighbours and of forwarding entries.
const INET: u8 = 2;
const BRIDGE: u8 = 7;
const HEADER: usize = 16;

/// The announcement with which a change is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// A forwarding entry was set.
    ForwardingSet,
    /// An IPv4 route was set.
    RouteSet,
    /// A neighbour is gone.
    NeighbourGone,
}

impl Last {
    fn is(self, message: &[u8]) -> bool {
        let [new, gone] = NEIGHBOURS;
        let wanted = match self {
            Self::ForwardingSet => (new, BRIDGE),
            Self::RouteSet => (NEW_ROUTE, INET),
            Self::NeighbourGone => (gone, INET),
        };
        kind_of(message).zip(message.get(HEADER).copied()) == Some(wanted)
    }
}

fn kind_of(message: &[u8]) -> Option<u16> {
    message.get(4..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

/// A running watch.
#[derive(Debug)]
pub(crate) struct Watch {
    sockets: Vec<Socket>,
    device: i32,
}

impl Watch {
    /// Begins to listen in `host`.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or there is no such device.
    pub(crate) fn start(host: &Host, device: &str) -> Result<Self> {
        let index = host.read(format!("/sys/class/net/{device}/ifindex"))?;
        let open = |protocol: isize, groups: &[u32]| -> Result<Socket> {
            let mut socket = host.within(|| Socket::new(protocol))??;
            socket.bind(&SocketAddr::new(0, 0))?;
            groups.iter().try_for_each(|group| socket.add_membership(*group))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let sockets = vec![open(NETLINK_ROUTE, &ROUTE_GROUPS)?, open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?];
        Ok(Self { sockets, device: index.trim().parse().context("ifindex")? })
    }

    /// How many changes there were. A watch that the kernel overran counts as one more: there were many.
    ///
    /// # Errors
    /// When a socket cannot be read.
    pub(crate) fn changes(&self) -> Result<usize> {
        let mut changes = 0;
        self.read(|_| changes += 1)?;
        Ok(changes)
    }

    /// Waits for `last` and returns when it came, and how many changes there were until then; `None` after `limit`.
    ///
    /// # Errors
    /// When a socket cannot be read.
    pub(crate) fn wait(&self, last: Last, limit: Duration) -> Result<Option<(SystemTime, usize)>> {
        let (deadline, mut changes) = (Instant::now() + limit, 0);
        loop {
            let mut is_there = false;
            self.read(|message| {
                changes += 1;
                is_there |= last.is(message);
            })?;
            if is_there {
                return Ok(Some((SystemTime::now(), changes)));
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(None) };
            let mut waiting: Vec<PollFd> =
                self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut waiting, PollTimeout::try_from(left)?)?;
        }
    }

    fn read(&self, mut each: impl FnMut(&[u8])) -> Result<()> {
        for socket in &self.sockets {
            loop {
                match socket.recv_from_full() {
                    Ok((datagram, _)) => self.messages(&datagram, &mut each),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => each(&[]),
                    Err(error) => return Err(error).context("read the kernel's announcements"),
                }
            }
        }
        Ok(())
    }

    fn messages(&self, mut datagram: &[u8], each: &mut impl FnMut(&[u8])) {
        while let Some(length) = datagram.first_chunk::<4>().map(|field| u32::from_ne_bytes(*field)) {
            let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
            let Some(message) = datagram.get(..length) else { break };
            if self.is_change(message) {
                each(message);
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn is_change(&self, message: &[u8]) -> bool {
        let kind = kind_of(message);
        let device =
            message.get(HEADER + 4..).and_then(|rest| rest.first_chunk()).map(|field| i32::from_ne_bytes(*field));
        !kind.is_some_and(|kind| NEIGHBOURS.contains(&kind)) || device == Some(self.device)
    }
}
