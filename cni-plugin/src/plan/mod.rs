//! What a verb will do, decided before anything is done: facts in, ordered steps out.
//!
//! Everything below is pure: no IO, no clock, no randomness. Invariant: every step that brings something into being that
//! could be in somebody's way names its undo. What Pods share (the bridge, its addresses) is undone only by the call that
//! made it, and only while no Pod uses it; the node's forwarding switch stays.

pub(crate) mod attach;
pub(crate) mod bandwidth;
pub(crate) mod check;
pub(crate) mod detach;
pub(crate) mod gc;
pub(crate) mod hostports;
pub(crate) mod masquerade;
pub(crate) mod predecessor;
pub(crate) mod spoof;
pub(crate) mod status;
pub(crate) mod tag;
mod text;

use std::net::IpAddr;

use hostports::StaleFlows;
use netstate::nft::{ElementKey, Ruleset, TableKey};
use netstate::{IfName, IpFamily, MacAddr, PortOptions, PortVlans, Prefix, Route, RouteKey, SysctlKey, TokenBucket};
use tag::Tag;

/// One end of the Pod's veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Name in its namespace.
    pub name: IfName,
    /// Hardware address.
    pub mac: MacAddr,
}

/// An address with its prefix length.
pub(crate) type Cidr = (IpAddr, u8);

/// Every address of a family.
const fn everywhere(family: IpFamily) -> Prefix {
    match family {
        IpFamily::V4 => Prefix::v4_literal([0; 4], 0),
        IpFamily::V6 => Prefix::v6_literal([0; 8], 0),
    }
}

/// One step of ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the bridge, up.
    CreateBridge {
        /// Its name.
        name: IfName,
        /// Its hardware address, fixed for good: a bridge without one takes the lowest of its ports'.
        mac: MacAddr,
        /// MTU in bytes.
        mtu: Option<u32>,
        /// It filters VLANs.
        filters_vlans: bool,
    },
    /// Make an existing bridge look at VLANs.
    FilterVlans(IfName),
    /// Set an existing bridge up, with this MTU.
    SetBridge {
        /// Its name.
        name: IfName,
        /// MTU in bytes.
        mtu: Option<u32>,
    },
    /// Let the bridge receive frames for any hardware address.
    SetPromiscuous(IfName),
    /// Make the link that holds a VLAN's gateways: one end of a veth pair, down, the other a port of the bridge.
    CreateVlanLink {
        /// The bridge.
        bridge: IfName,
        /// The bridge's end.
        port: End,
        /// The end for the gateways.
        gateway: End,
        /// MTU of both ends in bytes.
        mtu: u32,
    },
    /// Set a link of the host up.
    SetUp {
        /// Its name.
        name: IfName,
        /// MTU in bytes.
        mtu: Option<u32>,
    },
    /// Set which VLANs a port of the bridge carries.
    SetPortVlans {
        /// The port.
        link: IfName,
        /// Its VLANs.
        vlans: PortVlans,
        /// Besides them it keeps what it has.
        keeps_default: bool,
    },
    /// Take an address off the bridge.
    RemoveBridgeAddress(IfName, Cidr),
    /// Give the bridge, or the link of a VLAN on it, a gateway's address.
    AddGateway {
        /// The bridge.
        bridge: IfName,
        /// The link that gets the address.
        link: IfName,
        /// The address.
        gateway: Cidr,
    },
    /// Set a parameter of the host.
    HostParameter(Parameter),
    /// Let only the Pod's own hardware address send by its port, which is not there yet.
    GuardPort {
        /// The table with the attachment's elements.
        ruleset: Box<Ruleset>,
        /// Whose port.
        tag: Tag,
    },
    /// Make the veth pair: host end up and a port of the bridge, Pod end born in the Pod's namespace.
    CreateVeth {
        /// The host's end.
        host: End,
        /// The Pod's end.
        pod: End,
        /// The bridge.
        bridge: IfName,
        /// MTU of both ends in bytes.
        mtu: u32,
    },
    /// Set how the bridge treats the Pod's port.
    SetPort {
        /// The host's end.
        link: IfName,
        /// Hairpin and isolation.
        options: PortOptions,
    },
    /// Set a parameter of the Pod's namespace.
    PodParameter(Parameter),
    /// Give the Pod's end its addresses, set it up, add its routes.
    ConfigurePod {
        /// The Pod's end.
        ifname: IfName,
        /// Its addresses.
        addresses: Vec<Cidr>,
        /// IPv6 addresses are probed for a second tag before they are used.
        detect_duplicates: bool,
        /// Its routes.
        routes: Vec<(RouteKey, Route)>,
    },
    /// Wait until the Pod's IPv6 addresses are known to be nobody else's.
    AwaitAddresses {
        /// The Pod's end.
        ifname: IfName,
        /// Its IPv6 addresses.
        addresses: Vec<IpAddr>,
    },
    /// Wait until a link of the host sends what it shall send.
    AwaitCarrier(IfName),
    /// Make a static nftables table be as it says.
    WriteTable(Box<Ruleset>),
    /// Make the table of host ports and claim the attachment's ports in it.
    OpenPorts {
        /// The table with the attachment's elements.
        ruleset: Box<Ruleset>,
        /// Whose ports.
        tag: Tag,
    },
    /// Forget UDP flows to these ports that lead past the Pod.
    ForgetFlows(Vec<StaleFlows>),
    /// Give the bridge the hardware address that the Pod's address has now: it may have had another one a moment ago.
    LearnNeighbour {
        /// The bridge.
        bridge: IfName,
        /// The Pod's address.
        addr: IpAddr,
        /// The Pod's hardware address.
        mac: MacAddr,
    },
    /// Limit what a link sends.
    LimitLink {
        /// The host's end, or the `ifb` device.
        link: IfName,
        /// How much.
        bucket: TokenBucket,
    },
    /// Make the `ifb` device, up.
    CreateIfb {
        /// Its name.
        name: IfName,
        /// Its hardware address.
        mac: MacAddr,
        /// Its MTU in bytes, that of the host's end.
        mtu: u32,
    },
    /// Let filters look at what a link receives.
    HookIngress(IfName),
    /// Send everything that a link receives over another one.
    Redirect {
        /// The host's end.
        link: IfName,
        /// The `ifb` device.
        over: IfName,
    },
}

/// A kernel parameter to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// Which one.
    pub key: SysctlKey,
    /// Its value.
    pub value: &'static str,
    /// False: that it is not there, or cannot be written, is no error.
    pub required: bool,
}

impl Parameter {
    /// Without it the Pod would not work.
    const fn required(key: SysctlKey, value: &'static str) -> Self {
        Self { key, value, required: true }
    }

    /// Not every kernel has it.
    const fn optional(key: SysctlKey, value: &'static str) -> Self {
        Self { key, value, required: false }
    }
}

/// How something that was done is undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Delete the veth pair with this host end; the Pod's end, its addresses and routes go with it.
    DeleteLink(IfName),
    /// Release these host ports of this tag.
    ClosePorts(Vec<ElementKey>, Tag),
    /// Take the owner's port out of this table of guarded ones.
    UnguardPort(TableKey, Tag),
    /// Forget which hardware address the Pod's address had on this bridge.
    ForgetNeighbour(IfName, IpAddr),
    /// Delete a bridge, or the link of a VLAN on it, unless a Pod uses the bridge.
    RemoveShared {
        /// The bridge.
        bridge: IfName,
        /// What to delete.
        link: IfName,
    },
    /// Take a gateway's address off again, unless a Pod uses the bridge.
    RemoveGateway {
        /// The bridge.
        bridge: IfName,
        /// The link with the address.
        link: IfName,
        /// The address.
        gateway: Cidr,
    },
    /// Give a link an address back.
    RestoreAddress(IfName, Cidr),
    /// Take the limit off a link.
    Unlimit(IfName),
    /// Let nothing look at what a link receives.
    UnhookIngress(IfName),
}

impl Step {
    /// True for a step on what Pods share: it is undone only when it is known to have made something.
    #[must_use]
    pub(crate) fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::CreateBridge { .. }
                | Self::CreateVlanLink { .. }
                | Self::RemoveBridgeAddress(..)
                | Self::AddGateway { .. }
        )
    }

    /// How the step is undone; `None` when it made nothing that could be in somebody's way, or when the undo of an earlier
    /// step takes it along.
    #[must_use]
    pub(crate) fn undo(&self) -> Option<Undo> {
        match self {
            Self::CreateVeth { host, .. } => Some(Undo::DeleteLink(host.name.clone())),
            Self::GuardPort { ruleset, tag } => Some(Undo::UnguardPort(ruleset.key.clone(), tag.clone())),
            Self::OpenPorts { ruleset, tag } => {
                Some(Undo::ClosePorts(ruleset.elements.keys().cloned().collect(), tag.clone()))
            }
            Self::CreateBridge { name, .. } => Some(Undo::RemoveShared { bridge: name.clone(), link: name.clone() }),
            Self::CreateVlanLink { bridge, gateway, .. } => {
                Some(Undo::RemoveShared { bridge: bridge.clone(), link: gateway.name.clone() })
            }
            Self::AddGateway { bridge, link, gateway } => {
                Some(Undo::RemoveGateway { bridge: bridge.clone(), link: link.clone(), gateway: *gateway })
            }
            Self::RemoveBridgeAddress(link, address) => Some(Undo::RestoreAddress(link.clone(), *address)),
            Self::LimitLink { link, .. } => Some(Undo::Unlimit(link.clone())),
            Self::CreateIfb { name, .. } => Some(Undo::DeleteLink(name.clone())),
            Self::HookIngress(link) => Some(Undo::UnhookIngress(link.clone())),
            Self::LearnNeighbour { bridge, addr, .. } => Some(Undo::ForgetNeighbour(bridge.clone(), *addr)),
            _ => None,
        }
    }
}
