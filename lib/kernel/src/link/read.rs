//! Links as the kernel lists them.
//!
//! Invariant: a link with attributes nobody knows is still a link; only what has no usable name is left out.

use netlink_packet_route::link::LinkFlags;
use netstate::{BridgeOptions, IfName, IpipOptions, Link, LinkKind, MacAddr};

use super::{LinkState, vxlan};
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
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;
const RTM_NEWLINK: u16 = 16;

/// include/uapi/linux/if.h
const IF_OPER_UP: u8 = 6;

pub(crate) fn state(frame: &Frame) -> Option<LinkState> {
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
        lower_index: number(IFLA_LINK).or_else(|| vxlan::lower(find(IFLA_LINKINFO)?)).filter(|index| *index != 0),
        peer_netns_id: number(IFLA_LINK_NETNSID).map(u32::cast_signed),
        running: flags.contains(LinkFlags::Running),
        operational: find(IFLA_OPERSTATE).is_some_and(|state| state.first() == Some(&IF_OPER_UP)),
        promiscuous: flags.contains(LinkFlags::Promisc),
    })
}

fn kind(info: &[u8]) -> LinkKind {
    let name = attribute::find(info, IFLA_INFO_KIND).map(attribute::text).unwrap_or_default();
    let data = attribute::find(info, IFLA_INFO_DATA).unwrap_or_default();
    let flag = |kind| attribute::find(data, kind).is_some_and(|value| value.first() == Some(&1));
    match name.as_str() {
        "bridge" => LinkKind::Bridge(BridgeOptions { vlan_filtering: flag(IFLA_BR_VLAN_FILTERING) }),
        "vxlan" => LinkKind::Vxlan(vxlan::options(data)),
        "ipip" => {
            let addr =
                |kind| attribute::find(data, kind).and_then(attribute::ipv4).filter(|addr| !addr.is_unspecified());
            LinkKind::Ipip(IpipOptions { local: addr(IFLA_IPTUN_LOCAL), remote: addr(IFLA_IPTUN_REMOTE) })
        }
        "wireguard" => LinkKind::Wireguard,
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

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use netstate::VxlanOptions;

    use super::vxlan::{
        IFLA_VXLAN_GBP, IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6,
        IFLA_VXLAN_PORT,
    };
    use super::*;
    use crate::attribute::Writer;
    use crate::golden;

    fn listed(flags: u32, fill: impl FnOnce(&mut Writer)) -> Frame {
        let mut body = Writer::behind([&[0, 0, 1, 0, 7, 0, 0, 0][..], &flags.to_ne_bytes(), &[0; 4]].concat());
        fill(&mut body);
        golden::frame(RTM_NEWLINK, body.finish())
    }

    fn of_kind(name: &str, data: impl FnOnce(&mut Writer)) -> LinkState {
        let frame = listed(0, |body| {
            body.put_str(IFLA_IFNAME, "x0").nest(IFLA_LINKINFO, |info| {
                info.put_str(IFLA_INFO_KIND, name).nest(IFLA_INFO_DATA, data);
            });
        });
        state(&frame).unwrap()
    }

    #[test]
    fn link_is_read_with_every_setting() {
        let frame = listed(0x1 | 0x40 | 0x100, |body| {
            body.put_str(IFLA_IFNAME, "eth0")
                .put(IFLA_MTU, &1500u32.to_ne_bytes())
                .put(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]);
            body.put(IFLA_MASTER, &3u32.to_ne_bytes()).put(IFLA_OPERSTATE, &[IF_OPER_UP]);
            body.put(IFLA_LINK, &9u32.to_ne_bytes())
                .put(IFLA_LINK_NETNSID, &(-1i32).to_ne_bytes())
                .put(999, b"unknown");
        });
        let read = state(&frame).unwrap();
        assert_eq!((read.index, read.name.as_str()), (7, "eth0"));
        assert_eq!((read.link.mtu, read.link.mac, read.link.up), (Some(1500), Some(MacAddr([2, 0, 0, 0, 0, 1])), true));
        assert_eq!((read.master_index, read.lower_index, read.peer_netns_id), (Some(3), Some(9), Some(-1)));
        assert_eq!((read.running, read.operational, read.promiscuous), (true, true, true));
        assert_eq!(read.link.kind, LinkKind::Other(String::new()), "a physical device says no kind");
    }

    #[test]
    fn link_with_nothing_but_a_name_is_one() {
        let read = state(&listed(0, |body| {
            body.put_str(IFLA_IFNAME, "x0");
        }));
        let read = read.unwrap();
        assert_eq!((read.link.mtu, read.link.mac, read.link.up), (None, None, false));
        assert_eq!((read.master_index, read.lower_index, read.operational), (None, None, false));
        let odd = state(&listed(0, |body| {
            // A hardware address of another length, and no master (index 0).
            body.put_str(IFLA_IFNAME, "ib0").put(IFLA_ADDRESS, &[0; 20]).put(IFLA_MASTER, &[0; 4]);
        }));
        let odd = odd.unwrap();
        assert_eq!((odd.link.mac, odd.master_index), (None, None));
    }

    #[test]
    fn kinds_are_read_with_the_options_that_only_birth_sets() {
        let vxlan = of_kind("vxlan", |data| {
            data.put(IFLA_VXLAN_ID, &1u32.to_ne_bytes()).put(IFLA_VXLAN_PORT, &8472u16.to_be_bytes());
            data.put(IFLA_VXLAN_LOCAL, &[10, 4, 7, 21]).put(IFLA_VXLAN_LINK, &2u32.to_ne_bytes());
            data.put(IFLA_VXLAN_LEARNING, &[0]).put(IFLA_VXLAN_GBP, &[]);
        });
        assert_eq!(vxlan.lower_index, Some(2), "IFLA_VXLAN_LINK, for there is no IFLA_LINK");
        let local = Some("10.4.7.21".parse().unwrap());
        let options = VxlanOptions { local, gbp: true, ..VxlanOptions::new(1, 8472) };
        assert_eq!(vxlan.link.kind, LinkKind::Vxlan(options));
        let six = of_kind("vxlan", |data| {
            data.put(IFLA_VXLAN_LOCAL6, &[0xfd; 16]).put(IFLA_VXLAN_LEARNING, &[1]);
        });
        match six.link.kind {
            LinkKind::Vxlan(options) => {
                assert!(options.local.unwrap().is_ipv6() && options.learning && !options.gbp);
            }
            other => panic!("{other:?}"),
        }
        let bridge = |value: &[u8]| {
            of_kind("bridge", |data| {
                data.put(IFLA_BR_VLAN_FILTERING, value);
            })
        };
        assert_eq!(bridge(&[1]).link.kind, LinkKind::Bridge(BridgeOptions { vlan_filtering: true }));
        assert_eq!(bridge(&[0]).link.kind, LinkKind::Bridge(BridgeOptions { vlan_filtering: false }));
        assert_eq!(of_kind("dummy", |_| {}).link.kind, LinkKind::Dummy);
        assert_eq!(of_kind("veth", |_| {}).link.kind, LinkKind::Veth);
        assert_eq!(of_kind("wireguard", |_| {}).link.kind, LinkKind::Wireguard);
        assert_eq!(of_kind("gtp", |_| {}).link.kind, LinkKind::Other("gtp".to_owned()));
        let ipip = of_kind("ipip", |data| {
            data.put(IFLA_IPTUN_LOCAL, &[10, 4, 7, 21]).put(IFLA_IPTUN_REMOTE, &[0; 4]);
        });
        let options = IpipOptions { local: Some([10, 4, 7, 21].into()), remote: None };
        assert_eq!(ipip.link.kind, LinkKind::Ipip(options), "0.0.0.0 is any");
        let other = of_kind("geneve", |data| {
            data.put(IFLA_VXLAN_LINK, &2u32.to_ne_bytes());
        });
        assert_eq!(other.lower_index, None, "the number means something else there");
    }

    #[test]
    fn references_are_named_where_the_link_is_known() {
        let mut links = [of_kind("vxlan", |data| {
            data.put(IFLA_VXLAN_LINK, &2u32.to_ne_bytes());
        })];
        links[0].master_index = Some(3);
        name_references(&mut links, |index| (index == 2).then(|| IfName::new("eth0").unwrap()));
        assert_eq!(links[0].link.master, None, "index 3 is nobody's");
        match &links[0].link.kind {
            LinkKind::Vxlan(options) => assert_eq!(options.lower, Some(IfName::new("eth0").unwrap())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn torn_and_nameless_messages_are_no_links() {
        let whole = listed(0, |body| {
            body.put_str(IFLA_IFNAME, "eth0");
        });
        assert!(golden::torn(RTM_NEWLINK, &whole.body[..IFINFOMSG]).all(|frame| state(&frame).is_none()));
        assert!(state(&listed(0, |_| {})).is_none());
        assert!(state(&golden::frame(17, whole.body)).is_none(), "a removal");
        let unusable = listed(0, |body| {
            body.put_str(IFLA_IFNAME, "a/b");
        });
        assert!(state(&unusable).is_none());
    }
}
