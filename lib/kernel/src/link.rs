//! Links: veth pairs, bridges, VXLAN devices, dummies; ports of bridges.
//!
//! Invariants. A link that differs in kind or in an option that only its creation sets is deleted and made again;
//! everything else is changed in place, so that routes and neighbours of an adopted link survive. A bridge's MTU sticks
//! only when a message changes it after creation (br_change_mtu); otherwise it follows the smallest port's, so a new
//! bridge is born with another MTU than it then gets.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::{BridgeOptions, IfName, Link, LinkKind, MacAddr, PortOptions, VxlanOptions};
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::attribute;
use crate::error::{Cause, KernelError};
use crate::netns::Netns;
use crate::rtnl::{Operation, Rtnl, encode, gone_is_fine};
use crate::socket::Frame;

/// Transmit queue length of veth ends, in packets; the kernel's default for Ethernet, which a veth lacks otherwise.
pub const VETH_TXQLEN: u32 = 1000;

/// A link as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Interface index, 1 and up, unique in its namespace at one time.
    pub index: u32,
    /// Name.
    pub name: IfName,
    /// Kind and settings; every `Option` that the kernel knows is `Some`, `master` by index in `master_index`.
    pub link: Link,
    /// Index of the bridge it is a port of.
    pub master_index: Option<u32>,
    /// IFLA_LINK: the lower device, or a veth's other end; in another namespace when `peer_netns_id` is set.
    pub lower_index: Option<u32>,
    /// IFLA_LINK_NETNSID: which namespace `lower_index` belongs to, when not this one.
    pub peer_netns_id: Option<i32>,
    /// The link carries traffic (IFF_RUNNING).
    pub running: bool,
}

/// One end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethEnd {
    /// Name in its namespace.
    pub name: IfName,
    /// Hardware address; fixed, so that nothing rewrites it later (udev's MACAddressPolicy).
    pub mac: MacAddr,
}

impl Rtnl {
    /// All links.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn links(&mut self) -> Result<Vec<LinkState>, KernelError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut links: Vec<LinkState> = self.dump("list links", &message)?.iter().filter_map(state).collect();
        name_references(&mut links);
        Ok(links)
    }

    /// The link called `name`. Its `master` and VXLAN lower device are told by index only.
    ///
    /// # Errors
    /// When the kernel cannot be asked; a link that does not exist is `None`.
    pub fn link(&mut self, name: &IfName) -> Result<Option<LinkState>, KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        self.get_link(message, name.as_str())
    }

    /// The link with `index`.
    ///
    /// # Errors
    /// When the kernel cannot be asked; a link that does not exist is `None`.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<LinkState>, KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message, &format!("with index {index}"))
    }

    fn get_link(&mut self, message: LinkMessage, object: &str) -> Result<Option<LinkState>, KernelError> {
        let message = encode(&RouteNetlinkMessage::GetLink(message), 0);
        match self.request(&Operation { op: "get link", object: object.to_owned(), message }) {
            Ok(answers) => Ok(answers.iter().find_map(state)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a link of `kind` and sets it as `link` says.
    ///
    /// # Errors
    /// EEXIST when a link of that name exists; anything the kernel refuses.
    pub fn create_link(&mut self, name: &IfName, link: &Link) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        let birth_mtu = match link.kind {
            LinkKind::Bridge(_) => link.mtu.map(|mtu| mtu ^ 1),
            _ => link.mtu,
        };
        self.push_settings(&mut message, name, &Link { mtu: birth_mtu, ..link.clone() })?;
        let info = self.link_info(name, &link.kind)?;
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let message = encode(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        self.request(&Operation { op: "create link", object: name.to_string(), message })?;
        if birth_mtu == link.mtu { Ok(()) } else { self.set_link(name, link) }
    }

    /// Sets MTU, hardware address, master and up or down of an existing link.
    ///
    /// # Errors
    /// When the link or its master does not exist, or the kernel refuses.
    pub fn set_link(&mut self, name: &IfName, link: &Link) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        self.push_settings(&mut message, name, link)?;
        let message = encode(&RouteNetlinkMessage::SetLink(message), 0);
        self.request(&Operation { op: "set link", object: name.to_string(), message }).map(drop)
    }

    /// Deletes a link, and with a veth its other end. Blocks for about 20 ms while the kernel waits for readers.
    ///
    /// # Errors
    /// When the kernel refuses; a link that does not exist is a success.
    pub fn delete_link(&mut self, name: &IfName) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        let message = encode(&RouteNetlinkMessage::DelLink(message), 0);
        let operation = Operation { op: "delete link", object: name.to_string(), message };
        gone_is_fine(self.request(&operation).map(drop))
    }

    /// Makes a veth pair in one message: `host` here, up and a port of `master`; `peer` born in `netns`, still down.
    /// Both ends get `mtu` bytes. Answers the host end's index.
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
    ) -> Result<u32, KernelError> {
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
        if let Some(state) = echo.iter().find_map(state) {
            return Ok(state.index);
        }
        let missing = || KernelError::new("create veth", &host.name, Cause::Missing("the new link".to_owned()));
        Ok(self.link(&host.name)?.ok_or_else(missing)?.index)
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

    fn push_settings(&mut self, message: &mut LinkMessage, name: &IfName, link: &Link) -> Result<(), KernelError> {
        message.attributes.extend(link.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        if let Some(master) = &link.master {
            let index = self.required_index(master, name)?;
            message.attributes.push(LinkAttribute::Controller(index));
        }
        message.header.change_mask |= LinkFlags::Up;
        message.header.flags.set(LinkFlags::Up, link.up);
        Ok(())
    }

    fn required_index(&mut self, needed: &IfName, name: &IfName) -> Result<u32, KernelError> {
        let missing = || KernelError::new("set link", name, Cause::Missing(format!("link {needed}")));
        Ok(self.link(needed)?.ok_or_else(missing)?.index)
    }

    fn link_info(&mut self, name: &IfName, kind: &LinkKind) -> Result<Vec<LinkInfo>, KernelError> {
        Ok(match kind {
            LinkKind::Bridge(options) => {
                let mut data = Vec::new();
                if options.vlan_filtering {
                    data.push(InfoBridge::VlanFiltering(true));
                }
                vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))]
            }
            LinkKind::Vxlan(options) => {
                let lower = match &options.lower {
                    Some(lower) => Some(self.required_index(lower, name)?),
                    None => None,
                };
                let data = vxlan_data(options, lower);
                vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]
            }
            LinkKind::Dummy => vec![LinkInfo::Kind(InfoKind::Dummy)],
            LinkKind::Veth => vec![LinkInfo::Kind(InfoKind::Veth)],
            LinkKind::Other(other) => vec![LinkInfo::Kind(InfoKind::Other(other.clone()))],
        })
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

fn vxlan_data(options: &VxlanOptions, lower: Option<u32>) -> Vec<InfoVxlan> {
    let mut data =
        vec![InfoVxlan::Id(options.vni), InfoVxlan::Port(options.port), InfoVxlan::Learning(options.learning)];
    data.extend(options.local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    data.extend(lower.map(InfoVxlan::Link));
    data.extend(options.gbp.then_some(InfoVxlan::Gbp));
    data
}

/// Bytes of `ifinfomsg` (include/uapi/linux/rtnetlink.h).
const IFINFOMSG: usize = 16;

// Attributes of links (include/uapi/linux/if_link.h).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
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

fn state(frame: &Frame) -> Option<LinkState> {
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
    })
}

/// The lower device of a VXLAN device, which does not tell it as IFLA_LINK.
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

/// Fills in the names of masters and lower devices from the whole list.
fn name_references(links: &mut [LinkState]) {
    let names: std::collections::BTreeMap<u32, IfName> =
        links.iter().map(|link| (link.index, link.name.clone())).collect();
    for state in links {
        state.link.master = state.master_index.and_then(|index| names.get(&index).cloned());
        if let LinkKind::Vxlan(options) = &mut state.link.kind {
            options.lower = state.lower_index.and_then(|index| names.get(&index).cloned());
        }
    }
}

/// Which links are ours, by name and settings.
pub type OwnsLink = Box<dyn Fn(&IfName, &Link) -> bool + Send>;

/// The table of links.
pub struct Links {
    rtnl: Rtnl,
    owns: OwnsLink,
}

impl Links {
    /// The links of `rtnl`'s namespace, of which those that `owns` answers true for are ours to remove.
    pub fn new(rtnl: Rtnl, owns: OwnsLink) -> Self {
        Self { rtnl, owns }
    }

    fn change(&mut self, name: &IfName, have: &Link, want: &Link) -> Result<(), KernelError> {
        if kind_satisfies(&have.kind, &want.kind) {
            return self.rtnl.set_link(name, want);
        }
        self.rtnl.delete_link(name)?;
        self.rtnl.create_link(name, want)
    }
}

impl Target for Links {
    type Key = IfName;
    type Value = Link;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<IfName, Link>, KernelError> {
        let owner = |state: &LinkState| match (self.owns)(&state.name, &state.link) {
            true => Owner::Ours,
            false => Owner::Foreign,
        };
        let links = self.rtnl.links()?;
        Ok(links.into_iter().map(|s| (s.name.clone(), Observed { owner: owner(&s), value: s.link })).collect())
    }

    fn satisfies(&self, have: &Link, want: &Link) -> bool {
        kind_satisfies(&have.kind, &want.kind)
            && want.mtu.is_none_or(|mtu| have.mtu == Some(mtu))
            && want.mac.is_none_or(|mac| have.mac == Some(mac))
            && have.up == want.up
            && (want.master.is_none() || have.master == want.master)
    }

    fn apply(&mut self, steps: &[Step<IfName, Link>]) -> Vec<Result<(), KernelError>> {
        let step = |step: &Step<IfName, Link>| match step {
            Step::Create(name, link) => self.rtnl.create_link(name, link),
            Step::Change(name, have, want) => self.change(name, have, want),
            Step::Remove(name, _) => self.rtnl.delete_link(name),
        };
        steps.iter().map(step).collect()
    }
}

fn kind_satisfies(have: &LinkKind, want: &LinkKind) -> bool {
    match (have, want) {
        (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => {
            have.vni == want.vni
                && have.port == want.port
                && have.learning == want.learning
                && have.gbp == want.gbp
                && (want.local.is_none() || have.local == want.local)
                && (want.lower.is_none() || have.lower == want.lower)
        }
        (have, want) => have == want,
    }
}
