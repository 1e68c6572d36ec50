//! A conversation with the kernel's rtnetlink (netlink(7)).
//!
//! Invariant: several messages go out in one send, only the last asks for an acknowledgement, and nothing of an answer stays
//! unread, so requests and answers never get out of step.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::message::{HEADER, Message, Reply, half, word};

/// An rtnetlink socket of the namespace it was opened in.
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: socket(2) touches no memory of ours.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(crate) fn link_by_name(&self, name: &str) -> io::Result<Reply> {
        let mut question = Message::link(libc::RTM_GETLINK, 0, libc::AF_UNSPEC, 0, 0);
        question.name(libc::IFLA_IFNAME, name);
        let answer = self.question(&question)?;
        answer.ok_or_else(|| io::Error::other(format!("no link {name}")))
    }

    /// Whether a link with this index exists.
    pub(crate) fn has_link(&self, index: i32) -> io::Result<bool> {
        match self.question(&Message::link(libc::RTM_GETLINK, 0, libc::AF_UNSPEC, index, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends changes in one datagram and waits until the last is acknowledged; the link that the kernel echoed, if any.
    pub(crate) fn request(&self, messages: &[Message]) -> io::Result<Option<Reply>> {
        let last = u32::try_from(messages.len()).unwrap_or_default();
        let bytes: Vec<u8> = (1..).zip(messages).flat_map(|(number, m)| m.bytes(number, number == last)).collect();
        self.send(&bytes)?;
        let mut echo = None;
        loop {
            let answer = self.receive()?;
            for message in split(&answer) {
                if half(message, 4) == Some(libc::RTM_NEWLINK) {
                    echo = Reply::read(message);
                } else if outcome(message)? == last {
                    return Ok(echo);
                }
            }
        }
    }

    /// Sends a question that is answered by one message.
    fn question(&self, question: &Message) -> io::Result<Option<Reply>> {
        self.send(&question.bytes(1, false))?;
        let answer = self.receive()?;
        if half(&answer, 4) != Some(libc::RTM_NEWLINK) {
            outcome(&answer)?;
        }
        Ok(Reply::read(&answer))
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length describe the live bytes of `bytes`.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0_u8; 8192];
        // SAFETY: the pointer and the length describe `buffer`.
        let length = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        buffer.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
        Ok(buffer)
    }
}

/// The sequence number of an acknowledgement; an error when the kernel refused.
fn outcome(message: &[u8]) -> io::Result<u32> {
    match word(message, HEADER) {
        Some(0) => Ok(word(message, 8).and_then(|number| u32::try_from(number).ok()).unwrap_or_default()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("an answer too short")),
    }
}

fn split(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(bytes, 0)?).ok()?.max(HEADER);
        let message = bytes.get(..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
