//! Settings of a bridge and its ports that the CNI plugin needs besides what every link has.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

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
}
