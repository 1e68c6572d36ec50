//! Who else on a link has an address of this host: ARP probes (RFC 5227 §2.1.1), and neighbour solicitations as duplicate
//! address detection sends them (RFC 4862 §5.4.2).
//!
//! Invariants: a question names no sender's address, so nobody's table of neighbours changes by it; the wait for answers has
//! an end; links of this host that answer for each other are not others.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use netstate::{IfName, MacAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, sendto,
    setsockopt, socket, sockopt,
};

use crate::{Chain, Rtnl};

/// Questions (RFC 5227 `PROBE_NUM`); each is followed by a wait.
const QUESTIONS: u32 = 3;

/// Wait after a question.
const WAIT: Duration = Duration::from_millis(300);

/// `ETH_P_ARP` and `ETH_P_IPV6` (include/uapi/linux/if_ether.h).
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// What an ARP packet of Ethernet and IPv4 begins with (RFC 826): both kinds of addresses and their lengths.
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Length of an ARP packet of Ethernet and IPv4.
const ARP_LENGTH: usize = 28;

/// ICMPv6 types of neighbour discovery, and its option with the target's hardware address (RFC 4861 §4.3, §4.4, §4.6.1).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const TARGET_ADDRESS: u8 = 2;

/// A question as it is sent, and where to.
struct Question {
    protocol: u16,
    to: MacAddr,
    packet: Vec<u8>,
}

/// Hardware addresses of others on `link` that have `address`, which this host has there. Takes a second, in the network
/// namespace of the calling thread.
///
/// # Errors
/// When the link is not there, or the system refuses the sockets, as it does without CAP_NET_RAW.
pub fn holders(link: &IfName, address: IpAddr) -> io::Result<BTreeSet<MacAddr>> {
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links());
    let links = links.map_err(|error| io::Error::other(Chain(&error).to_string()))?;
    let found = links.iter().find(|found| found.name == *link).ok_or(io::ErrorKind::NotFound)?;
    // A link without hardware addresses has nobody to ask.
    let Some(mac) = found.link.mac else { return Ok(BTreeSet::new()) };
    let own: BTreeSet<MacAddr> = links.iter().filter_map(|found| found.link.mac).collect();
    let question = match address {
        IpAddr::V4(v4) => Question { protocol: ARP, to: MacAddr([0xff; 6]), packet: arp_probe(mac, v4) },
        IpAddr::V6(v6) => Question { protocol: IPV6, to: solicited_mac(v6), packet: solicitation(v6) },
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // What is bound to no protocol receives nothing.
    let asking = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
    let target = link_address(found.index, question.protocol, question.to)?;
    let answers = match address {
        IpAddr::V4(_) => {
            bind(asking.as_raw_fd(), &target)?;
            asking.try_clone()?
        }
        IpAddr::V6(_) => {
            let answers = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
            setsockopt(&answers, sockopt::BindToDevice, &link.as_str().into())?;
            answers
        }
    };
    let mut holders = BTreeSet::new();
    for _ in 0..QUESTIONS {
        sendto(asking.as_raw_fd(), &question.packet, &target, MsgFlags::empty())?;
        collect(&answers, address, &mut holders)?;
    }
    Ok(holders.difference(&own).copied().collect())
}

/// Receives answers for as long as a question is waited for.
fn collect(answers: &OwnedFd, address: IpAddr, holders: &mut BTreeSet<MacAddr>) -> io::Result<()> {
    let until = Instant::now() + WAIT;
    let mut buffer = [0; 1500];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let mut fds = [PollFd::new(answers.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        match recv(answers.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => holders.extend(buffer.get(..length).and_then(|packet| read(packet, address))),
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn link_address(index: u32, protocol: u16, to: MacAddr) -> io::Result<LinkAddr> {
    let MacAddr([a, b, c, d, e, f]) = to;
    let raw = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    let length = libc::socklen_t::try_from(size_of_val(&raw)).map_err(io::Error::other)?;
    #[allow(unsafe_code, reason = "nix makes no such address of its parts")]
    // SAFETY: `raw` is a whole address of this family and lives until it is copied.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A request without a sender's IPv4 address (RFC 5227 §1.1).
fn arp_probe(own: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    [&ARP_OF_IPV4[..], &[0, 1], &own.0, &[0; 4], &[0; 6], &address.octets()].concat()
}

/// `ff02::1:ffXX:XXXX` of an address (RFC 4291 §2.7.1).
fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b)
}

/// The hardware address of that group (RFC 2464 §7).
fn solicited_mac(address: Ipv6Addr) -> MacAddr {
    let [.., a, b, c] = address.octets();
    MacAddr([0x33, 0x33, 0xff, a, b, c])
}

/// A solicitation for `address` from nobody, in its packet of IPv6.
fn solicitation(address: Ipv6Addr) -> Vec<u8> {
    let (group, length) = (solicited(address).octets(), 24);
    let message = |sum: [u8; 2]| [&[SOLICITATION, 0], &sum[..], &[0; 4], &address.octets()].concat();
    // The pseudo header (RFC 8200 §8.1): both addresses, length and protocol; all zeroes are the sender.
    let summed = [&group[..], &[0, 0, 0, length, 0, 0, 0, 58], &message([0; 2])].concat();
    let header = [0x60, 0, 0, 0, 0, length, 58, 255];
    [&header[..], &[0; 16], &group, &message(checksum(&summed))].concat()
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum: u32 = words.sum();
    while let carry @ 1.. = sum >> 16 {
        sum = (sum & 0xffff) + carry;
    }
    let [.., a, b] = (!sum).to_be_bytes();
    [a, b]
}

/// The hardware address of a node that says that it has `address`: of an ARP packet, or of an ICMPv6 message.
fn read(packet: &[u8], address: IpAddr) -> Option<MacAddr> {
    match address {
        IpAddr::V4(v4) => read_arp(packet, v4),
        IpAddr::V6(v6) => read_advertisement(packet, v6),
    }
}

/// Requests say it as well as answers do (RFC 5227 §2.1.1).
fn read_arp(packet: &[u8], address: Ipv4Addr) -> Option<MacAddr> {
    let rest = packet.get(..ARP_LENGTH)?.strip_prefix(&ARP_OF_IPV4)?;
    let (mac, rest) = rest.get(2..)?.split_first_chunk()?;
    rest.starts_with(&address.octets()).then_some(MacAddr(*mac))
}

fn read_advertisement(message: &[u8], address: Ipv6Addr) -> Option<MacAddr> {
    let rest = message.strip_prefix(&[ADVERTISEMENT, 0])?.get(6..)?;
    let mut options = rest.strip_prefix(&address.octets())?;
    // Each has its kind and its length in units of eight bytes; one of none would never end.
    while let [kind, length, ..] = options {
        let length = usize::from(*length).checked_mul(8).filter(|length| *length > 0)?;
        let (option, rest) = options.split_at_checked(length)?;
        if *kind == TARGET_ADDRESS {
            return Some(MacAddr(*option.get(2..)?.first_chunk()?));
        }
        options = rest;
    }
    None
}

/// One fuzz input: a packet of either family.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_packet(input: &[u8]) {
    for address in [IpAddr::from([10, 4, 7, 21]), IpAddr::from([0xfd00, 0x10, 4, 7, 0, 0, 0, 0x21])] {
        if let Some(mac) = read(input, address) {
            assert!(input.windows(6).any(|window| window == mac.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);

    fn reply(sender: [u8; 4]) -> Vec<u8> {
        [&ARP_OF_IPV4[..], &[0, 2], &MAC.0, &sender, &[2, 0, 0, 0, 0, 1], &[0; 4]].concat()
    }

    fn advertisement(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        [&[ADVERTISEMENT, 0, 0xab, 0xcd, 0x20, 0, 0, 0], &target.octets()[..], options].concat()
    }

    #[test]
    fn who_says_that_the_address_is_theirs_is_named() {
        let (v4, v6) = (Ipv4Addr::new(10, 4, 7, 21), "fd00:10:4:7::21".parse::<Ipv6Addr>().unwrap());
        assert_eq!(read(&reply([10, 4, 7, 21]), v4.into()), Some(MAC));
        // Ethernet fills short frames up.
        assert_eq!(read(&[reply([10, 4, 7, 21]), vec![0; 18]].concat(), v4.into()), Some(MAC));
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        let option = [&[TARGET_ADDRESS, 1][..], &MAC.0].concat();
        for options in [option.clone(), [&nonce[..], &option].concat()] {
            assert_eq!(read(&advertisement(v6, &options), v6.into()), Some(MAC));
        }
    }

    #[test]
    fn probes_of_others_other_addresses_and_torn_packets_name_nobody() {
        let (v4, v6) = (Ipv4Addr::new(10, 4, 7, 21), "fd00:10:4:7::21".parse::<Ipv6Addr>().unwrap());
        let whole = reply([10, 4, 7, 21]);
        for packet in [&arp_probe(MAC, v4), &reply([10, 4, 7, 22]), &whole[..27], &[]] {
            assert_eq!(read(packet, v4.into()), None);
        }
        let option = [&[TARGET_ADDRESS, 1][..], &MAC.0].concat();
        let endless = [14, 0, 0, 0, 0, 0, 0, 0];
        let solicited = solicitation(v6).split_off(40);
        for message in [
            advertisement("fd00::1".parse().unwrap(), &option),
            advertisement(v6, &[]),
            advertisement(v6, &endless),
            advertisement(v6, &option[..7]),
            solicited,
        ] {
            assert_eq!(read(&message, v6.into()), None, "{message:?}");
        }
    }

    #[test]
    fn solicitation_goes_to_the_group_of_its_address_with_a_checksum_that_holds() {
        let address: Ipv6Addr = "fd00:10:4:7::21".parse().unwrap();
        let packet = solicitation(address);
        assert_eq!(solicited(address), "ff02::1:ff00:21".parse::<Ipv6Addr>().unwrap());
        assert_eq!(solicited_mac(address).to_string(), "33:33:ff:00:00:21");
        assert_eq!((packet.len(), &packet[..8]), (64, &[0x60, 0, 0, 0, 0, 24, 58, 255][..]));
        // Whoever sums up what arrives finds nothing left.
        let pseudo = [&packet[8..40], &[0, 0, 0, 24, 0, 0, 0, 58], &packet[40..]].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
    }
}
