//! UDP sockets that test a path: packets that no router cuts, with and without checksum.
//!
//! Invariant: what a test needs of a socket is set before its first packet; a socket that lacks it is never returned.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};

/// `IP_PMTUDISC_PROBE` (include/uapi/linux/in.h): never cut, and no path's MTU is remembered.
const NEVER_CUT: libc::c_int = 3;

/// A socket at `address`, whether that is on the host yet or not.
///
/// # Errors
/// When the system refuses it, or something else is at that address.
pub fn listener(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

/// A socket for packets to `target`, which are never cut; without `checksum` they have none (IPv4 only).
///
/// # Errors
/// When the system refuses it, or there is no route.
pub fn prober(target: SocketAddr, checksum: bool) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    match target {
        SocketAddr::V4(_) => set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, NEVER_CUT)?,
        SocketAddr::V6(_) => set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, NEVER_CUT)?,
    }
    if !checksum {
        set(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    }
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    Ok(socket)
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
        let listener = listener("127.0.0.1:0".parse().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for checksum in [true, false] {
            let prober = prober(listener.local_addr().unwrap(), checksum).unwrap();
            prober.send(&[7; 1000]).unwrap();
            let mut buffer = [0; 2000];
            let (length, from) = listener.recv_from(&mut buffer).unwrap();
            assert_eq!((length, from), (1000, prober.local_addr().unwrap()));
        }
    }

    #[test]
    fn an_address_that_is_not_here_yet_can_be_listened_at() {
        let listener = listener("192.0.2.7:0".parse().unwrap()).unwrap();
        assert!(listener.local_addr().unwrap().to_string().starts_with("192.0.2.7:"));
    }
}
