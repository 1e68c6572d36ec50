//! Listings: one request, an answer of many datagrams.
//!
//! Invariant: a listing that the kernel marks as interrupted (NLM_F_DUMP_INTR) is not taken for a whole one. Nothing else may be
//! asked on a socket before the listing that it has begun is over.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};

use super::{Fault, Frame, Message, Socket, acknowledgement, first_i32, write_message};
use crate::error::{Nack, SocketError};

/// Listings of one table before giving up on a table that changes all the time.
const DUMP_TRIES: u32 = 30;

/// A listing that has been asked for.
#[derive(Debug)]
pub(crate) struct Begun {
    sequence: u32,
    /// The kernel has said that it is not of one moment.
    torn: bool,
}

impl Begun {
    /// The listing as a whole, now that it is over.
    ///
    /// # Errors
    /// When the table has changed meanwhile.
    pub(crate) const fn whole(&self) -> Result<(), SocketError> {
        if self.torn { Err(SocketError::Interrupted(1)) } else { Ok(()) }
    }
}

impl Socket {
    /// Lists a table, again when it changed meanwhile.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Frame>, Fault> {
        self.list(message, Some)
    }

    /// Lists a table, again when it changed meanwhile, and keeps of each message only what `read` makes of it.
    pub(crate) fn list<T>(
        &mut self,
        message: &Message,
        mut read: impl FnMut(Frame) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        for _ in 0..DUMP_TRIES {
            let mut begun = self.begin(message)?;
            let mut rows = Vec::new();
            while self.part(&mut begun, &mut rows, &mut read)? {}
            if begun.whole().is_ok() {
                return Ok(rows);
            }
        }
        Err(SocketError::Interrupted(DUMP_TRIES).into())
    }

    /// Asks for a listing.
    pub(crate) fn begin(&mut self, message: &Message) -> Result<Begun, SocketError> {
        if std::mem::take(&mut self.wants_filters) {
            let _ = self.socket.set_netlink_get_strict_chk(true);
        }
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        write_message(&mut bytes, message, message.flags | NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.send(&bytes)?;
        Ok(Begun { sequence, torn: false })
    }

    /// Adds to `rows` what `read` makes of the next datagram of a listing. Returns whether there is more.
    pub(crate) fn part<T>(
        &mut self,
        begun: &mut Begun,
        rows: &mut Vec<T>,
        read: &mut impl FnMut(Frame) -> Option<T>,
    ) -> Result<bool, Fault> {
        for frame in self.receive()? {
            if frame.sequence != begun.sequence {
                continue;
            }
            begun.torn |= frame.flags & NLM_F_DUMP_INTR != 0;
            match frame.kind {
                NLMSG_ERROR => {
                    if let Some(nack) = acknowledgement(&frame)? {
                        return Err(Fault::Nack(nack));
                    }
                }
                NLMSG_DONE => {
                    return match done_errno(&frame) {
                        0 => Ok(false),
                        errno => Err(Fault::Nack(Nack { errno, text: None })),
                    };
                }
                _ => rows.extend(read(frame)),
            }
        }
        Ok(true)
    }
}

pub(super) fn done_errno(frame: &Frame) -> i32 {
    first_i32(&frame.body).unwrap_or(0).checked_neg().unwrap_or(0)
}
