//! nftables: tables, chains, rules, sets, maps and their elements.
//!
//! Every write is one transaction of the kernel: all of it or nothing. The types on the wire are our own attribute
//! writer and tolerant reader, not those of netlink-packet-netfilter 0.4: that crate drops a whole message when one
//! attribute in it does not parse, leaves out NLA_F_NESTED where newer kernels insist on it, and knows five of the
//! twelve kinds of expression that we write; the other seven would be raw attributes anyway.
//!
//! Invariants. Another program's table is never touched, except for the accept rules that [`forward`] marks as ours and
//! for leftovers that [`Nft::remove_foreign`] is asked to take away. A rule that somebody made and that we cannot read
//! makes our table unequal and is never an error.
//!
//! Constants are those of include/uapi/linux/netfilter/nf_tables.h.

pub mod arrival;
mod compile;
mod counter;
mod element;
mod expression;
mod field;
mod flowtable;
mod foreign;
pub mod forward;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod holding;
mod layout;
mod listing;
mod monitor;
mod recognise;
mod tables;
pub mod trace;
mod transaction;
mod trial;
mod userdata;
mod wire;
mod write;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::{KernelError, SocketError};
use crate::socket::Socket;

pub use counter::{Counted, Tally};
pub use foreign::{Denial, Fate, ForeignRule};
pub use holding::{ClaimError, Owns, Shape};
#[cfg(feature = "watch")]
pub use monitor::Stream;
pub use monitor::{Change, Monitor};
pub use tables::Tables;

/// A conversation with nftables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens the conversation.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let error = |error: SocketError| KernelError::new("open", "nftables", error);
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER).map_err(error)? })
    }

    /// The port id that the kernel writes into the notifications of what this conversation changed.
    ///
    /// # Errors
    /// When the socket cannot be examined.
    pub fn port(&self) -> Result<u32, KernelError> {
        self.socket.port().map_err(|error| KernelError::new("ask for port of", "nftables", error))
    }
}

/// enum nft_table_attributes.
mod table {
    pub(super) const NAME: u16 = 1;
    pub(super) const FLAGS: u16 = 2;
    /// NFT_TABLE_F_DORMANT.
    pub(super) const DORMANT: u32 = 0x1;
    /// NFT_TABLE_F_OWNER: it goes with its socket.
    pub(super) const OWNER: u32 = 0x2;
}

/// enum nft_chain_attributes, enum nft_hook_attributes.
mod chain {
    pub(super) const NAME: u16 = 3;
    pub(super) const HOOK: u16 = 4;
    pub(super) const POLICY: u16 = 5;
    pub(super) const TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    /// There when the chain has one link.
    pub(super) const HOOK_DEV: u16 = 3;
    /// Policies are verdicts (include/uapi/linux/netfilter.h).
    pub(super) const NF_DROP: u32 = 0;
    pub(super) const NF_ACCEPT: u32 = 1;
}

/// enum nft_rule_attributes.
mod rule {
    pub(super) const CHAIN: u16 = 2;
    pub(super) const HANDLE: u16 = 3;
    pub(super) const EXPRESSIONS: u16 = 4;
    pub(super) const USERDATA: u16 = 7;
}

/// enum nft_set_attributes.
mod set {
    pub(super) const NAME: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const KEY_TYPE: u16 = 4;
    pub(super) const KEY_LEN: u16 = 5;
    pub(super) const DATA_TYPE: u16 = 6;
    pub(super) const DATA_LEN: u16 = 7;
    pub(super) const ID: u16 = 10;
    pub(super) const USERDATA: u16 = 13;
    /// What each element does with a packet that finds it.
    pub(super) const EXPRESSION: u16 = 17;
}
