//! The packet that is followed, as the bytes of it that are known.
//!
//! Invariant: what a rule may have changed on the way, or nobody said, is unknown.

use std::net::IpAddr;

use super::Arrival;
use crate::nft::expression::{base, ct, fib, meta};
use crate::nft::field::{RTN_LOCAL, addr_bytes, name_bytes};

/// NFT_META_IIF, NFT_META_PKTTYPE.
const IIF: u32 = 4;
const PKTTYPE: u32 = 19;

/// NF_CT_STATE_BIT(IP_CT_NEW) and NF_CT_STATE_UNTRACKED_BIT, the same in iptables' matches.
const NEW: u32 = 0x08;
const UNTRACKED: u32 = 0x40;

/// Bytes of all registers.
pub(super) const REGISTERS: usize = 64;

/// Whether a packet has a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tracking {
    Tracked,
    /// A rule may have left it without one.
    Perhaps,
    Untracked,
}

/// The bytes of the packet that are known.
pub(super) struct Packet<'a> {
    pub(super) arrival: &'a Arrival,
    pub(super) tracking: Tracking,
}

impl Packet<'_> {
    /// The state of its connection; `None` where it is not known whether it has one.
    pub(super) const fn state(&self) -> Option<u32> {
        match self.tracking {
            Tracking::Tracked => Some(NEW),
            Tracking::Perhaps => None,
            Tracking::Untracked => Some(UNTRACKED),
        }
    }

    pub(super) fn meta(&self, key: u32) -> Vec<Option<u8>> {
        let v4 = self.arrival.to.is_ipv4();
        let (name, index) = &self.arrival.link;
        known(&match key {
            meta::PROTOCOL => if v4 { [0x08, 0x00] } else { [0x86, 0xdd] }.to_vec(),
            meta::NFPROTO => vec![if v4 { 2 } else { 10 }],
            meta::L4PROTO => vec![self.arrival.protocol],
            meta::IIFNAME => name_bytes(name).to_vec(),
            meta::OIFNAME => vec![0; 16],
            IIF => index.to_ne_bytes().to_vec(),
            // For this host.
            PKTTYPE => vec![0],
            _ => return vec![None; 16],
        })
    }

    pub(super) fn ct(&self, key: u32) -> Vec<Option<u8>> {
        match key {
            ct::STATE => self.state().map_or(vec![None; 4], |state| known(&state.to_ne_bytes())),
            _ if self.tracking != Tracking::Tracked => vec![None; 16],
            ct::DIRECTION => vec![Some(0)],
            // Nothing has translated it, or it would be another packet.
            ct::STATUS => known(&[0; 4]),
            _ => vec![None; 16],
        }
    }

    /// Type of an address: the destination is this host's.
    pub(super) fn address_type(flags: u32) -> Vec<Option<u8>> {
        if flags == fib::DADDR { known(&RTN_LOCAL.to_ne_bytes()) } else { vec![None; 4] }
    }

    pub(super) fn payload(&self, base: u32, offset: u32, length: u32) -> Vec<Option<u8>> {
        let header = match base {
            base::NETWORK => self.network(),
            base::TRANSPORT => self.transport(),
            _ => Vec::new(),
        };
        let (offset, length) = (usize::try_from(offset).unwrap_or(usize::MAX), usize::try_from(length).unwrap_or(0));
        (0..length.min(REGISTERS)).map(|at| header.get(offset.saturating_add(at)).copied().flatten()).collect()
    }

    fn network(&self) -> Vec<Option<u8>> {
        let address =
            |addr: Option<IpAddr>, length: usize| addr.map_or(vec![None; length], |addr| known(&addr_bytes(addr)));
        let Arrival { from, to, protocol, .. } = self.arrival;
        if to.is_ipv4() {
            let mut header = vec![None; 6];
            // Whole, and whoever sends it lets it be fragmented.
            header.extend([Some(0), Some(0), None, Some(*protocol), None, None]);
            header.extend(address(*from, 4));
            header.extend(address(Some(*to), 4));
            return header;
        }
        let mut header = vec![None; 6];
        header.extend([Some(*protocol), None]);
        header.extend(address(*from, 16));
        header.extend(address(Some(*to), 16));
        header
    }

    fn transport(&self) -> Vec<Option<u8>> {
        let mut header = vec![None; 2];
        header.extend(self.arrival.port.map_or(vec![None; 2], |port| known(&port.to_be_bytes())));
        header
    }
}

/// Bytes that are all known.
pub(super) fn known(bytes: &[u8]) -> Vec<Option<u8>> {
    bytes.iter().copied().map(Some).collect()
}
