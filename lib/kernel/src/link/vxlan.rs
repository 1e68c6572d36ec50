//! VXLAN devices: how they are read, made and changed in place (drivers/net/vxlan/vxlan_core.c).
//!
//! Invariant: every option is read that changes what the device does to packets. What the kernel changes on a device that
//! exists is changed there (vxlan_changelink), and a message says nothing else: the kernel refuses one that says what only
//! birth sets, even the same.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage, VxlanDf};
use netstate::{IfName, VxlanExtra, VxlanOptions};

use super::read::{IFLA_INFO_DATA, IFLA_INFO_KIND};
use crate::attribute;
use crate::error::KernelError;
use crate::rtnl::{Operation, Rtnl, encode};

// Attributes of VXLAN devices (include/uapi/linux/if_link.h).
pub(super) const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
pub(super) const IFLA_VXLAN_LINK: u16 = 3;
pub(super) const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_TOS: u16 = 6;
pub(super) const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_LIMIT: u16 = 9;
const IFLA_VXLAN_PORT_RANGE: u16 = 10;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_RSC: u16 = 12;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
pub(super) const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
pub(super) const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_REMCSUM_TX: u16 = 21;
const IFLA_VXLAN_REMCSUM_RX: u16 = 22;
pub(super) const IFLA_VXLAN_GBP: u16 = 23;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_VXLAN_GPE: u16 = 27;
const IFLA_VXLAN_TTL_INHERIT: u16 = 28;
const IFLA_VXLAN_DF: u16 = 29;
const IFLA_VXLAN_VNIFILTER: u16 = 30;

/// Extras that are one byte, 1 when on.
const SWITCHES: [(u16, VxlanExtra); 11] = [
    (IFLA_VXLAN_TTL_INHERIT, VxlanExtra::TtlInherit),
    (IFLA_VXLAN_UDP_ZERO_CSUM6_TX, VxlanExtra::ZeroChecksumSent),
    (IFLA_VXLAN_UDP_ZERO_CSUM6_RX, VxlanExtra::ZeroChecksumTaken),
    (IFLA_VXLAN_L2MISS, VxlanExtra::L2Miss),
    (IFLA_VXLAN_L3MISS, VxlanExtra::L3Miss),
    (IFLA_VXLAN_PROXY, VxlanExtra::Proxy),
    (IFLA_VXLAN_RSC, VxlanExtra::RouteShortCircuit),
    (IFLA_VXLAN_COLLECT_METADATA, VxlanExtra::External),
    (IFLA_VXLAN_REMCSUM_TX, VxlanExtra::RemoteChecksum),
    (IFLA_VXLAN_REMCSUM_RX, VxlanExtra::RemoteChecksum),
    (IFLA_VXLAN_VNIFILTER, VxlanExtra::VniFilter),
];

/// The lower device in a link's IFLA_LINKINFO; it is not in IFLA_LINK.
pub(super) fn lower(info: &[u8]) -> Option<u32> {
    let data = attribute::find(info, IFLA_INFO_DATA)?;
    let vxlan = attribute::find(info, IFLA_INFO_KIND).map(attribute::text)? == "vxlan";
    attribute::find(data, IFLA_VXLAN_LINK).and_then(attribute::u32).filter(|_| vxlan)
}

/// The options in the data of a listed device; the lower device has no name yet.
pub(super) fn options(data: &[u8]) -> VxlanOptions {
    let find = |kind| attribute::find(data, kind);
    let byte = |kind| find(kind).and_then(<[u8]>::first).copied().unwrap_or(0);
    VxlanOptions {
        local: find(IFLA_VXLAN_LOCAL).or_else(|| find(IFLA_VXLAN_LOCAL6)).and_then(attribute::ip),
        learning: byte(IFLA_VXLAN_LEARNING) == 1,
        gbp: find(IFLA_VXLAN_GBP).is_some(),
        ttl: byte(IFLA_VXLAN_TTL),
        tos: byte(IFLA_VXLAN_TOS),
        df: byte(IFLA_VXLAN_DF),
        extras: extras(data),
        ..VxlanOptions::new(
            find(IFLA_VXLAN_ID).and_then(attribute::u32).unwrap_or(0),
            find(IFLA_VXLAN_PORT).and_then(attribute::be16).unwrap_or(0),
        )
    }
}

fn extras(data: &[u8]) -> BTreeSet<VxlanExtra> {
    let find = |kind| attribute::find(data, kind);
    let is = |kind, value| find(kind).and_then(<[u8]>::first) == Some(&value);
    let group = find(IFLA_VXLAN_GROUP).or_else(|| find(IFLA_VXLAN_GROUP6)).and_then(attribute::ip);
    let ports = |range: &[u8]| Some((attribute::be16(range.get(..2)?)?, attribute::be16(range.get(2..4)?)?));
    let ports = find(IFLA_VXLAN_PORT_RANGE).and_then(ports).filter(|ports| *ports != (0, 0));
    let limit = find(IFLA_VXLAN_LIMIT).and_then(attribute::u32).filter(|limit| *limit != 0);
    let switches = SWITCHES.iter().filter(|(kind, _)| is(*kind, 1)).map(|(_, extra)| *extra);
    switches
        .chain(group.filter(|group| !group.is_unspecified()).map(VxlanExtra::Group))
        .chain(ports.map(|(low, high)| VxlanExtra::SourcePorts(low, high)))
        .chain(limit.map(VxlanExtra::MaxAddresses))
        .chain(is(IFLA_VXLAN_UDP_CSUM, 0).then_some(VxlanExtra::NoUdpChecksum))
        .chain(find(IFLA_VXLAN_GPE).map(|_| VxlanExtra::Gpe))
        .collect()
}

/// What makes a device with these options. Extras are never asked for.
pub(super) fn birth(options: &VxlanOptions, lower: Option<u32>) -> Vec<InfoVxlan> {
    let mut data = vec![InfoVxlan::Id(options.vni), InfoVxlan::Port(options.port)];
    data.push(InfoVxlan::Learning(options.learning));
    data.extend(options.local.map(local));
    data.extend(lower.map(InfoVxlan::Link));
    data.extend(options.gbp.then_some(InfoVxlan::Gbp));
    data
}

fn local(addr: IpAddr) -> InfoVxlan {
    match addr {
        IpAddr::V4(addr) => InfoVxlan::Local(addr),
        IpAddr::V6(addr) => InfoVxlan::Local6(addr),
    }
}

/// True when a device with the options `have` is as wanted.
pub(super) fn satisfies(have: &VxlanOptions, want: &VxlanOptions) -> bool {
    let with_open = VxlanOptions {
        local: want.local.or(have.local),
        lower: want.lower.clone().or_else(|| have.lower.clone()),
        ..want.clone()
    };
    with_open == *have
}

/// True when the kernel can make one into the other in place.
pub(super) fn changes_in_place(have: &VxlanOptions, want: &VxlanOptions) -> bool {
    let of_one_family = have.local.zip(want.local).is_none_or(|(have, want)| have.is_ipv4() == want.is_ipv4());
    of_one_family && (have.vni, have.port, have.gbp, &have.extras) == (want.vni, want.port, want.gbp, &want.extras)
}

impl Rtnl {
    /// Changes a VXLAN device in place where it is not as wanted; what stands on it stays.
    ///
    /// # Errors
    /// When the lower device does not exist; when the kernel refuses.
    pub(super) fn change_vxlan(
        &mut self,
        name: &IfName,
        have: &VxlanOptions,
        want: &VxlanOptions,
    ) -> Result<(), KernelError> {
        let mut data = Vec::new();
        data.extend(want.local.filter(|addr| have.local != Some(*addr)).map(local));
        if let Some(lower) = want.lower.as_ref().filter(|lower| have.lower.as_ref() != Some(lower)) {
            data.push(InfoVxlan::Link(self.required_index(lower, name)?));
        }
        data.extend((have.learning != want.learning).then_some(InfoVxlan::Learning(want.learning)));
        data.extend((have.ttl != want.ttl).then_some(InfoVxlan::Ttl(want.ttl)));
        data.extend((have.tos != want.tos).then_some(InfoVxlan::Tos(want.tos)));
        data.extend((have.df != want.df).then_some(InfoVxlan::Df(VxlanDf::from(want.df))));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let message = encode(&RouteNetlinkMessage::NewLink(message), 0);
        self.request(&Operation { op: "change link", object: name.to_string(), message }).map(drop)
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::attribute::Writer;

    fn read(fill: impl FnOnce(&mut Writer)) -> VxlanOptions {
        let mut data = Writer::default();
        data.put(IFLA_VXLAN_ID, &1u32.to_ne_bytes()).put(IFLA_VXLAN_PORT, &8472u16.to_be_bytes());
        fill(&mut data);
        options(&data.finish())
    }

    #[test]
    fn device_of_flannel_has_no_extras() {
        let device = read(|data| {
            for (kind, _) in SWITCHES {
                data.put(kind, &[0]);
            }
            data.put(IFLA_VXLAN_TTL, &[0]).put(IFLA_VXLAN_TOS, &[0]).put(IFLA_VXLAN_DF, &[0]);
            data.put(IFLA_VXLAN_PORT_RANGE, &[0; 4]).put(IFLA_VXLAN_LIMIT, &[0; 4]).put(IFLA_VXLAN_UDP_CSUM, &[1]);
        });
        assert_eq!(device, VxlanOptions::new(1, 8472));
        // A kernel that does not list the checksum of IPv4 has it on.
        assert_eq!(read(|_| {}), VxlanOptions::new(1, 8472));
    }

    #[test]
    fn each_extra_is_read_by_itself() {
        for (kind, extra) in SWITCHES {
            let device = read(|data| {
                data.put(kind, &[1]);
            });
            assert_eq!(device.extras, [extra].into(), "{kind}");
        }
        let of = |kind, value: &[u8]| {
            let device = read(|data| {
                data.put(kind, value);
            });
            device.extras.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(IFLA_VXLAN_PORT_RANGE, &[0x27, 0x10, 0x27, 0x11]), [VxlanExtra::SourcePorts(10000, 10001)]);
        assert_eq!(of(IFLA_VXLAN_LIMIT, &5u32.to_ne_bytes()), [VxlanExtra::MaxAddresses(5)]);
        assert_eq!(of(IFLA_VXLAN_UDP_CSUM, &[0]), [VxlanExtra::NoUdpChecksum]);
        assert_eq!(of(IFLA_VXLAN_GPE, &[]), [VxlanExtra::Gpe]);
        assert_eq!(of(IFLA_VXLAN_GROUP, &[239, 0, 0, 1]), [VxlanExtra::Group([239, 0, 0, 1].into())]);
        assert_eq!(of(IFLA_VXLAN_PORT_RANGE, &[1]), [], "a torn range is none");
    }

    #[test]
    fn what_only_birth_sets_is_not_changed_in_place() {
        let local = |text: &str| text.parse().ok();
        let want = VxlanOptions { local: local("10.4.7.21"), ..VxlanOptions::new(1, 8472) };
        let changed = |change: fn(&mut VxlanOptions)| {
            let mut have = want.clone();
            change(&mut have);
            assert!(!satisfies(&have, &want), "{have}");
            changes_in_place(&have, &want)
        };
        assert!(changed(|have| have.ttl = 1) && changed(|have| have.tos = 1) && changed(|have| have.df = 1));
        assert!(changed(|have| have.learning = true) && changed(|have| have.local = "10.4.7.99".parse().ok()));
        assert!(!changed(|have| have.vni = 2) && !changed(|have| have.port = 4789) && !changed(|have| have.gbp = true));
        assert!(!changed(|have| have.extras = [VxlanExtra::L2Miss].into()));
        assert!(!changed(|have| have.local = "fd00::21".parse().ok()), "of the other family");
        // What is left open is as it is.
        assert!(satisfies(&want, &VxlanOptions::new(1, 8472)));
    }
}
