//! `Socket`: one blocking netlink conversation.
//!
//! Invariants. Many messages go into one `sendmsg`, and only the last of a datagram asks for an ACK: errors come back
//! one by one whatever the flags, and a flood of ACKs would overrun the receive buffer and lose some of them. A
//! listing that the kernel marks as interrupted (NLM_F_DUMP_INTR) is done again. An overrun, a truncated datagram and
//! a silence are errors with names; no call waits for ever.
//!
//! A socket belongs to the network namespace of the thread that opened it.

mod listing;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
};
use netlink_sys::SocketAddr;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::error::{Nack, SocketError};

pub(crate) use listing::Begun;

/// Bytes of `nlmsghdr` (include/uapi/linux/netlink.h).
const HEADER: usize = 16;

/// Bytes per datagram: far below the default send buffer of 212,992, and where more stops paying.
const DATAGRAM: usize = 60 * 1024;

/// Receive buffer: the kernel fills at most 32 KiB of a listing into one datagram (netlink_dump).
const RECEIVE: usize = 64 * 1024;

/// How long to wait for the next answer. The kernel answers while it handles the request; only lock contention delays.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One message to the kernel, without its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Message type, as in `nlmsg_type`.
    pub(crate) kind: u16,
    /// Flags besides NLM_F_REQUEST and NLM_F_ACK.
    pub(crate) flags: u16,
    /// Everything behind the header.
    pub(crate) body: Vec<u8>,
}

/// One message from the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Everything behind the header.
    pub(crate) body: Vec<u8>,
}

/// A request that was refused, or a conversation that broke off.
#[derive(Debug)]
pub(crate) enum Fault {
    Nack(Nack),
    Socket(SocketError),
}

impl From<SocketError> for Fault {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

impl From<Fault> for crate::error::Cause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Nack(nack) => Self::Nack(nack),
            Fault::Socket(error) => Self::Socket(error),
        }
    }
}

/// One blocking netlink conversation.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// The kernel is to be asked for filters before the next listing.
    wants_filters: bool,
}

/// Results of a batch, one per message.
pub(crate) type Results = Vec<Result<(), Nack>>;

impl Socket {
    /// Opens a socket of `protocol` (NETLINK_ROUTE, NETLINK_GENERIC, NETLINK_NETFILTER) in the calling thread's
    /// network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket or an option that the invariants need.
    pub fn open(protocol: isize) -> Result<Self, SocketError> {
        let io = |call| move |error| SocketError::Io { call, error };
        let socket = netlink_sys::Socket::new(protocol).map_err(io("socket"))?;
        // Gives it a port, too (netlink_connect).
        socket.connect(&SocketAddr::new(0, 0)).map_err(io("connect"))?;
        socket.set_cap_ack(true).map_err(io("NETLINK_CAP_ACK"))?;
        socket.set_ext_ack(true).map_err(io("NETLINK_EXT_ACK"))?;
        let this = Self { socket, sequence: 0, buffer: vec![0; RECEIVE], wants_filters: false };
        this.set_timeout(TIMEOUT)?;
        Ok(this)
    }

    /// Has the kernel check and honour filters in listings (NETLINK_GET_STRICT_CHK, Linux 4.20), from the first one on. Older
    /// kernels list everything, so callers filter as well.
    pub(crate) const fn set_strict_check(&mut self) {
        self.wants_filters = true;
    }

    /// The socket's netlink port id: what the kernel writes into notifications that this socket caused.
    ///
    /// # Errors
    /// When `getsockname` fails.
    pub fn port(&self) -> Result<u32, SocketError> {
        let mut addr = SocketAddr::new(0, 0);
        self.socket.get_address(&mut addr).map_err(|error| SocketError::Io { call: "getsockname", error })?;
        Ok(addr.port_number())
    }

    fn set_timeout(&self, timeout: Duration) -> Result<(), SocketError> {
        let value = TimeVal::new(i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), 0);
        // Sending never waits for room: the kernel takes the request within the call.
        let error = |errno: nix::Error| SocketError::Io { call: "SO_RCVTIMEO", error: errno.into() };
        setsockopt(&self.socket.as_fd(), sockopt::ReceiveTimeout, &value).map_err(error)
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends all of `messages`, as many to a datagram as fit, and returns what became of each. Messages are handled
    /// one by one: a refused one does not stop those behind it.
    ///
    /// # Errors
    /// When the conversation breaks off; what happened to the messages is then unknown.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> Result<Results, SocketError> {
        let mut results: Results = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at(datagram_len(rest));
            self.datagram(chunk, &mut results)?;
            rest = behind;
        }
        Ok(results)
    }

    fn datagram(&mut self, messages: &[Message], results: &mut Results) -> Result<(), SocketError> {
        let mut bytes = Vec::new();
        let (mut first, mut last) = (None, 0);
        for (index, message) in messages.iter().enumerate() {
            last = self.next_sequence();
            first.get_or_insert(last);
            let ack = if index + 1 == messages.len() { NLM_F_ACK } else { 0 };
            write_message(&mut bytes, message, message.flags | NLM_F_REQUEST | ack, last);
        }
        let first = first.unwrap_or(last);
        let base = results.len();
        results.extend(messages.iter().map(|_| Ok(())));
        self.send(&bytes)?;
        loop {
            for frame in self.receive()? {
                if frame.kind != NLMSG_ERROR {
                    continue;
                }
                let offset = usize::try_from(frame.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let Some(result) = results.get_mut(base.saturating_add(offset)) {
                    *result = acknowledgement(&frame)?.map_or(Ok(()), Err);
                }
                if frame.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one message and returns the frames that came before its ACK (the object asked for, or the echo of the
    /// one made).
    pub(crate) fn request(&mut self, message: &Message) -> Result<Vec<Frame>, Fault> {
        self.answers(message, NLM_F_ACK)
    }

    /// Asks for one object. It or a refusal is all that comes: an ACK would be a datagram more.
    pub(crate) fn ask(&mut self, message: &Message) -> Result<Vec<Frame>, Fault> {
        self.answers(message, 0)
    }

    fn answers(&mut self, message: &Message, ack: u16) -> Result<Vec<Frame>, Fault> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        write_message(&mut bytes, message, message.flags | NLM_F_REQUEST | ack, sequence);
        self.send(&bytes)?;
        let mut frames = Vec::new();
        loop {
            for frame in self.receive()? {
                if frame.sequence != sequence {
                    continue;
                }
                if frame.kind != NLMSG_ERROR {
                    frames.push(frame);
                    continue;
                }
                return match acknowledgement(&frame)? {
                    None => Ok(frames),
                    Some(nack) => Err(Fault::Nack(nack)),
                };
            }
            if ack == 0 && !frames.is_empty() {
                return Ok(frames);
            }
        }
    }

    /// Sends `bytes`, which hold whole messages, as one datagram.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        match self.socket.send(bytes, 0) {
            Ok(_) => Ok(()),
            Err(source) if would_block(&source) => Err(SocketError::Timeout(TIMEOUT)),
            Err(error) => Err(SocketError::Io { call: "send", error }),
        }
    }

    /// The next datagram's messages.
    pub(crate) fn receive(&mut self) -> Result<Vec<Frame>, SocketError> {
        let size = loop {
            let mut window = self.buffer.as_mut_slice();
            match self.socket.recv(&mut window, libc::MSG_TRUNC) {
                Ok(size) => break size,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) if would_block(&source) => return Err(SocketError::Timeout(TIMEOUT)),
                Err(source) if source.raw_os_error() == Some(libc::ENOBUFS) => return Err(SocketError::Overrun),
                Err(error) => return Err(SocketError::Io { call: "recv", error }),
            }
        };
        let datagram = self.buffer.get(..size).ok_or(SocketError::Truncated(size))?;
        split(datagram)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN))
}

/// How many of `messages`, at least one, go into the next datagram.
fn datagram_len(messages: &[Message]) -> usize {
    let mut bytes = 0;
    let fits = |message: &&Message| {
        bytes += HEADER + message.body.len().next_multiple_of(4);
        bytes <= DATAGRAM
    };
    messages.iter().take_while(fits).count().clamp(1, messages.len().max(1))
}

/// Appends `message` with its header; messages start at multiples of four bytes (NLMSG_ALIGNTO).
pub(crate) fn write_message(bytes: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER + message.body.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&message.kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&message.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

pub(crate) fn split(mut datagram: &[u8]) -> Result<Vec<Frame>, SocketError> {
    let malformed = || SocketError::Malformed("message length does not fit the datagram".to_owned());
    let mut frames = Vec::new();
    while datagram.len() >= HEADER {
        let (header, _) = datagram.split_first_chunk::<HEADER>().ok_or_else(malformed)?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).map_err(|_| malformed())?;
        let body = datagram.get(HEADER..length).ok_or_else(malformed)?.to_vec();
        let kind = u16::from_ne_bytes([k0, k1]);
        match kind {
            NLMSG_OVERRUN => return Err(SocketError::Overrun),
            NLMSG_NOOP => {}
            _ => frames.push(Frame {
                kind,
                flags: u16::from_ne_bytes([f0, f1]),
                sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
                body,
            }),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(frames)
}

fn first_i32(body: &[u8]) -> Option<i32> {
    body.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// What an NLMSG_ERROR says: `None` is an ACK.
pub(crate) fn acknowledgement(frame: &Frame) -> Result<Option<Nack>, SocketError> {
    let code = first_i32(&frame.body).ok_or_else(|| SocketError::Malformed("NLMSG_ERROR without a code".to_owned()))?;
    if code == 0 {
        return Ok(None);
    }
    let errno = code.checked_neg().unwrap_or(libc::EIO);
    Ok(Some(Nack { errno, text: extended_text(frame) }))
}

/// NLMSGERR_ATTR_MSG, behind the refused message's header (or behind the whole message when it was not capped).
fn extended_text(frame: &Frame) -> Option<String> {
    if frame.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let refused = frame.body.get(4..)?;
    let behind = if frame.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        let length = u32::from_ne_bytes(*refused.first_chunk::<4>()?);
        usize::try_from(length).ok()?.next_multiple_of(4)
    };
    let text = crate::attribute::find(refused.get(behind..)?, 1)?;
    let text = text.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
