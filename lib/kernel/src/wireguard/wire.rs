//! Form of WireGuard's messages (include/uapi/linux/wireguard.h, drivers/net/wireguard/netlink.c).
//!
//! Invariants: a message never replaces all peers and names one peer at most; of a peer it sets what differs only, so a
//! session that runs goes on. A listing may be cut anywhere, within a peer's addresses too: its parts are put together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use netstate::wireguard::{Device, Endpoint, KEY_LEN, Peer, PresharedKey, PrivateKey, PublicKey};
use netstate::{IfName, Prefix};

use crate::attribute::{self, Writer};
use crate::genl::read_u16;

pub(super) const FAMILY: &str = "wireguard";
pub(super) const VERSION: u8 = 1;

// Commands (WG_CMD_*).
pub(super) const GET_DEVICE: u8 = 0;
pub(super) const SET_DEVICE: u8 = 1;

// Attributes of a device (WGDEVICE_A_*).
const IFNAME: u16 = 2;
const PRIVATE_KEY: u16 = 3;
const PUBLIC_KEY: u16 = 4;
const LISTEN_PORT: u16 = 6;
pub(super) const PEERS: u16 = 8;

// Attributes of a peer (WGPEER_A_*).
const PEER_PUBLIC_KEY: u16 = 1;
const PRESHARED_KEY: u16 = 2;
const PEER_FLAGS: u16 = 3;
const ENDPOINT: u16 = 4;
const KEEPALIVE: u16 = 5;
const LAST_HANDSHAKE: u16 = 6;
const RX_BYTES: u16 = 7;
const TX_BYTES: u16 = 8;
const ALLOWED_IPS: u16 = 9;

/// What of a peer changes by packets that come and go.
pub(super) const OF_TRAFFIC: [u16; 3] = [LAST_HANDSHAKE, RX_BYTES, TX_BYTES];

/// WGPEER_F_REMOVE_ME.
const REMOVE_ME: u32 = 1;
/// WGPEER_F_REPLACE_ALLOWEDIPS.
const REPLACE_ALLOWED: u32 = 2;
/// WGPEER_F_UPDATE_ONLY: of a peer that is gone nothing is made from a part of its settings.
const UPDATE_ONLY: u32 = 4;

// Attributes of an allowed address (WGALLOWEDIP_A_*).
const FAMILY_OF: u16 = 1;
const ADDRESS: u16 = 2;
const MASK: u16 = 3;

/// AF_INET and AF_INET6 (include/linux/socket.h).
const INET: u16 = 2;
const INET6: u16 = 10;

/// A body that names a device.
pub(super) fn device(link: &IfName) -> Writer {
    let mut writer = Writer::default();
    writer.put_str(IFNAME, link.as_str());
    writer
}

/// Sets the device's identity, when one is given, and its port.
pub(super) fn set_device(link: &IfName, key: Option<&PrivateKey>, listen_port: u16) -> Writer {
    let mut writer = device(link);
    if let Some(key) = key {
        writer.put(PRIVATE_KEY, key.expose());
    }
    writer.put(LISTEN_PORT, &listen_port.to_ne_bytes());
    writer
}

/// Makes a peer, or sets what of `want` differs from `have`.
pub(super) fn set_peer(link: &IfName, key: &PublicKey, have: Option<&Peer>, want: &Peer) -> Writer {
    let differs = |same: bool| have.is_none() || !same;
    peer(link, key, |writer| {
        let mut flags = if have.is_some() { UPDATE_ONLY } else { 0 };
        let held = have.map(|have| &have.allowed);
        let addresses = differs(held == Some(&want.allowed));
        // Replacing leaves the peer without any for a moment: only when one must go.
        if addresses && held.is_none_or(|held| !held.is_subset(&want.allowed)) {
            flags |= REPLACE_ALLOWED;
        }
        if flags != 0 {
            writer.put(PEER_FLAGS, &flags.to_ne_bytes());
        }
        if differs(have.is_some_and(|have| have.preshared == want.preshared)) {
            // All zeros: none.
            writer.put(PRESHARED_KEY, want.preshared.unwrap_or(PresharedKey::new([0; KEY_LEN])).expose());
        }
        if differs(have.is_some_and(|have| have.endpoint.satisfies(&want.endpoint)))
            && let Endpoint::At(addr) = want.endpoint
        {
            writer.put(ENDPOINT, &socket_address(addr));
        }
        if differs(have.is_some_and(|have| have.keepalive == want.keepalive)) {
            writer.put(KEEPALIVE, &want.keepalive.to_ne_bytes());
        }
        if addresses {
            writer.nest(ALLOWED_IPS, |list| want.allowed.iter().for_each(|prefix| put_allowed(list, prefix)));
        }
    })
}

/// Removes a peer; one that is gone is no error.
pub(super) fn remove_peer(link: &IfName, key: &PublicKey) -> Writer {
    peer(link, key, |writer| {
        writer.put(PEER_FLAGS, &REMOVE_ME.to_ne_bytes());
    })
}

fn peer(link: &IfName, key: &PublicKey, fill: impl FnOnce(&mut Writer)) -> Writer {
    let mut writer = device(link);
    writer.nest(PEERS, |peers| {
        peers.nest(0, |peer| {
            peer.put(PEER_PUBLIC_KEY, &key.0);
            fill(peer);
        });
    });
    writer
}

fn put_allowed(list: &mut Writer, prefix: &Prefix) {
    list.nest(0, |entry| {
        match prefix.addr() {
            IpAddr::V4(addr) => entry.put(FAMILY_OF, &INET.to_ne_bytes()).put(ADDRESS, &addr.octets()),
            IpAddr::V6(addr) => entry.put(FAMILY_OF, &INET6.to_ne_bytes()).put(ADDRESS, &addr.octets()),
        };
        entry.put(MASK, &[prefix.len()]);
    });
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(addr: SocketAddr) -> Vec<u8> {
    let port = addr.port().to_be_bytes();
    match addr {
        SocketAddr::V4(addr) => [&INET.to_ne_bytes()[..], &port, &addr.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(addr) => {
            let scope = addr.scope_id().to_ne_bytes();
            [&INET6.to_ne_bytes()[..], &port, &[0; 4], &addr.ip().octets(), &scope].concat()
        }
    }
}

fn read_socket_address(value: &[u8]) -> Option<SocketAddr> {
    let port = value.get(2..).and_then(attribute::be16)?;
    match read_u16(value)? {
        INET => {
            let addr = Ipv4Addr::from(*value.get(4..)?.first_chunk::<4>()?);
            Some(SocketAddr::new(addr.into(), port))
        }
        INET6 => {
            let addr = Ipv6Addr::from(*value.get(8..)?.first_chunk::<16>()?);
            let scope = value.get(24..).and_then(attribute::u32).unwrap_or(0);
            Some(SocketAddrV6::new(addr, port, 0, scope).into())
        }
        _ => None,
    }
}

/// A peer as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds since 1970 of the last handshake, if there was one.
    pub(super) handshake: Option<u64>,
    pub(super) allowed: BTreeSet<Prefix>,
    pub(super) preshared: Option<PresharedKey>,
    pub(super) keepalive: u16,
    /// Bytes from it and to it.
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// The device in the messages of a listing; `None` when they say nothing of one.
pub(super) fn read(messages: &[Vec<u8>]) -> Option<(Device, BTreeMap<PublicKey, Seen>)> {
    let first = messages.first()?;
    let port = attribute::find(first, LISTEN_PORT).and_then(read_u16)?;
    let device =
        Device { public_key: attribute::find(first, PUBLIC_KEY).and_then(key).map(PublicKey), listen_port: port };
    let mut peers: BTreeMap<PublicKey, Seen> = BTreeMap::new();
    let lists = messages.iter().filter_map(|message| attribute::find(message, PEERS));
    for (_, body) in lists.flat_map(attribute::iter) {
        let Some(public) = attribute::find(body, PEER_PUBLIC_KEY).and_then(key) else { continue };
        match peers.entry(PublicKey(public)) {
            // The rest of a peer whose addresses did not fit: its other settings stood in the first part.
            std::collections::btree_map::Entry::Occupied(mut part) => part.get_mut().allowed.extend(allowed(body)),
            std::collections::btree_map::Entry::Vacant(new) => drop(new.insert(seen(body))),
        }
    }
    Some((device, peers))
}

fn seen(body: &[u8]) -> Seen {
    let find = |kind| attribute::find(body, kind);
    let long = |value: &[u8]| value.first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes));
    Seen {
        endpoint: find(ENDPOINT).and_then(read_socket_address),
        handshake: find(LAST_HANDSHAKE).and_then(long).filter(|seconds| *seconds != 0),
        allowed: allowed(body).collect(),
        preshared: find(PRESHARED_KEY).and_then(key).filter(|bytes| *bytes != [0; KEY_LEN]).map(PresharedKey::new),
        keepalive: find(KEEPALIVE).and_then(read_u16).unwrap_or(0),
        received: find(RX_BYTES).and_then(long).unwrap_or(0),
        sent: find(TX_BYTES).and_then(long).unwrap_or(0),
    }
}

fn allowed(body: &[u8]) -> impl Iterator<Item = Prefix> {
    let list = attribute::find(body, ALLOWED_IPS).unwrap_or_default();
    attribute::iter(list).filter_map(|(_, entry)| {
        let addr = attribute::find(entry, ADDRESS).and_then(attribute::ip)?;
        Prefix::new(addr, *attribute::find(entry, MASK)?.first()?).ok()
    })
}

fn key(value: &[u8]) -> Option<[u8; KEY_LEN]> {
    value.try_into().ok()
}

/// A peer that is read is written so that it is read again, but for its last handshake and its counters.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_peers(messages: &[Vec<u8>]) {
    let Some((device, peers)) = read(messages) else { return };
    let head = set_device(&IfName::literal("flannel-wg"), None, device.listen_port).finish();
    // More addresses do not go into one message.
    for (public, seen) in peers.into_iter().filter(|(_, seen)| seen.allowed.len() < 1000) {
        let want = Peer {
            endpoint: seen.endpoint.map_or(Endpoint::Open, Endpoint::At),
            allowed: seen.allowed.clone(),
            preshared: seen.preshared,
            keepalive: seen.keepalive,
        };
        let written = set_peer(&IfName::literal("flannel-wg"), &public, None, &want).finish();
        let again = read(&[head.clone(), written]).map(|(_, peers)| peers);
        assert_eq!(again, Some(BTreeMap::from([(public, Seen { handshake: None, received: 0, sent: 0, ..seen })])));
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::golden::tree;
    use proptest::prelude::*;

    fn link() -> IfName {
        IfName::literal("wg0")
    }

    fn want() -> Peer {
        Peer {
            endpoint: Endpoint::At("10.4.7.22:51820".parse().unwrap()),
            allowed: ["172.7.22.0/24".parse().unwrap(), "fd00:7:22::/64".parse().unwrap()].into(),
            preshared: Some(PresharedKey::new([7; 32])),
            keepalive: 25,
        }
    }

    fn hex(byte: &str) -> String {
        byte.repeat(32)
    }

    #[test]
    fn new_peer_is_written_whole() {
        let text = tree(&set_peer(&link(), &PublicKey([1; 32]), None, &want()).finish());
        assert_eq!(
            text,
            format!(
                "2: 77673000\n8:\n  0:\n    1: {}\n    3: 02000000\n    2: {}\n    4: 0200ca6c0a0407160000000000000000\n    \
                 5: 1900\n    9:\n      0:\n        1: 0200\n        2: ac071600\n        3: 18\n      0:\n        1: 0a00\n        \
                 2: fd000007002200000000000000000000\n        3: 40\n",
                hex("01"),
                hex("07")
            )
        );
    }

    #[test]
    fn of_a_known_peer_only_what_differs_is_written() {
        let set = |have: Peer, want: Peer| tree(&set_peer(&link(), &PublicKey([1; 32]), Some(&have), &want).finish());
        let same = format!("2: 77673000\n8:\n  0:\n    1: {}\n    3: 04000000\n", hex("01"));
        assert_eq!(set(want(), want()), same);
        let moved = Peer { endpoint: Endpoint::At("[fd00::9]:7".parse().unwrap()), ..want() };
        let address = format!("    4: 0a00000700000000fd{}0900000000\n", "00".repeat(14));
        assert_eq!(set(want(), moved), format!("{same}{address}"));
        let roamed = Endpoint::Roamed { to: "203.0.113.9:4".parse().unwrap(), from: None };
        assert_eq!(set(Peer { endpoint: roamed, ..want() }, want()), same, "is not called back");
        let bare = Peer { preshared: None, keepalive: 0, ..want() };
        assert_eq!(set(want(), bare), format!("{same}    2: {}\n    5: 0000\n", hex("00")));
        // One more address is added; when one goes all are replaced.
        let fewer = Peer { allowed: ["172.7.22.0/24".parse().unwrap()].into(), ..want() };
        assert!(set(fewer.clone(), want()).contains("    3: 04000000\n    9:\n"));
        assert!(set(want(), fewer).contains("    3: 06000000\n    9:\n"));
    }

    #[test]
    fn removal_names_the_peer_and_nothing_else() {
        let text = tree(&remove_peer(&link(), &PublicKey([1; 32])).finish());
        assert_eq!(text, format!("2: 77673000\n8:\n  0:\n    1: {}\n    3: 01000000\n", hex("01")));
        let device = tree(&set_device(&link(), Some(&PrivateKey::new([9; 32])), 51820).finish());
        assert_eq!(device, format!("2: 77673000\n3: {}\n6: 6cca\n", hex("09")));
        assert_eq!(tree(&set_device(&link(), None, 51820).finish()), "2: 77673000\n6: 6cca\n");
    }

    fn peers(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut message = device(&link());
        message.put(LISTEN_PORT, &51820u16.to_ne_bytes()).put(PUBLIC_KEY, &[5; 32]);
        message.nest(PEERS, fill);
        message.finish()
    }

    #[test]
    fn peer_that_is_cut_over_messages_is_put_together() {
        let (one, two): (Prefix, Prefix) = ("172.7.22.0/24".parse().unwrap(), "172.7.23.0/24".parse().unwrap());
        let first = peers(|list| {
            list.nest(0, |peer| {
                peer.put(PEER_PUBLIC_KEY, &[1; 32]).put(PRESHARED_KEY, &[0; 32]).put(KEEPALIVE, &[25, 0]);
                peer.put(LAST_HANDSHAKE, &[[9, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat());
                peer.put(ENDPOINT, &socket_address("10.4.7.22:51820".parse().unwrap()));
                peer.nest(ALLOWED_IPS, |list| put_allowed(list, &one));
            });
        });
        let mut second = device(&link());
        second.nest(PEERS, |list| {
            list.nest(0, |peer| {
                peer.put(PEER_PUBLIC_KEY, &[1; 32]).nest(ALLOWED_IPS, |list| put_allowed(list, &two));
            });
            list.nest(0, |peer| {
                peer.put(PEER_PUBLIC_KEY, &[2; 32]).put(PRESHARED_KEY, &[7; 32]).put(LAST_HANDSHAKE, &[0; 16]);
                peer.put(ENDPOINT, &socket_address("[fe80::1%3]:9".parse().unwrap()));
            });
            list.nest(0, |peer| {
                peer.put(PEER_PUBLIC_KEY, &[3; 5]);
            });
        });
        let (device, peers) = read(&[first, second.finish()]).unwrap();
        assert_eq!(device, Device { public_key: Some(PublicKey([5; 32])), listen_port: 51820 });
        assert_eq!(peers.len(), 2, "a key of another length is none");
        let cut = &peers[&PublicKey([1; 32])];
        assert_eq!(cut.allowed, [one, two].into());
        assert_eq!((cut.keepalive, cut.handshake, cut.preshared), (25, Some(9), None));
        assert_eq!(cut.endpoint, "10.4.7.22:51820".parse().ok());
        let whole = &peers[&PublicKey([2; 32])];
        assert_eq!((whole.preshared, whole.handshake), (Some(PresharedKey::new([7; 32])), None));
        assert_eq!(whole.endpoint, "[fe80::1%3]:9".parse().ok());
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..4)) {
            let _ = read(&messages);
            let inside = messages.iter().map(|bytes| peers(|list| { list.put(0x8000, bytes); })).collect::<Vec<_>>();
            let _ = read(&inside);
        }
    }

    #[test]
    fn torn_listings_are_read_as_far_as_they_go() {
        let whole = peers(|list| {
            list.nest(0, |peer| {
                peer.put(PEER_PUBLIC_KEY, &[1; 32]).put(ENDPOINT, &socket_address("[fd00::1]:9".parse().unwrap()));
                peer.nest(ALLOWED_IPS, |list| put_allowed(list, &"172.7.22.0/24".parse().unwrap()));
            });
        });
        for length in 0..whole.len() {
            let _ = read(&[whole[..length].to_vec()]);
        }
        assert_eq!(read(&[]), None);
        for short in 0..28 {
            let _ = read_socket_address(&socket_address("[fd00::1]:9".parse().unwrap())[..short]);
        }
    }
}
