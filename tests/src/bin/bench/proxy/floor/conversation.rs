//! Listing what the kernel has, in messages as large as the kernel makes them.

use anyhow::{Context, Result, bail};
use lab::Host;
use netlink_sys::{Socket, SocketAddr};

use crate::proxy::bytes::{HEADER, half, messages};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// More than the 32 KiB of the largest message.
const ROOM: usize = 64 * 1024;

/// A conversation in the network of one machine.
#[derive(Debug)]
pub(super) struct Conversation(Socket);

impl Conversation {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub(super) fn open(host: &Host, protocol: isize) -> Result<Self> {
        let mut socket = host.within(|| Socket::new(protocol))??;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    pub(super) const fn socket(&self) -> &Socket {
        &self.0
    }

    /// The messages of a listing without their heads.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn list(&self, question: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.0.send(question, 0).context("send")?;
        let mut found = Vec::new();
        loop {
            let mut datagram = Vec::with_capacity(ROOM);
            self.0.recv(&mut datagram, 0).context("receive")?;
            for message in messages(&datagram) {
                match half(message, 4) {
                    Some(NLMSG_DONE) => return Ok(found),
                    Some(NLMSG_ERROR) => bail!("the kernel refused a listing: {:?}", message.get(HEADER..HEADER + 4)),
                    _ => found.extend(message.get(HEADER..).map(<[u8]>::to_vec)),
                }
            }
        }
    }
}
