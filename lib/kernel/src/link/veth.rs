//! Veth pairs: a Pod's interface and its end on the node.
//!
//! Invariant: one message makes both ends where they belong, with their names, addresses and MTU, so no half-made pair is
//! ever visible under a wrong name or in the wrong namespace.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::{IfName, MacAddr};

use super::read::state;
use crate::error::{Cause, KernelError};
use crate::netns::Netns;
use crate::rtnl::{Operation, Rtnl, encode};

/// Transmit queue length of veth ends, in packets; the kernel's default for Ethernet, which a veth lacks otherwise.
pub const VETH_TXQLEN: u32 = 1000;

/// One end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethEnd {
    /// Name in its namespace.
    pub name: IfName,
    /// Hardware address; fixed, so that nothing rewrites it later (udev's MACAddressPolicy).
    pub mac: MacAddr,
}

/// Interface indexes of a veth pair, each in its own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPair {
    /// The end made here.
    pub host: u32,
    /// The other end.
    pub peer: u32,
}

impl Rtnl {
    /// Makes a veth pair in one message: `host` here, up and a port of `master`; `peer` born in `netns`, still down.
    /// Both ends get `mtu` bytes.
    ///
    /// # Errors
    /// EEXIST when one of the names is taken (the text says which end), or anything the kernel refuses.
    pub fn create_veth(
        &mut self,
        host: &VethEnd,
        master: u32,
        peer: &VethEnd,
        netns: &Netns,
        mtu: u32,
    ) -> Result<VethPair, KernelError> {
        let mut inner = end_message(peer, mtu);
        inner.attributes.push(LinkAttribute::NetNsFd(netns.raw_fd()));
        let mut message = end_message(host, mtu);
        message.attributes.push(LinkAttribute::Controller(master));
        message.header.flags |= LinkFlags::Up;
        message.header.change_mask |= LinkFlags::Up;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
        ]));
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        let message = encode(&RouteNetlinkMessage::NewLink(message), flags);
        let object = format!("{} with peer {} in {}", host.name, peer.name, netns.path().display());
        let operation = Operation { op: "create veth", object, message };
        let echo = self.request(&operation)?;
        // Linux before 6.2 does not echo the new link: ask for it by name.
        let link = match echo.iter().find_map(state) {
            Some(link) => Some(link),
            None => self.link(&host.name)?,
        };
        let missing = || KernelError::new("create veth", &host.name, Cause::Missing("the new link".to_owned()));
        let link = link.ok_or_else(missing)?;
        Ok(VethPair { host: link.index, peer: link.lower_index.ok_or_else(missing)? })
    }
}

fn end_message(end: &VethEnd, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.attributes = vec![
        LinkAttribute::IfName(end.name.to_string()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(VETH_TXQLEN),
        LinkAttribute::Address(end.mac.0.to_vec()),
    ];
    message
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn end_is_born_with_name_size_queue_and_address() {
        let end = VethEnd { name: IfName::new("veth1").unwrap(), mac: netstate::MacAddr([2, 0, 0, 0, 0, 1]) };
        let message = encode(&RouteNetlinkMessage::NewLink(end_message(&end, 1450)), NLM_F_CREATE | NLM_F_EXCL);
        let queue = golden::hex(&VETH_TXQLEN.to_ne_bytes());
        assert_eq!(
            golden::message(&message, 16),
            format!(
                "type 16 flags 0x600\n{}\n3: 766574683100\n4: aa050000\n13: {queue}\n1: 020000000001\n",
                "00".repeat(16)
            )
        );
    }
}
