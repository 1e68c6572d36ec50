//! Links: veth pairs, bridges, VXLAN, ipip and WireGuard devices, dummies; ports of bridges.
//!
//! Invariants. A link that differs in kind or in an option that only its creation sets is deleted and made again;
//! everything else is changed in place, so that routes and neighbours of an adopted link survive, and each setting by a
//! message of its own: a refused MTU keeps no link down. A bridge's MTU sticks only when a message changes it after
//! creation (br_change_mtu); otherwise it follows the smallest port's, so a new bridge is born with another MTU than it
//! then gets.

mod read;
mod table;
mod veth;
mod vxlan;

use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoIpTunnel, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netstate::{IfName, IpipOptions, Link, LinkKind};

use self::read::name_references;
pub(crate) use self::read::state;
pub use self::table::{LinkIndexes, Links, OwnsLink};
pub use self::veth::{VETH_TXQLEN, VethEnd, VethPair};
use crate::error::{Cause, KernelError};
use crate::rtnl::{Operation, Rtnl, encode, gone_is_fine};

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
    /// Its operational state is up (IFLA_OPERSTATE, RFC 2863): what it shall send is sent.
    pub operational: bool,
    /// It receives frames for any hardware address because somebody said so (IFF_PROMISC).
    pub promiscuous: bool,
}

impl Rtnl {
    /// All links.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn links(&mut self) -> Result<Vec<LinkState>, KernelError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut links: Vec<LinkState> = self.list("list links", &message, state)?;
        let names: BTreeMap<u32, IfName> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        name_references(&mut links, |index| names.get(&index).cloned());
        Ok(links)
    }

    /// The link called `name`. Its `master` and VXLAN lower device are given by index only.
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
        match self.ask(&Operation { op: "get link", object: object.to_owned(), message }) {
            Ok(answers) => Ok(answers.iter().find_map(state)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a link of `kind` and sets it as `link` says. A setting that the kernel refuses leaves a link without it.
    ///
    /// # Errors
    /// EEXIST when a link of that name exists; the first setting that the kernel refuses.
    pub fn create_link(&mut self, name: &IfName, link: &Link) -> Result<(), KernelError> {
        let birth_mtu = match link.kind {
            LinkKind::Bridge(_) => link.mtu.map(|mtu| mtu ^ 1),
            // At birth it would be cut to what the lower device takes, without a word (vxlan_config_apply).
            LinkKind::Vxlan(_) => None,
            _ => link.mtu,
        };
        let mut born = Link { mtu: birth_mtu, ..link.clone() };
        match self.new_link(name, &born) {
            Err(error) if error.is_refused_setting() => {
                // One setting is at fault, or the link itself: that shows without settings.
                born = Link { mtu: None, mac: None, master: None, up: false, ..link.clone() };
                self.new_link(name, &born)?;
            }
            other => other?,
        }
        if born == *link { Ok(()) } else { self.change_link(name, &born, link) }
    }

    fn new_link(&mut self, name: &IfName, link: &Link) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        message.attributes.extend(link.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        if let Some(master) = &link.master {
            message.attributes.push(LinkAttribute::Controller(self.required_index(master, name)?));
        }
        set_up(&mut message, link.up);
        message.attributes.push(LinkAttribute::LinkInfo(self.link_info(name, &link.kind)?));
        let message = encode(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        self.request(&Operation { op: "create link", object: name.to_string(), message }).map(drop)
    }

    /// Sets MTU, hardware address, master and up or down of an existing link: each for itself, so that a refused one
    /// keeps none of the others from being set.
    ///
    /// # Errors
    /// The first that the kernel refuses; when the link or its master does not exist.
    pub fn set_link(&mut self, name: &IfName, link: &Link) -> Result<(), KernelError> {
        let unknown = Link { mtu: None, mac: None, master: None, up: !link.up, kind: link.kind.clone() };
        self.change_link(name, &unknown, link)
    }

    /// Sets what of `want` is not as in `have`.
    fn change_link(&mut self, name: &IfName, have: &Link, want: &Link) -> Result<(), KernelError> {
        let part = |what: String, fill: &dyn Fn(&mut LinkMessage)| {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.to_string()));
            fill(&mut message);
            let message = encode(&RouteNetlinkMessage::SetLink(message), 0);
            Ok(Operation { op: "set link", object: format!("{name} {what}"), message })
        };
        let mut parts = Vec::new();
        if let Some(master) = want.master.as_ref().filter(|_| have.master != want.master) {
            let set =
                |index| move |message: &mut LinkMessage| message.attributes.push(LinkAttribute::Controller(index));
            let index = self.required_index(master, name);
            parts.push(index.and_then(|index| part(format!("master {master}"), &set(index))));
        }
        if let Some(mac) = want.mac.filter(|_| have.mac != want.mac) {
            let set = |message: &mut LinkMessage| message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
            parts.push(part(format!("address {mac}"), &set));
        }
        if let Some(mtu) = want.mtu.filter(|_| have.mtu != want.mtu) {
            let set = |message: &mut LinkMessage| message.attributes.push(LinkAttribute::Mtu(mtu));
            parts.push(part(format!("mtu {mtu}"), &set));
        }
        if have.up != want.up {
            let what = if want.up { "up" } else { "down" };
            parts.push(part(what.to_owned(), &|message| set_up(message, want.up)));
        }
        self.batch(parts).into_iter().collect()
    }

    /// Gives the link with `index` another name. Kernels before 6.2 rename no link that is up.
    fn rename_link(&mut self, index: u32, up: bool, name: &IfName) -> Result<(), KernelError> {
        let mut rename = LinkMessage::default();
        rename.header.index = index;
        rename.attributes.push(LinkAttribute::IfName(name.to_string()));
        let mut down = LinkMessage::default();
        down.header.index = index;
        set_up(&mut down, false);
        let mut request = |message: LinkMessage| {
            let message = encode(&RouteNetlinkMessage::SetLink(message), 0);
            self.request(&Operation { op: "rename link to", object: name.to_string(), message }).map(drop)
        };
        match request(rename.clone()) {
            Err(error) if up && error.errno() == Some(libc::EBUSY) => {
                request(down)?;
                request(rename)
            }
            other => other,
        }
    }

    /// Gives an ipip device other ends, under what stands on it.
    ///
    /// # Errors
    /// When the kernel refuses, as it does while another device has these ends.
    fn move_ipip(&mut self, name: &IfName, options: IpipOptions) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        // All of it: what is left out would be set to zero.
        let info = vec![LinkInfo::Kind(InfoKind::IpIp), LinkInfo::Data(InfoData::IpTunnel(ipip_data(options)))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let message = encode(&RouteNetlinkMessage::NewLink(message), 0);
        self.request(&Operation { op: "move link", object: name.to_string(), message }).map(drop)
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
                let data = vxlan::birth(options, lower);
                vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]
            }
            LinkKind::Ipip(options) => {
                let data = ipip_data(*options);
                vec![LinkInfo::Kind(InfoKind::IpIp), LinkInfo::Data(InfoData::IpTunnel(data))]
            }
            LinkKind::Wireguard => vec![LinkInfo::Kind(InfoKind::Wireguard)],
            LinkKind::Dummy => vec![LinkInfo::Kind(InfoKind::Dummy)],
            LinkKind::Veth => vec![LinkInfo::Kind(InfoKind::Veth)],
            LinkKind::Other(other) => vec![LinkInfo::Kind(InfoKind::Other(other.clone()))],
        })
    }
}

fn set_up(message: &mut LinkMessage, up: bool) {
    message.header.change_mask |= LinkFlags::Up;
    message.header.flags.set(LinkFlags::Up, up);
}

/// As flannel makes one: routers may cut outer packets into fragments.
fn ipip_data(options: IpipOptions) -> Vec<InfoIpTunnel> {
    let mut data = vec![InfoIpTunnel::Ttl(0), InfoIpTunnel::PMtuDisc(false)];
    data.extend(options.local.map(|local| InfoIpTunnel::Local(local.into())));
    data.extend(options.remote.map(|remote| InfoIpTunnel::Remote(remote.into())));
    data
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use netstate::VxlanOptions;

    use super::*;
    use crate::golden;

    fn options() -> VxlanOptions {
        let local = Some("10.4.7.21".parse().unwrap());
        VxlanOptions { local, ..VxlanOptions::new(1, 8472) }
    }

    /// The message that makes the device, read as the kernel's listing would be.
    fn read_back(options: &VxlanOptions, lower: Option<u32>) -> LinkState {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName("flannel.1".to_owned()));
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan::birth(options, lower)))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let message = encode(&RouteNetlinkMessage::NewLink(message), 0);
        state(&golden::frame(message.kind, message.body)).unwrap()
    }

    #[test]
    fn tunnel_is_written_with_every_option_that_only_birth_sets() {
        let six = VxlanOptions { local: Some("fd00::21".parse().unwrap()), learning: true, gbp: true, ..options() };
        let bare = VxlanOptions::new(0x00ff_ffff, 4789);
        for (options, lower) in [(options(), Some(2)), (six, Some(300)), (bare, None)] {
            let read = read_back(&options, lower);
            assert_eq!(read.link.kind, LinkKind::Vxlan(options));
            assert_eq!(read.lower_index, lower);
        }
    }

    #[test]
    fn state_of_a_link_is_one_flag_under_its_mask() {
        for (up, flags) in [(true, "01000000"), (false, "00000000")] {
            let mut message = LinkMessage::default();
            set_up(&mut message, up);
            let text = golden::message(&encode(&RouteNetlinkMessage::SetLink(message), 0), 16);
            assert_eq!(text, format!("type 19 flags 0x0\n{}{flags}01000000\n", "00".repeat(8)));
        }
    }
}
