//! What changes in a machine's nft tables, by the kernel's own announcements.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use lab::Host;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::bytes::{half, messages};

/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// NFT_MSG_NEWSETELEM, NFT_MSG_NEWRULE, and NFT_MSG_NEWGEN, which ends a transaction.
const NEW_ELEMENT: u16 = 10 << 8 | 12;
const NEW_RULE: u16 = 10 << 8 | 6;
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// Bytes of announcements that may wait: kube-proxy writes all of its rules anew for each change.
const ROOM: usize = 256 << 20;

/// The announcements of one machine.
#[derive(Debug)]
pub(crate) struct Transactions(Socket);

impl Transactions {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub(crate) fn follow(host: &Host) -> Result<Self> {
        let mut socket = host.within(|| Socket::new(NETLINK_NETFILTER))??;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &ROOM)?;
        Ok(Self(socket))
    }

    /// How many transactions there were since the last call. One that the kernel could not announce counts: it was large.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(crate) fn count(&self) -> Result<usize> {
        let mut count = 0;
        while let Some(datagram) = self.next()? {
            count += messages(&datagram).filter(|message| half(message, 4) == Some(NEW_GENERATION)).count();
        }
        Ok(count)
    }

    /// Waits for the end of a transaction with a new element, or a new rule, that has `addr` in it.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub(crate) fn wait(&self, addr: Ipv4Addr, limit: Duration) -> Result<SystemTime> {
        let (deadline, mut is_there) = (Instant::now() + limit, false);
        loop {
            while let Some(datagram) = self.next()? {
                for message in messages(&datagram) {
                    let is_new = matches!(half(message, 4), Some(NEW_ELEMENT | NEW_RULE));
                    is_there |= is_new && message.windows(4).any(|part| part == addr.octets());
                    if is_there && half(message, 4) == Some(NEW_GENERATION) {
                        return Ok(SystemTime::now());
                    }
                }
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("no element or rule with {addr} came")
            };
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(left)?)?;
        }
    }

    /// The next datagram that waits. Of those that were lost for want of room a lone end of a transaction is left.
    fn next(&self) -> Result<Option<Vec<u8>>> {
        match self.0.recv_from_full() {
            Ok((datagram, _)) => Ok(Some(datagram)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                Ok(Some(super::bytes::message(NEW_GENERATION, 0, &[])))
            }
            Err(error) => Err(error).context("read the kernel's announcements"),
        }
    }
}
