//! rtnetlink's socket, with the error that ended it: rtnetlink logs that one, drops it, and the answers just end. It reads over the
//! mark of a listing that is not of one moment (NLM_F_DUMP_INTR) as well.
//!
//! Invariant: whatever the system refused or marked is kept before anybody sees the answers end.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::BufMut;
use netlink_packet_core::NLM_F_DUMP_INTR;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};

use crate::error::SocketError;

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// Bytes of a datagram: the kernel fills at most 32 KiB of a listing into one, and rtnetlink has room for as many as these.
const DATAGRAM: usize = 64 * 1024;

/// What ended a conversation, for whoever asks after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended(Arc<Mutex<Option<(&'static str, i32)>>>);

impl Ended {
    fn note<T>(&self, call: &'static str, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            // An overrun ends nothing: rtnetlink passes it on.
            let errno = error.raw_os_error().filter(|errno| *errno != libc::ENOBUFS || call != "recv");
            let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *ended = ended.or(errno.map(|errno| (call, errno)));
        }
        polled
    }

    /// Has it end as if the system had refused `call`.
    #[cfg(test)]
    pub(super) fn fail(&self, call: &'static str, errno: i32) {
        let _ = self.note(call, Poll::Ready(io::Result::<()>::Err(io::Error::from_raw_os_error(errno))));
    }

    /// The error, if there was one.
    pub(super) fn error(&self) -> Option<SocketError> {
        let ended = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.map(|(call, errno)| SocketError::Io { call, error: io::Error::from_raw_os_error(errno) })
    }
}

/// How many datagrams were of listings that the kernel marked as interrupted.
#[derive(Debug, Clone, Default)]
pub(super) struct Torn(Arc<AtomicU64>);

impl Torn {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn note(&self, datagram: &[u8]) {
        if is_torn(datagram) {
            self.0.fetch_add(1, Ordering::Release);
        }
    }
}

/// Whether one of the messages has the mark.
fn is_torn(mut datagram: &[u8]) -> bool {
    while let Some([l0, l1, l2, l3, _, _, f0, f1, ..]) = datagram.first_chunk::<HEADER>() {
        if u16::from_ne_bytes([*f0, *f1]) & NLM_F_DUMP_INTR != 0 {
            return true;
        }
        let length = usize::try_from(u32::from_ne_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
        datagram = datagram.get(length.max(HEADER).checked_next_multiple_of(4).unwrap_or(length)..).unwrap_or_default();
    }
    false
}

/// See the module's text.
pub(super) struct Noted {
    socket: TokioSocket,
    pub(super) ended: Ended,
    pub(super) torn: Torn,
}

impl AsyncSocket for Noted {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: TokioSocket::new(protocol)?, ended: Ended::default(), torn: Torn::default() })
    }

    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ended.note("send", self.socket.poll_send(context, bytes))
    }

    fn poll_send_to(&self, context: &mut Context<'_>, bytes: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        self.ended.note("send", self.socket.poll_send_to(context, bytes, to))
    }

    fn poll_recv<B: BufMut>(&self, context: &mut Context<'_>, bytes: &mut B) -> Poll<io::Result<()>> {
        self.ended.note("recv", self.socket.poll_recv(context, bytes))
    }

    fn poll_recv_from<B: BufMut>(&self, context: &mut Context<'_>, bytes: &mut B) -> Poll<io::Result<SocketAddr>> {
        // What is received into `bytes` cannot be read there.
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let polled = self.ended.note("recv", self.socket.poll_recv_from(context, &mut datagram));
        self.torn.note(&datagram);
        bytes.put_slice(&datagram);
        polled
    }

    fn poll_recv_from_full(&self, context: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.ended.note("recv", self.socket.poll_recv_from_full(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_a_listing_is_found_in_whichever_message_has_it() {
        let message = |length: u32, flags: u16, bytes: usize| {
            let head = [&length.to_ne_bytes()[..], &[20, 0], &flags.to_ne_bytes(), &[0; 8]].concat();
            [head, vec![0xff; bytes]].concat()
        };
        let plain = message(17, 2, 4);
        let torn = message(16, NLM_F_DUMP_INTR, 0);
        assert!(is_torn(&torn) && is_torn(&[plain.clone(), plain.clone(), torn.clone()].concat()));
        assert!(!is_torn(&[plain.clone(), plain].concat()) && !is_torn(&torn[..15]) && !is_torn(&[]));
        for length in [0, 3, u32::MAX] {
            assert!(!is_torn(&message(length, 2, 0)), "a message of {length} bytes ends");
        }
    }

    #[test]
    fn first_refusal_is_kept_and_an_overrun_is_none() {
        let ended = Ended::default();
        ended.fail("recv", libc::ENOBUFS);
        let _ = ended.note("send", Poll::<io::Result<()>>::Pending);
        let _ = ended.note("send", Poll::Ready(Ok(())));
        assert!(ended.error().is_none());
        ended.fail("send", libc::ENOBUFS);
        ended.fail("recv", libc::EIO);
        let said = ended.error().unwrap().to_string();
        assert_eq!(said, "netlink socket: send: No buffer space available (os error 105)");
    }
}
