//! What a WireGuard device says of its peers, for an operator: where they are and whether they have spoken.
//!
//! Invariant: reads only, and keeps no secret.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netstate::wireguard::PublicKey;
use netstate::{IfName, Prefix};

use super::wire;
use crate::error::{Cause, KernelError};
use crate::genl::Genl;

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its identity.
    pub key: PublicKey,
    /// Where packets for it go.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since 1970 of the last handshake, if there was one.
    pub handshake: Option<u64>,
    /// The addresses that it has.
    pub allowed: BTreeSet<Prefix>,
    /// Bytes from it so far.
    pub received: u64,
    /// Bytes to it so far.
    pub sent: u64,
}

/// A device with its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// The UDP port that it receives on.
    pub port: u16,
    /// Its peers.
    pub peers: Vec<Session>,
}

impl Sessions {
    /// Of the device `link`.
    ///
    /// # Errors
    /// When there is no such device, or the kernel cannot be read.
    pub fn of(link: &IfName) -> Result<Self, KernelError> {
        let mut genl = Genl::open(wire::FAMILY, wire::VERSION)?;
        let error = |cause: Cause| KernelError::new("list peers of", link, cause);
        let messages = genl.dump(wire::GET_DEVICE, wire::device(link)).map_err(|fault| error(fault.into()))?;
        let (device, peers) =
            wire::read(&messages).ok_or_else(|| error(Cause::Missing("a WireGuard device".to_owned())))?;
        let session = |(key, seen): (PublicKey, wire::Seen)| {
            let wire::Seen { endpoint, handshake, allowed, received, sent, .. } = seen;
            Session { key, endpoint, handshake, allowed, received, sent }
        };
        Ok(Self { port: device.listen_port, peers: peers.into_iter().map(session).collect() })
    }

    /// The peer that packets for `addr` go to: the one with the longest prefix of it, as the kernel chooses.
    #[must_use]
    pub fn peer_of(&self, addr: IpAddr) -> Option<&Session> {
        let length = |peer: &&Session| {
            let of_addr = peer.allowed.iter().filter(|prefix| prefix.contains(addr));
            of_addr.map(|prefix| i16::from(prefix.len())).max().unwrap_or(-1)
        };
        self.peers.iter().max_by_key(length).filter(|peer| length(peer) >= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_goes_to_the_peer_with_the_longest_prefix_of_its_destination() {
        let peer = |number: u8, allowed: &[&str]| Session {
            key: PublicKey([number; 32]),
            endpoint: None,
            handshake: None,
            allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
            received: 0,
            sent: 0,
        };
        let sessions = Sessions {
            port: 51820,
            peers: vec![peer(1, &["172.7.0.0/16"]), peer(2, &["172.7.22.0/24", "fd00::/64"]), peer(3, &[])],
        };
        let key = |text: &str| sessions.peer_of(text.parse().unwrap()).map(|peer| peer.key.0[0]);
        for (addr, number) in
            [("172.7.22.2", Some(2)), ("172.7.23.2", Some(1)), ("fd00::2", Some(2)), ("10.4.7.1", None)]
        {
            assert_eq!(key(addr), number, "{addr}");
        }
    }
}
