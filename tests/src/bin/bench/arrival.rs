//! When a machine received what etcd says about a key, by the kernel's own time stamp of the packet (packet(7), socket(7)).
//!
//! Invariant: the time is that of the packet's arrival, whatever runs in between and whenever it is read.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use lab::Host;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeSpec;

/// The largest packet, with offloads.
const LARGEST: usize = 1 << 16;

/// Packets that wait to be read.
#[derive(Debug)]
pub(crate) struct Arrivals {
    socket: OwnedFd,
}

impl Arrivals {
    /// Begins to collect in `host`. The kernel begins a moment later to stamp packets; one that comes before has the time when it is read.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub(crate) fn start(host: &Host) -> Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll);
        let socket = host.within(open)?.context("a socket for packets")?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(Self { socket })
    }

    /// Takes out what waits.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(crate) fn discard(&self) -> Result<()> {
        self.first_with("").map(drop)
    }

    /// When the first packet came in whose content has `text`; `None` if there was none. All packets are taken out.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(crate) fn first_with(&self, text: &str) -> Result<Option<SystemTime>> {
        self.first(|packet| holds(packet, text.as_bytes()))
    }

    /// When the first packet of at least so many bytes came in; `None` if there was none. All packets are taken out.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(crate) fn first_of(&self, least: usize) -> Result<Option<SystemTime>> {
        self.first(|packet| packet.len() >= least)
    }

    fn first(&self, is_it: impl Fn(&[u8]) -> bool) -> Result<Option<SystemTime>> {
        let (mut buffer, mut control, mut first) = (vec![0; LARGEST], cmsg_space!(TimeSpec), None);
        loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message =
                match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) {
                    Ok(message) => message,
                    Err(Errno::EAGAIN) => return Ok(first),
                    Err(error) => return Err(error).context("read the packets"),
                };
            let stamps = message.cmsgs()?.filter_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(stamp) => Some(UNIX_EPOCH + Duration::from(stamp)),
                _ => None,
            });
            let (stamp, size) = (stamps.last(), message.bytes);
            let found = first.is_none() && is_it(buffer.get(..size).unwrap_or_default());
            first = if found { stamp } else { first };
        }
    }
}

/// True when `text` is in the packet; nothing is in none.
fn holds(packet: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && packet.windows(text.len()).any(|part| part == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_anywhere_in_a_packet() {
        assert!(holds(b"..100.64.1.0-24", b"100.64.1.0-24") && holds(b"100.64.1.0-24..", b"100.64.1.0-24"));
        assert!(!holds(b"100.64.1.0-2", b"100.64.1.0-24") && !holds(b"", b"100.64.1.0-24") && !holds(b"..", b""));
    }
}
