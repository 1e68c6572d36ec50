//! Virtual addresses, as /32 addresses of a dummy link.
//!
//! IPVS sees packets on their way into this host only (NF_INET_LOCAL_IN), so a virtual address must be local. The link is
//! called `kube-ipvs0` as kube-proxy's is: network plugins know to leave that one alone when they look for the node's own
//! address, and a node that changes over keeps its addresses. It stays down: the kernel makes addresses of a downed
//! link local all the same (fib_add_ifaddr), and nothing can be sent through it.
//!
//! An address of a network that belongs to no Service stays unreachable so, and every change is announced to who watches addresses. The
//! kernel walks the link's list on each insertion: 5,000, 10,000 and 20,000 addresses took 0.13, 0.63 and 4.1 s of its time in all (Linux
//! 6.18, beside other work), a local route for all of them none: that is what [`super::local`] has, where it is asked for.

use std::net::IpAddr;

use netstate::{AddressKey, IfName, Link, LinkKind};

/// Name of the link.
pub(crate) const LINK_NAME: &str = "kube-ipvs0";

/// The link that holds the virtual addresses.
#[must_use]
pub(crate) const fn link() -> Link {
    Link { kind: LinkKind::Dummy, mtu: None, mac: None, up: false, master: None }
}

/// The row of a virtual address on the link called `link`.
#[must_use]
pub(crate) fn address(link: &IfName, addr: IpAddr) -> AddressKey {
    AddressKey { link: link.clone(), addr, len: if addr.is_ipv4() { 32 } else { 128 } }
}
