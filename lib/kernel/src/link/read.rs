//! Links as the kernel lists them.
//!
//! Invariant: a link with attributes nobody knows is still a link; only what has no usable name is left out.

use netlink_packet_route::link::LinkFlags;
use netstate::{BridgeOptions, IfName, Link, LinkKind, MacAddr, VxlanOptions};

use super::LinkState;
use crate::attribute;
use crate::socket::Frame;

/// Bytes of `ifinfomsg` (include/uapi/linux/rtnetlink.h).
const IFINFOMSG: usize = 16;

// Attributes of links (include/uapi/linux/if_link.h).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
const RTM_NEWLINK: u16 = 16;

/// include/uapi/linux/if.h
const IF_OPER_UP: u8 = 6;

pub(super) fn state(frame: &Frame) -> Option<LinkState> {
    if frame.kind != RTM_NEWLINK {
        return None;
    }
    let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *frame.body.first_chunk::<IFINFOMSG>()?;
    let attributes = frame.body.get(IFINFOMSG..)?;
    let find = |kind| attribute::find(attributes, kind);
    let number = |kind| find(kind).and_then(attribute::u32);
    let name = IfName::new(attribute::text(find(IFLA_IFNAME)?)).ok()?;
    let flags = LinkFlags::from_bits_retain(u32::from_ne_bytes([f0, f1, f2, f3]));
    let link = Link {
        kind: find(IFLA_LINKINFO).map_or_else(|| LinkKind::Other(String::new()), kind),
        mtu: number(IFLA_MTU),
        mac: find(IFLA_ADDRESS).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).map(MacAddr),
        up: flags.contains(LinkFlags::Up),
        master: None,
    };
    Some(LinkState {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name,
        link,
        master_index: number(IFLA_MASTER).filter(|index| *index != 0),
        lower_index: number(IFLA_LINK).or_else(|| vxlan_lower(find(IFLA_LINKINFO)?)).filter(|index| *index != 0),
        peer_netns_id: number(IFLA_LINK_NETNSID).map(u32::cast_signed),
        running: flags.contains(LinkFlags::Running),
        operational: find(IFLA_OPERSTATE).is_some_and(|state| state.first() == Some(&IF_OPER_UP)),
        promiscuous: flags.contains(LinkFlags::Promisc),
    })
}

/// The lower device of a VXLAN device, which is not in IFLA_LINK.
fn vxlan_lower(info: &[u8]) -> Option<u32> {
    let data = attribute::find(info, IFLA_INFO_DATA)?;
    let vxlan = attribute::find(info, IFLA_INFO_KIND).map(attribute::text)? == "vxlan";
    attribute::find(data, IFLA_VXLAN_LINK).and_then(attribute::u32).filter(|_| vxlan)
}

fn kind(info: &[u8]) -> LinkKind {
    let name = attribute::find(info, IFLA_INFO_KIND).map(attribute::text).unwrap_or_default();
    let data = attribute::find(info, IFLA_INFO_DATA).unwrap_or_default();
    let flag = |kind| attribute::find(data, kind).is_some_and(|value| value.first() == Some(&1));
    match name.as_str() {
        "bridge" => LinkKind::Bridge(BridgeOptions { vlan_filtering: flag(IFLA_BR_VLAN_FILTERING) }),
        "vxlan" => LinkKind::Vxlan(VxlanOptions {
            vni: attribute::find(data, IFLA_VXLAN_ID).and_then(attribute::u32).unwrap_or(0),
            port: attribute::find(data, IFLA_VXLAN_PORT).and_then(attribute::be16).unwrap_or(0),
            local: attribute::find(data, IFLA_VXLAN_LOCAL)
                .or_else(|| attribute::find(data, IFLA_VXLAN_LOCAL6))
                .and_then(attribute::ip),
            lower: None,
            learning: flag(IFLA_VXLAN_LEARNING),
            gbp: attribute::find(data, IFLA_VXLAN_GBP).is_some(),
        }),
        "dummy" => LinkKind::Dummy,
        "veth" => LinkKind::Veth,
        other => LinkKind::Other(other.to_owned()),
    }
}

/// Fills in the names of masters and lower devices.
pub(super) fn name_references(links: &mut [LinkState], name: impl Fn(u32) -> Option<IfName>) {
    for state in links {
        state.link.master = state.master_index.and_then(&name);
        if let LinkKind::Vxlan(options) = &mut state.link.kind {
            options.lower = state.lower_index.and_then(&name);
        }
    }
}
