//! Settings of a bridge and its ports that the CNI plugin needs besides what every link has.

mod vlan;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use vlan::port as port_vlans;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netstate::PortOptions;

use crate::error::KernelError;
use crate::rtnl::{Operation, Rtnl, encode};

impl Rtnl {
    /// Lets the link with `index` receive frames for any hardware address (IFF_PROMISC).
    ///
    /// # Errors
    /// When the link does not exist or the kernel refuses.
    pub fn set_promiscuous(&mut self, index: u32) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Promisc;
        message.header.change_mask = LinkFlags::Promisc;
        let message = encode(&RouteNetlinkMessage::SetLink(message), 0);
        self.request(&Operation { op: "set promiscuous", object: format!("link {index}"), message }).map(drop)
    }

    /// Sets the bridge port options of the port with `index`.
    ///
    /// # Errors
    /// When the link is no bridge port, or the kernel refuses an option.
    pub fn set_port(&mut self, index: u32, options: PortOptions) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(options.hairpin),
                InfoBridgePort::Isolated(options.isolated),
            ])),
        ]));
        let message = encode(&RouteNetlinkMessage::NewLink(message), 0);
        let object = format!("with index {index}");
        self.request(&Operation { op: "set bridge port", object, message }).map(drop)
    }
}
