//! Sockets that test a path: packets that no router cuts, with and without checksum, and single probes of known ports.
//!
//! Invariant: what a test needs of a socket is set before its first packet; a socket that lacks it is never returned.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use netstate::{IfName, Protocol};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, getsockopt, recv, send,
    setsockopt, socket, sockopt,
};

/// `IP_PMTUDISC_PROBE` (include/uapi/linux/in.h): never cut, and no path's MTU is remembered.
const NEVER_CUT: libc::c_int = 3;

/// A socket at `address`, whether that is on the host yet or not, in `vrf` or outside of every VRF.
///
/// # Errors
/// When the system refuses it, or something else is at that address.
pub fn listener(address: SocketAddr, vrf: Option<&IfName>) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    stand_in(&fd, vrf)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

/// What a socket in a VRF sends takes its routing table, and it receives what comes in by its links (Documentation/networking/vrf.rst).
fn stand_in(fd: &impl AsFd, vrf: Option<&IfName>) -> io::Result<()> {
    let Some(vrf) = vrf else { return Ok(()) };
    Ok(setsockopt(fd, sockopt::BindToDevice, &OsString::from(vrf.as_str()))?)
}

/// A socket for questions to `target` and their answers, in `vrf` or outside of every VRF.
///
/// # Errors
/// When the system refuses it, or there is no route.
pub fn asker(target: SocketAddr, vrf: Option<&IfName>) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    stand_in(&socket, vrf)?;
    socket.connect(target)?;
    Ok(socket)
}

/// A socket for packets to `target`, which are never cut; without `checksum` they have none (IPv4 only).
///
/// # Errors
/// When the system refuses it, or there is no route.
pub fn prober(target: SocketAddr, checksum: bool, vrf: Option<&IfName>) -> io::Result<UdpSocket> {
    let socket = asker(target, vrf)?;
    match target {
        SocketAddr::V4(_) => set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, NEVER_CUT)?,
        SocketAddr::V6(_) => set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, NEVER_CUT)?,
    }
    if !checksum {
        set(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A probe whose source port is known before its first packet.
#[derive(Debug)]
pub struct Probe {
    fd: OwnedFd,
    protocol: Protocol,
    target: SocketAddr,
}

/// What came back for a [`Probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A datagram, or an open connection.
    Answered,
    /// "Nobody is at that port", by ICMP or a reset: by the target itself or by a rule that rejects.
    Refused,
    /// Another error, by its number: this host's own, or a router's ICMP.
    Failed(i32),
    /// Nothing.
    Silent,
}

impl Probe {
    /// A probe from `source`, or from what the kernel chooses when it is unspecified, to `target`, by UDP or TCP. In the
    /// network namespace of the calling thread, wherever it is used.
    ///
    /// # Errors
    /// When the system refuses the socket or has no such address.
    pub fn new(source: std::net::IpAddr, target: SocketAddr, protocol: Protocol) -> io::Result<Self> {
        let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let kind = if protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
        let probe = Self { fd, protocol, target };
        if protocol != Protocol::Tcp {
            // The source address is chosen here, and nothing is sent.
            connect(probe.fd.as_raw_fd(), &SockaddrStorage::from(target))?;
        }
        Ok(probe)
    }

    /// Where its packets come from.
    ///
    /// # Errors
    /// When the socket cannot be examined.
    pub fn source(&self) -> io::Result<SocketAddr> {
        let name: SockaddrStorage = getsockname(self.fd.as_raw_fd())?;
        let v4 = name.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
        let v6 = name.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port())));
        v4.or(v6).ok_or_else(|| io::Error::other("the socket has no address"))
    }

    /// Sends `datagram`, or asks for a connection, and waits for what comes back, at most `limit`.
    pub fn exchange(&self, datagram: &[u8], limit: Duration) -> Reply {
        let sent = match self.protocol {
            Protocol::Tcp => match connect(self.fd.as_raw_fd(), &SockaddrStorage::from(self.target)) {
                // Asked again while the first question waits for its answer.
                Err(nix::Error::EINPROGRESS | nix::Error::EALREADY) => Ok(()),
                other => other,
            },
            _ => send(self.fd.as_raw_fd(), datagram, MsgFlags::empty()).map(drop),
        };
        if let Err(errno) = sent {
            return reply_of(errno);
        }
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Reply::Silent;
            }
            let events = if self.protocol == Protocol::Tcp { PollFlags::POLLOUT } else { PollFlags::POLLIN };
            let mut fds = [PollFd::new(self.fd.as_fd(), events)];
            let wait = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
            match poll(&mut fds, PollTimeout::from(wait)) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return self.received(),
                Err(errno) => return Reply::Failed(errno as i32),
            }
        }
    }

    fn received(&self) -> Reply {
        if self.protocol == Protocol::Tcp {
            return match getsockopt(&self.fd, sockopt::SocketError) {
                Ok(0) => Reply::Answered,
                Ok(number) => reply_of(nix::Error::from_raw(number)),
                Err(errno) => reply_of(errno),
            };
        }
        match recv(self.fd.as_raw_fd(), &mut [0; 64], MsgFlags::empty()) {
            Ok(_) => Reply::Answered,
            Err(errno) => reply_of(errno),
        }
    }
}

const fn reply_of(errno: nix::Error) -> Reply {
    match errno {
        nix::Error::ECONNREFUSED => Reply::Refused,
        other => Reply::Failed(other as i32),
    }
}

fn set(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    #[allow(unsafe_code, reason = "no library sets these options")]
    // SAFETY: the pointer is to an integer that outlives the call, and the size is its own.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_arrive_whole_with_and_without_checksum() {
        let listener = listener("127.0.0.1:0".parse().unwrap(), None).unwrap();
        listener.set_nonblocking(false).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for checksum in [true, false] {
            let prober = prober(listener.local_addr().unwrap(), checksum, None).unwrap();
            prober.send(&[7; 1000]).unwrap();
            let mut buffer = [0; 2000];
            let (length, from) = listener.recv_from(&mut buffer).unwrap();
            assert_eq!((length, from), (1000, prober.local_addr().unwrap()));
        }
    }

    #[test]
    fn what_comes_back_for_a_probe_is_known() {
        let (soon, here) = (Duration::from_secs(5), std::net::IpAddr::from([127, 0, 0, 1]));
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let probe = Probe::new(here, open.local_addr().unwrap(), Protocol::Tcp).unwrap();
        let source = probe.source().unwrap();
        assert_eq!(probe.exchange(b"", soon), Reply::Answered);
        assert_eq!(open.accept().unwrap().1, source);
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = silent.local_addr().unwrap();
        let probe = Probe::new(here, target, Protocol::Udp).unwrap();
        assert_eq!(probe.exchange(b"x", Duration::from_millis(20)), Reply::Silent);
        silent.send_to(b"y", probe.source().unwrap()).unwrap();
        assert_eq!(probe.exchange(b"x", soon), Reply::Answered);
        drop(silent);
        assert_eq!(probe.exchange(b"x", soon), Reply::Refused);
        drop(open);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let probe = Probe::new(here, target, protocol).unwrap();
            assert_eq!(probe.exchange(b"x", soon), Reply::Refused, "{protocol:?}");
        }
        assert!(Probe::new([192, 0, 2, 1].into(), target, Protocol::Udp).is_err());
    }

    #[test]
    fn an_address_that_is_not_here_yet_can_be_listened_at() {
        let listener = listener("192.0.2.7:0".parse().unwrap(), None).unwrap();
        assert!(listener.local_addr().unwrap().to_string().starts_with("192.0.2.7:"));
    }
}
