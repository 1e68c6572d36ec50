//! Addresses of links.
//!
//! An address is identified by link, address and prefix length, as in the kernel (net/ipv4/devinet.c
//! `find_matching_ifa`): the same address with another length is another row.

use std::fmt;
use std::net::IpAddr;

use crate::IfName;

/// One address on one link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressKey {
    /// The link that holds the address.
    pub link: IfName,
    /// The address, with its host bits.
    pub addr: IpAddr,
    /// Prefix length: 0..=32 or 0..=128.
    pub len: u8,
}

impl fmt::Display for AddressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} dev {}", self.addr, self.len, self.link)
    }
}

/// How an address must be set; two addresses of one key differ only in this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address;

impl fmt::Display for Address {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// An address of an interface, with what its owner says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub addr: IpAddr,
    /// Prefix length of its network.
    pub len: u8,
    /// It is on its way out (IFA_F_DEPRECATED), or not to be used yet or at all (IFA_F_TENTATIVE, IFA_F_DADFAILED).
    pub unfit: bool,
    /// It ends unless somebody prolongs it, as DHCP and router advertisements do (not IFA_F_PERMANENT).
    pub dynamic: bool,
    /// Changed every few hours for privacy (IFA_F_TEMPORARY of IPv6).
    pub temporary: bool,
}

impl InterfaceAddress {
    /// An address that somebody has set for good.
    #[must_use]
    pub const fn lasting(addr: IpAddr, len: u8) -> Self {
        Self { addr, len, unfit: false, dynamic: false, temporary: false }
    }
}
