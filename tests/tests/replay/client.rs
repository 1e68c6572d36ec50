//! Clients: many connections at once from one place, each with its end.
//!
//! Invariant: a pending socket error is read as soon as poll(2) reports it, so that a refusal counts with the first packet, and
//! what refused (a rule, the host, the own output hook) comes from the socket's error queue (ip(7), IP_RECVERR).

use std::io::{self, IoSliceMut, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use oracle::{Outcome, Refusal};

/// How something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
    Ping,
}

/// Who is asked how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) transport: Transport,
    pub(crate) to: SocketAddr,
    pub(crate) count: usize,
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// An endpoint answered with this line.
    Answered(String),
    /// Nobody did.
    Not(Outcome, Option<Refusal>),
    /// Something that kube-proxy's clients never saw.
    Odd(String),
}

const SILENT: End = End::Not(Outcome::Timeout, None);

/// A connection's own address, where it has one, and what became of it.
pub(crate) type Ended = (Option<SocketAddr>, End);

enum Socket {
    Stream(TcpStream),
    Datagram(UdpSocket),
}

struct Attempt {
    target: usize,
    socket: Socket,
    /// Its end where nothing more is seen of it in time.
    otherwise: End,
}

/// Asks all targets at once and waits for each at most `limit`. The ends stand in the order of the targets.
pub(crate) fn ask_all(targets: &[Target], limit: Duration) -> Vec<Vec<Ended>> {
    let mut ends: Vec<Vec<Ended>> = targets.iter().map(|_| Vec::new()).collect();
    let mut waiting = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        for _ in 0..target.count {
            match open(*target) {
                Ok((socket, otherwise)) => waiting.push(Attempt { target: number, socket, otherwise }),
                Err(error) => ends[number].push((None, failed(&error, None))),
            }
        }
    }
    let deadline = Instant::now() + limit;
    while !waiting.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds: Vec<_> =
            waiting.iter().map(|attempt| PollFd::new(attempt.socket.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let seen = poll(&mut fds, timeout).unwrap_or(0);
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        if seen == 0 && left.is_zero() {
            break;
        }
        let mut number = 0;
        waiting.retain_mut(|attempt| {
            number += 1;
            let end = ready[number - 1].then(|| attempt.socket.end()).flatten();
            let over = end.is_some();
            ends[attempt.target].extend(end.map(|end| (attempt.socket.local(), end)));
            !over
        });
    }
    for attempt in waiting {
        ends[attempt.target].push((attempt.socket.local(), attempt.otherwise));
    }
    ends
}

/// Connects from a port that is bound first, so that the kernel gives it to no later connection. IPVS knows whose answer a packet is by client and
/// endpoint alone (`ip_vs_conn_out_get`): a connection from the same port to another address of the Service takes the answers of this
/// one, and two minutes beyond its own end.
pub(crate) fn open_alone(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let (family, any) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, 0)))?;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(limit.as_secs().cast_signed()))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(fd.into())
}

/// Opens a connection and sends. With it comes its end where nothing more is seen of it.
fn open(target: Target) -> io::Result<(Socket, End)> {
    let family = if target.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (kind, protocol) = match target.transport {
        Transport::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Transport::Udp => (SockType::Datagram, SockProtocol::Udp),
        Transport::Ping if target.to.is_ipv4() => (SockType::Datagram, SockProtocol::Icmp),
        Transport::Ping => (SockType::Datagram, SockProtocol::IcmpV6),
    };
    let fd = socket(family, kind, flags, protocol)?;
    if target.to.is_ipv4() {
        setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(target.to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    if target.transport == Transport::Tcp {
        return Ok((Socket::Stream(fd.into()), SILENT));
    }
    let socket = UdpSocket::from(fd);
    let request: &[u8] = match target.transport {
        // Echo requests; the kernel fills in checksum and identifier (icmp(7)).
        Transport::Ping if target.to.is_ipv4() => &[8, 0, 0, 0, 0, 0, 0, 1],
        Transport::Ping => &[128, 0, 0, 0, 0, 0, 0, 1],
        _ => b"who are you?\n",
    };
    // A packet that the own output hook rejects is dropped there as well. The message about it comes by way of the loopback device,
    // which a busy kernel leaves to a thread of its own: until then a rejection and a drop are the same to the sender.
    let otherwise = socket.send(request).map_or_else(|error| failed(&error, None), |_| SILENT);
    Ok((Socket::Datagram(socket), otherwise))
}

impl Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(socket) => socket.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
        }
    }

    fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Stream(socket) => socket.local_addr().ok(),
            Self::Datagram(socket) => socket.local_addr().ok(),
        }
    }

    /// What has become of it, if anything has.
    fn end(&mut self) -> Option<End> {
        let pending = match self {
            Self::Stream(socket) => socket.take_error(),
            Self::Datagram(socket) => socket.take_error(),
        };
        if let Ok(Some(error)) | Err(error) = pending {
            return Some(failed(&error, self.reported()));
        }
        let mut bytes = [0; 512];
        let read = match self {
            Self::Stream(socket) => socket.read(&mut bytes),
            Self::Datagram(socket) => socket.recv(&mut bytes),
        };
        match read {
            Ok(0) => Some(End::Odd("closed without an answer".to_owned())),
            Ok(length) => {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                let is_ping = matches!(bytes[0], 0 | 129);
                Some(End::Answered(if is_ping { "echo-reply".to_owned() } else { text }))
            }
            // A message whose error the call that sent has returned already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.reported().map(|reported| failed(&Errno::ECONNREFUSED.into(), Some(reported)))
            }
            Err(error) => Some(failed(&error, self.reported())),
        }
    }

    /// Type and code of the ICMP message in the error queue.
    fn reported(&self) -> Option<(u8, u8)> {
        let mut bytes = [0; 512];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!([u8; 256]);
        let fd = self.as_fd().as_raw_fd();
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), flags).ok()?;
        message.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                Some((error.ee_type, error.ee_code))
            }
            _ => None,
        })
    }
}

/// The end of a connection whose socket has this error, with type and code of the message that caused it.
fn failed(error: &io::Error, reported: Option<(u8, u8)>) -> End {
    let errno = error.raw_os_error().map(Errno::from_raw);
    match (errno, reported) {
        // Port unreachable, of IPv4 and of IPv6.
        (Some(Errno::ECONNREFUSED), Some((3, 3) | (1, 4))) => End::Not(Outcome::Refused, Some(Refusal::Rule)),
        (Some(Errno::ECONNREFUSED), None) => End::Not(Outcome::Refused, Some(Refusal::Host)),
        (Some(Errno::EPERM), None) => End::Not(Outcome::Error, Some(Refusal::Output)),
        _ => End::Odd(format!("{error}, ICMP type and code {reported:?}")),
    }
}
