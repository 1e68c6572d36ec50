//! Sockets of this host that wait for clients, from /proc/net (proc(5)).
//!
//! Invariant: a line that is none of a waiting socket is left out.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstate::Protocol;

/// A socket that waits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where; an unspecified address is every one.
    pub at: SocketAddr,
}

/// The files with the states of a waiting socket: TCP_LISTEN, and TCP_CLOSE for UDP, which has no other without a peer.
const FILES: [(&str, Protocol, &str); 4] = [
    ("/proc/net/tcp", Protocol::Tcp, "0A"),
    ("/proc/net/tcp6", Protocol::Tcp, "0A"),
    ("/proc/net/udp", Protocol::Udp, "07"),
    ("/proc/net/udp6", Protocol::Udp, "07"),
];

/// Which word of a line is the inode.
const INODE: usize = 9;

/// All of them.
#[must_use]
pub fn listeners() -> BTreeSet<Listener> {
    numbered().into_iter().map(|(listener, _)| listener).collect()
}

/// All of them with the number by which their process has them open (`socket:[number]` in /proc/PID/fd).
#[must_use]
pub fn numbered() -> BTreeSet<(Listener, u64)> {
    let of_file = |(file, protocol, state): (&str, Protocol, &str)| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let number =
            |line: &str| line.split_whitespace().nth(INODE).and_then(|word| word.parse().ok()).unwrap_or_default();
        let found: Vec<_> = text
            .lines()
            .filter_map(|line| Some((Listener { protocol, at: waiting(line, state)? }, number(line))))
            .collect();
        found
    };
    FILES.into_iter().flat_map(of_file).collect()
}

/// The address of a line's socket, if it is in `state`.
fn waiting(line: &str, state: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace();
    let (_, local, _, found) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (addr, port) = local.split_once(':')?;
    let at = SocketAddr::new(address(addr)?, u16::from_str_radix(port, 16).ok()?);
    (found == state && at.port() != 0).then_some(at)
}

/// Words of 32 bits in this machine's order, in hexadecimal digits.
fn address(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..text.len()).step_by(8) {
        let word = u32::from_str_radix(text.get(at..at.saturating_add(8))?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn sockets_that_wait_are_read_and_others_are_left_out() {
        for (line, state, expected) in [
            ("   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000", "0A", Some("0.0.0.0:22")),
            (
                "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000",
                "0A",
                Some("127.0.0.1:8080"),
            ),
            ("   2: 0100007F:1F90 0100007F:0016 01 00000000:00000000 00:00000000 00000000", "0A", None),
            (
                "   3: 00000000000000000000000000000000:7530 00000000000000000000000000000000:0000 07",
                "07",
                Some("[::]:30000"),
            ),
            (
                "   4: 0000000000000000FFFF00001507040A:0050 00000000000000000000000000000000:0000 0A",
                "0A",
                Some("10.4.7.21:80"),
            ),
            ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt", "0A", None),
            ("   5: 0:0016 0:0 0A", "0A", None),
        ] {
            assert_eq!(waiting(line, state), expected.map(|at| at.parse().unwrap()), "{line}");
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let own = Listener { protocol: Protocol::Tcp, at };
        assert!(listeners().contains(&own));
        let (_, number) = numbered().into_iter().find(|(listener, _)| *listener == own).unwrap();
        let file = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket));
        assert_eq!(std::fs::read_link(file).unwrap().to_str(), Some(format!("socket:[{number}]").as_str()));
    }
}
