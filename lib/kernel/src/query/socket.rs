//! rtnetlink's socket, with the error that ended it: rtnetlink logs that one, drops it, and the answers just end.
//!
//! Invariant: whatever the system refused is kept before anybody sees the answers end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::BufMut;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};

use crate::error::SocketError;

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

/// See the module's text.
pub(super) struct Noted {
    socket: TokioSocket,
    pub(super) ended: Ended,
}

impl AsyncSocket for Noted {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: TokioSocket::new(protocol)?, ended: Ended::default() })
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
        self.ended.note("recv", self.socket.poll_recv_from(context, bytes))
    }

    fn poll_recv_from_full(&self, context: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.ended.note("recv", self.socket.poll_recv_from_full(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
