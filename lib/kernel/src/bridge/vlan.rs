//! VLANs of bridge ports, and whether a bridge filters by them at all.
//!
//! Invariant: a port is set as a whole, in one batch: what it had goes first, unless the caller keeps it.

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkExtentMask,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::IfName;
use netstate::vlan::{PortVlans, VLAN_MAX, VlanMode};

use crate::attribute;
use crate::error::KernelError;
use crate::rtnl::{Operation, Rtnl, encode};
use crate::socket::Frame;

/// Bytes of `ifinfomsg` (include/uapi/linux/rtnetlink.h).
const IFINFOMSG: usize = 16;
const IFLA_AF_SPEC: u16 = 26;
/// `struct bridge_vlan_info` (include/uapi/linux/if_bridge.h): flags, then the identifier.
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const PVID: u16 = 0x02;
const UNTAGGED: u16 = 0x04;
const RANGE_BEGIN: u16 = 0x08;
const RANGE_END: u16 = 0x10;

impl Rtnl {
    /// Makes the bridge called `name` look at VLAN tags, and drop what a port does not carry.
    ///
    /// # Errors
    /// EOPNOTSUPP from a kernel without CONFIG_BRIDGE_VLAN_FILTERING.
    pub fn filter_vlans(&mut self, name: &IfName) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]));
        let message = encode(&RouteNetlinkMessage::NewLink(message), 0);
        self.request(&Operation { op: "filter VLANs on bridge", object: name.to_string(), message }).map(drop)
    }

    /// Makes the bridge port with `index` carry `vlans`, and with `keep` besides them what it carries already: a new port
    /// carries the bridge's default VLAN, 1 as a rule.
    ///
    /// # Errors
    /// When the link is no bridge port, or the kernel refuses.
    pub fn set_port_vlans(&mut self, index: u32, vlans: &PortVlans, keep: bool) -> Result<(), KernelError> {
        let object = format!("of bridge port {index}: {vlans}");
        let mut operations = Vec::new();
        if !keep {
            let all = vec![info(1, BridgeVlanInfoFlags::RangeBegin), info(VLAN_MAX, BridgeVlanInfoFlags::RangeEnd)];
            let message = encode(&RouteNetlinkMessage::DelLink(message(index, all)), 0);
            operations.push(Ok(Operation { op: "remove VLANs", object: object.clone(), message }));
        }
        let wanted: Vec<AfSpecBridge> = vlans.ranges().into_iter().flat_map(range).collect();
        if !wanted.is_empty() {
            let message = encode(&RouteNetlinkMessage::SetLink(message(index, wanted)), 0);
            operations.push(Ok(Operation { op: "set VLANs", object, message }));
        }
        self.batch(operations).into_iter().collect()
    }

    /// The VLANs that the bridge port with `index` carries; none for a link that is no port.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn port_vlans(&mut self, index: u32) -> Result<PortVlans, KernelError> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]));
        let frames = self.dump("list VLANs of bridge ports", &RouteNetlinkMessage::GetLink(message))?;
        Ok(frames.iter().find_map(|frame| port(frame, index)).unwrap_or_default())
    }
}

fn message(index: u32, vlans: Vec<AfSpecBridge>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(vlans));
    message
}

fn info(vid: u16, flags: BridgeVlanInfoFlags) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
}

fn range((first, last, mode): (u16, u16, VlanMode)) -> Vec<AfSpecBridge> {
    let flags = match mode {
        VlanMode::Native => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        VlanMode::Untagged => BridgeVlanInfoFlags::Untagged,
        VlanMode::Tagged => BridgeVlanInfoFlags::empty(),
    };
    match first == last {
        true => vec![info(first, flags)],
        false => vec![
            info(first, flags | BridgeVlanInfoFlags::RangeBegin),
            info(last, flags | BridgeVlanInfoFlags::RangeEnd),
        ],
    }
}

pub(crate) fn port(frame: &Frame, index: u32) -> Option<PortVlans> {
    let [_, _, _, _, i0, i1, i2, i3, ..] = *frame.body.first_chunk::<IFINFOMSG>()?;
    if u32::from_ne_bytes([i0, i1, i2, i3]) != index {
        return None;
    }
    let spec = attribute::find(frame.body.get(IFINFOMSG..)?, IFLA_AF_SPEC)?;
    Some(read(spec))
}

/// Reads the list, in which a range is two entries.
fn read(spec: &[u8]) -> PortVlans {
    let mut vlans = PortVlans::default();
    let mut begun = None;
    for (_, value) in attribute::iter(spec).filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO) {
        let Some([f0, f1, v0, v1]) = value.first_chunk::<4>().copied() else { continue };
        let (flags, vid) = (u16::from_ne_bytes([f0, f1]), u16::from_ne_bytes([v0, v1]));
        if flags & RANGE_BEGIN != 0 {
            begun = Some(vid);
            continue;
        }
        let first = if flags & RANGE_END != 0 { begun.take().unwrap_or(vid) } else { vid };
        let mode = match flags & (PVID | UNTAGGED) {
            0 => VlanMode::Tagged,
            UNTAGGED => VlanMode::Untagged,
            _ => VlanMode::Native,
        };
        vlans.0.extend((first..=vid.min(VLAN_MAX)).map(|vid| (vid, mode)));
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;

    fn written(vlans: &PortVlans) -> Vec<u8> {
        let list: Vec<AfSpecBridge> = vlans.ranges().into_iter().flat_map(range).collect();
        let mut bytes = vec![0; list.as_slice().buffer_len()];
        list.as_slice().emit(&mut bytes);
        bytes
    }

    #[test]
    fn vlans_of_a_port_golden() {
        let mut vlans = PortVlans::default();
        vlans.0.insert(100, VlanMode::Native);
        vlans.0.extend((200..=210).map(|id| (id, VlanMode::Tagged)));
        // As `bridge vlan add vid 100 pvid untagged` and `vid 200-210` write them.
        let mut golden = Vec::new();
        for (flags, vid) in [(PVID | UNTAGGED, 100_u16), (RANGE_BEGIN, 200), (RANGE_END, 210)] {
            for half in [8, IFLA_BRIDGE_VLAN_INFO, flags, vid] {
                golden.extend_from_slice(&half.to_ne_bytes());
            }
        }
        assert_eq!(written(&vlans), golden);
        assert_eq!(read(&golden), vlans);
    }

    #[test]
    fn torn_and_odd_lists_are_read_as_far_as_they_go() {
        assert_eq!(read(&[]), PortVlans::default());
        assert_eq!(read(&[8, 0, 2, 0, 0]), PortVlans::default());
        // An end without a beginning is itself; identifiers beyond the last are none.
        let entry = |flags: u16, vid: u16| {
            [8_u16, IFLA_BRIDGE_VLAN_INFO, flags, vid].iter().flat_map(|half| half.to_ne_bytes()).collect::<Vec<u8>>()
        };
        assert_eq!(read(&entry(RANGE_END, 7)).to_string(), "7 tagged");
        assert_eq!(
            read(&[entry(RANGE_BEGIN, 4093), entry(RANGE_END, u16::MAX)].concat()).to_string(),
            "4093-4094 tagged"
        );
    }
}
