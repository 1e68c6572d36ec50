//! ADD: from the configuration, the reserved addresses and what the host looks like to ordered steps and the result.
//!
//! Order, chosen so that a crash between two steps leaves nothing that a DEL or the next ADD does not put right: the
//! bridge and what Pods share, then the veth pair in one message, then the ports, then the Pod's side, and last the
//! neighbour entry, which only makes the first packet faster.

use std::net::IpAddr;

use netstate::nft::Ruleset;
use netstate::route::TABLE_MAIN;
use netstate::{IfName, MacAddr, PortOptions, Prefix, Route, RouteKey, RouteKind, RouteScope};

use super::hostports::HostPorts;
use super::{Cidr, End, Step, masquerade, parameter};
use crate::attachment::{Attachment, mac_of_address};
use crate::error::{CniError, Code};
use crate::ipam::Reservation;
use crate::netconf::BridgeConf;
use crate::result::{AddResult, Dns, Interface, IpConfig, ResultRoute};

/// MTU of a veth in bytes when nobody says otherwise (ETH_DATA_LEN).
const ETHERNET_MTU: u32 = 1500;

/// Protocol number of a Pod's routes: RTPROT_BOOT, as every CNI plugin leaves it.
const PROTOCOL_BOOT: u8 = 3;

/// The bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeState {
    /// A link of that name exists, and it is a bridge.
    pub is_bridge: bool,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Administratively up.
    pub up: bool,
    /// Its addresses, those of link scope left out.
    pub addresses: Vec<Cidr>,
}

/// What is looked at only when the bridge lacks a gateway's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Some link is a port of the bridge.
    pub has_ports: bool,
    /// Addresses of the host's other bridges.
    pub other_bridges: Vec<(IfName, Cidr)>,
}

/// What ADD found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The bridge, if a link has its name.
    pub bridge: Option<BridgeState>,
    /// See [`needs_surroundings`].
    pub surroundings: Surroundings,
    /// The host forwards IPv4.
    pub forwards_v4: bool,
    /// The host forwards IPv6.
    pub forwards_v6: bool,
}

/// What shall be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach<'a> {
    /// Which interface of which container.
    pub attachment: &'a Attachment,
    /// How.
    pub conf: &'a BridgeConf,
    /// The reserved addresses; empty in layer 2.
    pub reservations: &'a [Reservation],
    /// Settings from `ipam.resolvConf`.
    pub resolver: &'a Dns,
    /// Path of the Pod's namespace, for the result.
    pub netns: &'a str,
    /// The network's name.
    pub network: &'a str,
    /// Ports of the host that lead to the Pod; `None` where another plugin of the chain opens them.
    pub ports: Option<HostPorts<'a>>,
}

impl Attach<'_> {
    /// The gateways that the bridge must hold.
    #[must_use]
    pub fn gateways(&self) -> Vec<Cidr> {
        let all = self.reservations.iter().map(|r| (r.gateway, r.len));
        if self.conf.gateway { all.collect() } else { Vec::new() }
    }

    /// True when the bridge lacks a gateway's address: then the host's other bridges matter.
    #[must_use]
    pub fn needs_surroundings(&self, bridge: Option<&BridgeState>) -> bool {
        let has = |cidr: &Cidr| bridge.is_some_and(|bridge| bridge.addresses.contains(cidr));
        self.gateways().iter().any(|cidr| !has(cidr))
    }

    fn mtu(&self) -> u32 {
        self.conf.mtu.unwrap_or(ETHERNET_MTU)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.reservations.iter().map(|r| r.addr).collect()
    }

    fn host_end(&self) -> End {
        End { name: self.attachment.host_link(), mac: self.attachment.host_mac() }
    }

    fn pod_end(&self) -> End {
        let mac = self.conf.mac.unwrap_or_else(|| self.attachment.pod_mac(&self.addresses()));
        End { name: self.attachment.ifname.clone(), mac }
    }

    /// The hardware address of the bridge, if it must be made.
    fn bridge_mac(&self) -> MacAddr {
        let gateway = self.reservations.first().map(|r| mac_of_address(r.gateway));
        gateway.unwrap_or_else(|| MacAddr::local(seed(self.conf.bridge.as_str())))
    }

    /// The steps of ADD.
    ///
    /// # Errors
    /// Code 7 when what was found cannot be reconciled with the configuration.
    pub fn plan(&self, facts: &Facts) -> Result<Vec<Step>, CniError> {
        let mut steps = self.bridge_steps(facts.bridge.as_ref())?;
        steps.extend(self.gateway_steps(facts)?);
        steps.push(Step::CreateVeth {
            host: self.host_end(),
            pod: self.pod_end(),
            bridge: self.conf.bridge.clone(),
            mtu: self.mtu(),
        });
        if self.conf.hairpin || self.conf.isolated {
            let options = PortOptions { hairpin: self.conf.hairpin, isolated: self.conf.isolated };
            steps.push(Step::SetPort { link: self.attachment.host_link(), options });
        }
        steps.extend(self.masquerade()?.map(|ruleset| Step::WriteTable(Box::new(ruleset))));
        if let Some(ports) = &self.ports {
            steps.extend(ports.plan(&self.conf.bridge)?);
        }
        steps.extend(self.pod_steps()?);
        if self.conf.gateway {
            let learn = |addr| Step::LearnNeighbour { bridge: self.conf.bridge.clone(), addr, mac: self.pod_end().mac };
            steps.extend(self.addresses().into_iter().map(learn));
        }
        Ok(steps)
    }

    /// The network's table of masquerade rules, where they are wanted.
    ///
    /// # Errors
    /// Code 7 for a network whose name nftables cannot hold.
    pub fn masquerade(&self) -> Result<Option<Ruleset>, CniError> {
        let Some(networks) = self.conf.masquerade.as_ref().filter(|_| !self.reservations.is_empty()) else {
            return Ok(None);
        };
        let subnets: Vec<Prefix> = self.reservations.iter().filter_map(|r| Prefix::new(r.addr, r.len).ok()).collect();
        let unnameable =
            || CniError::invalid_field("name", self.network, "a name that is short enough for an nft table");
        masquerade::ruleset(self.network, &subnets, networks).map(Some).ok_or_else(unnameable)
    }

    fn bridge_steps(&self, found: Option<&BridgeState>) -> Result<Vec<Step>, CniError> {
        let name = self.conf.bridge.clone();
        let mut steps = Vec::new();
        match found {
            None => {
                steps.push(Step::CreateBridge { name: name.clone(), mac: self.bridge_mac(), mtu: self.conf.mtu });
                // Ports must not teach the host routes.
                steps
                    .extend(parameter(&format!("net/ipv6/conf/{name}/accept_ra"), "0", false).map(Step::HostParameter));
            }
            Some(bridge) if !bridge.is_bridge => {
                let msg = format!("link {name} already exists but is not a bridge");
                return Err(
                    CniError::new(Code::InvalidConfig, msg).details("choose another name with the option bridge")
                );
            }
            Some(bridge) => {
                let mtu = self.conf.mtu.filter(|mtu| bridge.mtu != Some(*mtu));
                if mtu.is_some() || !bridge.up {
                    steps.push(Step::SetBridge { name: name.clone(), mtu });
                }
            }
        }
        if self.conf.promiscuous {
            steps.push(Step::SetPromiscuous(name));
        }
        Ok(steps)
    }

    fn gateway_steps(&self, facts: &Facts) -> Result<Vec<Step>, CniError> {
        let bridge = &self.conf.bridge;
        let present = facts.bridge.as_ref().map_or(&[][..], |state| &state.addresses);
        let gateways = self.gateways();
        let mut steps = Vec::new();
        for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
            self.check_other_bridges(gateway, &facts.surroundings)?;
            for foreign in present.iter().filter(|cidr| conflicts(**cidr, *gateway) && !gateways.contains(cidr)) {
                self.check_replaceable(*foreign, *gateway, &facts.surroundings)?;
                let step = Step::RemoveBridgeAddress(bridge.clone(), *foreign);
                if !steps.contains(&step) {
                    steps.push(step);
                }
            }
            steps.push(Step::AddBridgeAddress(bridge.clone(), *gateway));
        }
        let has = |v4: bool| gateways.iter().any(|(addr, _)| addr.is_ipv4() == v4);
        if has(true) && !facts.forwards_v4 {
            steps.extend(parameter("net/ipv4/ip_forward", "1", true).map(Step::HostParameter));
        }
        if has(false) && !facts.forwards_v6 {
            steps.extend(parameter("net/ipv6/conf/all/forwarding", "1", true).map(Step::HostParameter));
        }
        Ok(steps)
    }

    /// Two bridges with one subnet break routing for every Pod on either of them.
    fn check_other_bridges(&self, gateway: &Cidr, surroundings: &Surroundings) -> Result<(), CniError> {
        let Ok(subnet) = Prefix::new(gateway.0, gateway.1) else { return Ok(()) };
        let clash = |(_, (addr, len)): &&(IfName, Cidr)| Prefix::new(*addr, *len).is_ok_and(|p| p.overlaps(&subnet));
        let Some((other, (addr, len))) = surroundings.other_bridges.iter().find(clash) else { return Ok(()) };
        let bridge = &self.conf.bridge;
        let msg = format!("bridge {bridge} cannot have subnet {subnet}: bridge {other} already has {addr}/{len}");
        Err(CniError::new(Code::InvalidConfig, msg)
            .details(format!("set the option bridge to {other}, or delete {other} when no Pod uses it any more")))
    }

    /// A lease that changed replaces the address of an empty bridge; with Pods on it only `forceAddress` may.
    fn check_replaceable(&self, (addr, len): Cidr, gateway: Cidr, around: &Surroundings) -> Result<(), CniError> {
        if self.conf.force_address || !around.has_ports {
            return Ok(());
        }
        let (bridge, wanted, bits) = (self.conf.bridge.as_str(), gateway.0, gateway.1);
        let msg = format!("{bridge:?} already has an IP address different from {wanted}/{bits}: {addr}/{len}");
        Err(CniError::new(Code::InvalidConfig, msg)
            .details("Pods of the former subnet are still on it: remove them, or set forceAddress"))
    }

    fn pod_steps(&self) -> Result<Vec<Step>, CniError> {
        let ifname = &self.attachment.ifname;
        if self.conf.interface_disabled {
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        let mut set = |key: &str, value, required| {
            steps.extend(parameter(&format!("net/{key}"), value, required).map(Step::PodParameter));
        };
        if self.reservations.iter().any(|r| r.addr.is_ipv6()) {
            // An interface without IPv6 would refuse the address; containers often start that way.
            set("ipv6/conf/lo/disable_ipv6", "0", true);
            set(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0", true);
            set(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1", false);
        }
        if self.reservations.iter().any(|r| r.addr.is_ipv4()) {
            // Announces the address when the link comes up: other Pods may remember its former owner.
            set(&format!("ipv4/conf/{ifname}/arp_notify"), "1", false);
        }
        steps.push(Step::ConfigurePod {
            ifname: ifname.clone(),
            addresses: self.reservations.iter().map(|r| (r.addr, r.len)).collect(),
            routes: self.routes()?.iter().map(|route| kernel_route(route, self.gateway_of(route), ifname)).collect(),
        });
        Ok(steps)
    }

    fn gateway_of(&self, route: &ResultRoute) -> Option<IpAddr> {
        let same_family = |r: &&Reservation| r.addr.is_ipv4() == route.dst.is_ipv4();
        route.gw.or_else(|| self.reservations.iter().find(same_family).map(|r| r.gateway))
    }

    /// The Pod's routes: the configured ones, and one default route per family unless the user has one already.
    fn routes(&self) -> Result<Vec<ResultRoute>, CniError> {
        let mut routes: Vec<ResultRoute> = Vec::new();
        for route in self.conf.ipam.iter().flat_map(|ipam| &ipam.routes) {
            if self.gateway_of(route).is_none() {
                let found = format!("{} has no gateway: the network has no address of its family", route.dst);
                return Err(CniError::invalid_field("ipam.routes", &found, "a route of a family with a range"));
            }
            if !routes.contains(route) {
                routes.push(route.clone());
            }
        }
        if self.conf.default_gateway {
            for v4 in [true, false] {
                let gateway = self.reservations.iter().find(|r| r.addr.is_ipv4() == v4).map(|r| r.gateway);
                let has_default = routes.iter().any(|r| r.dst.is_default() && r.dst.is_ipv4() == v4);
                if let Some(gateway) = gateway.filter(|_| !has_default) {
                    routes.extend(default_route(gateway));
                }
            }
        }
        Ok(routes)
    }

    /// What ADD answers when every step is done. `bridge_mac` is the bridge's hardware address as it is.
    ///
    /// # Errors
    /// As [`Attach::plan`].
    pub fn result(&self, bridge_mac: Option<MacAddr>) -> Result<AddResult, CniError> {
        let mtu = Some(self.mtu());
        let host = |name: &IfName, mac| Interface { name: name.to_string(), mac, mtu, sandbox: None };
        let (veth, pod) = (self.host_end(), self.pod_end());
        let ip = |r: &Reservation| IpConfig { interface: Some(2), addr: r.addr, len: r.len, gateway: Some(r.gateway) };
        let dns = if self.conf.dns.is_empty() { self.resolver } else { &self.conf.dns };
        Ok(AddResult {
            interfaces: vec![
                host(&self.conf.bridge, bridge_mac.or_else(|| Some(self.bridge_mac()))),
                host(&veth.name, Some(veth.mac)),
                Interface { sandbox: Some(self.netns.to_owned()), ..host(&pod.name, Some(pod.mac)) },
            ],
            ips: self.reservations.iter().map(ip).collect(),
            routes: self.routes()?,
            dns: dns.clone(),
        })
    }
}

fn default_route(gateway: IpAddr) -> Option<ResultRoute> {
    let any = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    Prefix::new(any, 0).ok().map(|dst| ResultRoute::to(dst, Some(gateway)))
}

fn kernel_route(route: &ResultRoute, via: Option<IpAddr>, ifname: &IfName) -> (RouteKey, Route) {
    let scope = match route.scope {
        Some(253) => RouteScope::Link,
        Some(254) => RouteScope::Host,
        _ => RouteScope::Universe,
    };
    let key =
        RouteKey { table: route.table.unwrap_or(TABLE_MAIN), dst: route.dst, metric: route.priority.unwrap_or(0) };
    let value = Route {
        kind: RouteKind::Unicast,
        // A route of link scope has no gateway (fib_semantics.c fib_create_info).
        via: via.filter(|_| scope == RouteScope::Universe),
        link: Some(ifname.clone()),
        onlink: false,
        src: None,
        scope,
        protocol: PROTOCOL_BOOT,
    };
    (key, value)
}

/// An address that keeps a gateway off the bridge: any other IPv4 address, or an IPv6 one of an overlapping subnet.
fn conflicts(present: Cidr, gateway: Cidr) -> bool {
    let network = |(addr, len)| Prefix::new(addr, len).ok();
    match (present.0.is_ipv4(), gateway.0.is_ipv4()) {
        (true, true) => true,
        (false, false) => network(present).zip(network(gateway)).is_some_and(|(a, b)| a.overlaps(&b)),
        _ => false,
    }
}

/// Six bytes that depend on every byte of `text` (FNV-1a): a bridge without addresses gets its hardware address so.
fn seed(text: &str) -> [u8; 6] {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let [_, _, bytes @ ..] = hash.to_be_bytes();
    bytes
}
