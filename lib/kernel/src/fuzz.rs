//! What the kernel says: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! The kernel is believed, its messages are not: other versions of it, and other programs that send on a netlink socket, form them
//! otherwise. Invariant: every input is answered, by a value or by an error, and nothing is read beyond the end of a message.
//!
//! The corpora of messages were recorded: answers of Linux 6.1 and 6.18 to the requests that this crate makes, in a network
//! namespace with one of each object, and notifications of what made them.

use netstate::Protocol;

use crate::socket::{Frame, acknowledgement, split};
use crate::{
    address, attribute, bridge, conntrack, genl, ipset, ipvs, link, name, neighbour, nft, qdisc, route, wireguard,
};

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 14] = [
    ("attributes", attributes),
    ("conntrack", flows),
    ("datagram", datagram),
    ("holders", crate::holders::fuzz_packet),
    ("ip_vs", ip_vs),
    ("ipset", sets),
    ("ipvs", ipvs_answers),
    ("legacy", crate::legacy::fuzz_table),
    ("names", names),
    ("nft", nft_listings),
    ("nft_notifications", nft::fuzz::notifications),
    ("notifications", notifications),
    ("rtnetlink", rtnetlink),
    ("wireguard", wireguard_peers),
];

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// The messages of a datagram; of one that is torn, all of it as the body of its first, so that what is behind the header is
/// read whatever the header says.
fn frames(datagram: &[u8]) -> Vec<Frame> {
    split(datagram).unwrap_or_else(|_| {
        let kind = datagram.get(4..).and_then(genl::read_u16).unwrap_or_default();
        vec![Frame { kind, flags: 0, sequence: 0, body: datagram.get(HEADER..).unwrap_or_default().to_vec() }]
    })
}

fn datagram(input: &[u8]) {
    for frame in split(input).unwrap_or_default() {
        assert!(frame.body.len() <= input.len());
        let _ = acknowledgement(&frame);
    }
}

fn attributes(input: &[u8]) {
    fn within(bytes: &[u8], depth: usize) {
        let mut length = 0;
        for (_, value) in attribute::iter(bytes) {
            length += value.len();
            let (_, _, _) = (attribute::text(value), attribute::u32(value), attribute::be16(value));
            if depth > 0 {
                within(value, depth - 1);
            }
        }
        assert!(length <= bytes.len(), "values of {length} bytes in {}", bytes.len());
    }
    within(input, 4);
}

fn rtnetlink(input: &[u8]) {
    let frames = frames(input);
    for frame in &frames {
        let _ = (link::state(frame), route::parse(frame), address::row(frame), address::detection(frame));
        let _ = (neighbour::entry(frame), qdisc::qdisc(frame, 7), qdisc::redirected_to(frame, 7));
        let _ = bridge::port_vlans(frame, 5).map(|vlans| vlans.to_string());
    }
    #[cfg(feature = "watch")]
    crate::query::fuzz(input);
}

fn notifications(input: &[u8]) {
    #[cfg(feature = "watch")]
    crate::watch::fuzz::notifications(input);
    let _ = split(input);
}

fn nft_listings(input: &[u8]) {
    nft::fuzz::listings(&frames(input));
}

fn flows(input: &[u8]) {
    for flow in frames(input).iter().filter_map(conntrack::read) {
        let (opened, protocol) = (flow.original.dst, flow.protocol);
        assert!(flow.was_opened_to(opened.ip(), opened.port()), "{flow:?}");
        assert!(Protocol::from_number(protocol.number()) == Some(protocol));
    }
}

fn sets(input: &[u8]) {
    for frame in frames(input) {
        let (name, entries) = (ipset::name(&frame), ipset::entries(&frame));
        assert!(name.unwrap_or_default().len() <= 4 * input.len() && entries.len() <= input.len());
    }
}

fn names(input: &[u8]) {
    for frame in frames(input) {
        let name = name::read(&frame).map(|bound| bound.name);
        assert!(name.unwrap_or_default().len() <= 4 * input.len());
    }
}

fn ipvs_answers(input: &[u8]) {
    for answer in genl::payloads(&frames(input)) {
        ipvs::fuzz_answer(&answer);
    }
}

fn wireguard_peers(input: &[u8]) {
    wireguard::fuzz_peers(&genl::payloads(&frames(input)));
}

fn ip_vs(input: &[u8]) {
    ipvs::fuzz_entries(input);
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_the_kernel_says_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
