//! The packets of probes: a request of any length, an answer that is never longer.
//!
//! Invariants: an answer is as long as the shortest request, so nobody is flooded by way of a node; it says nothing
//! but the node's subnet and clock.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use netstate::Prefix;

/// The UDP port at which a node answers, unless its flags say otherwise.
pub(crate) const PORT: u16 = 10247;

/// Length of an answer, and least length of a request, in bytes.
pub(crate) const LENGTH: usize = 48;

const REQUEST: &[u8; 8] = b"netd ask";
const ANSWER: &[u8; 8] = b"netd ans";

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The number of the request.
    pub number: u64,
    /// Its clock, in milliseconds since 1970.
    pub clock: u64,
    /// Its subnet.
    pub subnet: Option<Prefix>,
}

/// This node's clock, in milliseconds since 1970.
#[must_use]
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

/// A request of `length` bytes.
#[must_use]
pub(crate) fn request(number: u64, length: usize) -> Vec<u8> {
    let mut packet = [&REQUEST[..], &number.to_be_bytes()].concat();
    packet.resize(length.max(LENGTH), 0);
    packet
}

/// The number of a request; `None` for anything else.
#[must_use]
pub(crate) fn asked(packet: &[u8]) -> Option<u64> {
    let number = packet.strip_prefix(REQUEST)?.first_chunk()?;
    (packet.len() >= LENGTH).then(|| u64::from_be_bytes(*number))
}

/// The bytes of an answer.
#[must_use]
pub(crate) fn render(answer: &Answer) -> Vec<u8> {
    let address = match answer.subnet.map(|subnet| subnet.addr()) {
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped(),
        Some(IpAddr::V6(v6)) => v6,
        None => Ipv6Addr::UNSPECIFIED,
    };
    let length = answer.subnet.map_or(0, |subnet| subnet.len());
    let mut packet = [&ANSWER[..], &answer.number.to_be_bytes(), &answer.clock.to_be_bytes()].concat();
    packet.extend(address.octets());
    packet.push(length);
    packet.resize(LENGTH, 0);
    packet
}

/// Reads an answer; `None` for anything else.
#[must_use]
pub(crate) fn read(packet: &[u8]) -> Option<Answer> {
    let (number, rest) = packet.strip_prefix(ANSWER)?.split_first_chunk()?;
    let (clock, rest) = rest.split_first_chunk()?;
    let (address, rest) = rest.split_first_chunk::<16>()?;
    let address = Ipv6Addr::from(*address);
    // Of a length of nothing no address is left either.
    let subnet = Prefix::new(address.to_canonical(), *rest.first()?).ok();
    let subnet = subnet.filter(|subnet| !subnet.addr().is_unspecified());
    Some(Answer { number: u64::from_be_bytes(*number), clock: u64::from_be_bytes(*clock), subnet })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_were_written_and_never_longer_than_requests() {
        for subnet in [None, Some("172.7.21.0/24"), Some("fc00:0:0:1::/64")] {
            let answer =
                Answer { number: 7, clock: 1_700_000_000_123, subnet: subnet.map(|text| text.parse().unwrap()) };
            let packet = render(&answer);
            assert_eq!(read(&packet), Some(answer));
            assert_eq!(packet.len(), LENGTH);
        }
        assert_eq!(asked(&request(9, 0)), Some(9));
        assert_eq!(request(9, 1400).len(), 1400);
    }

    #[test]
    fn anything_else_is_neither() {
        let short = request(1, 0);
        for packet in [
            &b""[..],
            b"netd ask",
            &short[..LENGTH - 1],
            &[0; 100],
            &render(&Answer { number: 1, clock: 1, subnet: None }),
        ] {
            assert_eq!(asked(packet), None);
        }
        for packet in [&b""[..], b"netd ans", &request(1, 0), &[0xff; 48]] {
            assert_eq!(read(packet), None);
        }
    }
}
