//! `Query`: what the daemons ask the kernel outside their tables, over rtnetlink's handle.
//!
//! For facts that a person or a plan chooses from: interfaces with their addresses, default routes, the way to an
//! address. Tables that are compared and written have a reader of their own ([`crate::Rtnl`]), because the one behind
//! this leaves a message out when it does not know one attribute in it.
//!
//! Invariants. No question waits for ever; a listing that the kernel marks as interrupted is made again, and answers that end because the socket failed are an error with its number. Of ten thousand routes only those that are asked for are parsed. A route with several next hops is a route: each of them is returned.

mod socket;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use netlink_packet_core::Parseable as _;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::AsyncSocket as _;
use netstate::family::IpFamily;
use netstate::{IfName, InterfaceAddress, Prefix};
use rtnetlink::{Handle, new_connection_with_socket};
use socket::{Ended, Noted, Torn};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Cause, KernelError, Nack, SocketError};
use crate::route::RTM_NEWROUTE;
use crate::rtnl::Rtnl;
use crate::socket::Frame;

/// How long a question may take: a listing of a hundred thousand routes takes a tenth of it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a table is listed again that has changed meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index, 1 and up.
    pub index: u32,
    /// Name.
    pub name: IfName,
    /// The kernel's name for its kind; empty for a physical device.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Index of the bridge, bond or VRF that it belongs to (IFLA_MASTER).
    pub master: Option<u32>,
    /// Index of the link that it stands on, as a VLAN does (IFLA_LINK); of a veth the other end's, which may be of another namespace.
    pub lower: Option<u32>,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// Where packets of a route go next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The interface that they leave by.
    pub link: Option<IfName>,
    /// The router, if there is one.
    pub via: Option<IpAddr>,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its metric; the lowest is taken.
    pub metric: u32,
    /// Its next hops, at least one.
    pub hops: Vec<Hop>,
}

/// The way that the kernel takes to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Where packets go next.
    pub hop: Hop,
    /// The source address that they get.
    pub source: Option<IpAddr>,
}

/// A conversation in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Query {
    handle: Handle,
    connection: JoinHandle<()>,
    ended: Ended,
    torn: Torn,
}

impl Drop for Query {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Query {
    /// Opens the conversation. Must be called on a tokio runtime, which drives it from then on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let refused = |error| KernelError::io("open", "rtnetlink", "socket", error);
        let (mut connection, handle, _) = new_connection_with_socket::<Noted>().map_err(refused)?;
        connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true).map_err(refused)?;
        let (ended, torn) = (connection.socket_mut().ended.clone(), connection.socket_mut().torn.clone());
        Ok(Self { handle, connection: tokio::spawn(connection), ended, torn })
    }

    /// All interfaces with their addresses, by index.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, KernelError> {
        let links = self.links().await?;
        let mut addresses: BTreeMap<u32, Vec<InterfaceAddress>> = BTreeMap::new();
        // Of a listing of all families the kernel does not mark as interrupted what it has left out at the end of one (`rtnl_dump_all`).
        for family in IpFamily::ALL {
            let listing = || {
                let mut request = self.handle.address().get();
                request.message_mut().header.family = address_family(family);
                request.execute()
            };
            let listed = self.collect("list addresses", &"all", listing).await?;
            // A kernel without IPv6 lists all families when it is asked for that.
            for message in listed.iter().filter(|message| message.header.family == address_family(family)) {
                addresses.entry(message.header.index).or_default().extend(interface_address(message));
            }
        }
        let with_addresses = |(index, link): (u32, Interface)| Interface {
            addresses: addresses.remove(&index).unwrap_or_default(),
            ..link
        };
        Ok(links.into_iter().map(with_addresses).collect())
    }

    /// The default routes of the main table, the one that is taken first.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub async fn default_routes(&self, family: IpFamily) -> Result<Vec<DefaultRoute>, KernelError> {
        let listed = listed_default_routes(family, Some(netstate::route::TABLE_MAIN))?;
        let links = self.links().await?;
        let mut routes: Vec<DefaultRoute> = listed.iter().filter_map(|route| default_route(route, &links)).collect();
        routes.sort_by_key(|route| route.metric);
        Ok(routes)
    }

    /// Default routes of other tables than the main one, with their table: of a VRF, or for some sources only. Lists all
    /// tables.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub async fn default_routes_elsewhere(&self, family: IpFamily) -> Result<Vec<(u32, DefaultRoute)>, KernelError> {
        let listed = listed_default_routes(family, None)?;
        let links = self.links().await?;
        let main = netstate::route::TABLE_MAIN;
        let found = listed.iter().filter_map(|route| default_route_of(route, &links));
        Ok(found.filter(|(table, _)| *table != main).collect())
    }

    /// The way to `addr`.
    ///
    /// # Errors
    /// ENETUNREACH and its like when there is none.
    pub async fn way_to(&self, addr: IpAddr) -> Result<Way, KernelError> {
        let op = "look up route to";
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(IpFamily::of(addr));
        message.header.destination_prefix_length = Prefix::host(addr).len();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(addr)));
        let found = self.collect(op, &addr, || self.handle.route().get(message.clone()).execute()).await?;
        let none = || KernelError::new(op, addr, Cause::Missing("a route".to_owned()));
        let route = found.first().ok_or_else(none)?;
        let links = self.links().await?;
        let source = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(source) => ip(source),
            _ => None,
        });
        Ok(Way { hop: hop(&route.attributes, None, &links), source })
    }

    async fn links(&self) -> Result<BTreeMap<u32, Interface>, KernelError> {
        let listed = self.collect("list links", &"all", || self.handle.link().get().execute()).await?;
        Ok(listed.iter().filter_map(interface).map(|link| (link.index, link)).collect())
    }

    /// Asks, and again while what is listed changes meanwhile: a service proxy that starts sets ten thousand addresses within seconds.
    async fn collect<T, R: Stream<Item = Result<T, rtnetlink::Error>>>(
        &self,
        op: &'static str,
        object: &impl std::fmt::Display,
        ask: impl Fn() -> R,
    ) -> Result<Vec<T>, KernelError> {
        let end = Instant::now() + TIMEOUT;
        for tries in 0.. {
            let before = self.torn.count();
            let collected = timeout_at(end, ask().try_collect()).await;
            if let Some(error) = self.ended.error() {
                return Err(KernelError::new(op, object, error));
            }
            match collected {
                Ok(Err(error)) => return Err(KernelError::new(op, object, cause(error))),
                Ok(Ok(collected)) if self.torn.count() == before => return Ok(collected),
                Ok(Ok(_)) => sleep(PAUSE).await,
                Err(_) if tries > 0 => return Err(KernelError::new(op, object, SocketError::Interrupted(tries))),
                Err(_) => break,
            }
        }
        Err(KernelError::new(op, object, SocketError::Timeout(TIMEOUT)))
    }
}

/// The messages about default routes of one table or of all. The kernel cannot be asked for these alone, and a node has ten
/// thousand others: those are left out before they are parsed.
fn listed_default_routes(family: IpFamily, table: Option<u32>) -> Result<Vec<RouteMessage>, KernelError> {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.attributes.extend(table.map(RouteAttribute::Table));
    Rtnl::open()?.list("list routes", &RouteNetlinkMessage::GetRoute(message), default_route_message)
}

/// A default route that leads somewhere: one of IPv6 that refuses has a link as well, `lo`. Length and type stand in `rtmsg`.
fn default_route_message(frame: &Frame) -> Option<RouteMessage> {
    let leads = frame.body.get(7) == Some(&u8::from(RouteType::Unicast));
    let is_default = frame.kind == RTM_NEWROUTE && frame.body.get(1) == Some(&0) && leads;
    if is_default { RouteMessage::parse(frame.body.as_slice()).ok() } else { None }
}

fn cause(error: rtnetlink::Error) -> Cause {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            Cause::Nack(Nack { errno: message.raw_code().saturating_neg(), text: None })
        }
        other => Cause::Unexpected(other.to_string()),
    }
}

const fn address_family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

fn interface(message: &LinkMessage) -> Option<Interface> {
    let (mut name, mut kind, mut mtu, mut master, mut lower) = (None, String::new(), 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = IfName::new(text.as_str()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                let named = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                kind = named.unwrap_or_default();
            }
            _ => {}
        }
    }
    let (index, up) = (message.header.index, message.header.flags.contains(LinkFlags::Up));
    Some(Interface { index, name: name?, kind, mtu, up, master, lower, addresses: Vec::new() })
}

fn interface_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let addr = address(message)?;
    // The long flags hold all of them, those of the header the first eight.
    let long = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = long.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    let unfit = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    Some(InterfaceAddress {
        addr,
        len: message.header.prefix_len,
        unfit: flags.intersects(unfit),
        dynamic: !flags.contains(AddressFlags::Permanent),
        temporary: addr.is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}

/// On a point-to-point link the local address, not the other end's.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    })
}

/// The route, if it is a default route of the main table.
fn default_route(message: &RouteMessage, links: &BTreeMap<u32, Interface>) -> Option<DefaultRoute> {
    let found = default_route_of(message, links);
    found.filter(|(table, _)| *table == netstate::route::TABLE_MAIN).map(|(_, route)| route)
}

/// The route with its table, if it is a default route.
fn default_route_of(message: &RouteMessage, links: &BTreeMap<u32, Interface>) -> Option<(u32, DefaultRoute)> {
    let (mut table, mut metric, mut several) = (u32::from(message.header.table), 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::MultiPath(hops) => several = Some(hops),
            _ => {}
        }
    }
    let is_default = message.header.destination_prefix_length == 0;
    let each = |next: &RouteNextHop| hop(&next.attributes, Some(next.interface_index), links);
    let hops = match several {
        Some(hops) => hops.iter().map(each).collect(),
        None => vec![hop(&message.attributes, None, links)],
    };
    // A route that leads nowhere (unreachable, blackhole) is no way out.
    let leads = |hops: &Vec<Hop>| hops.iter().any(|hop| hop.link.is_some());
    Some(hops).filter(|hops| is_default && leads(hops)).map(|hops| (table, DefaultRoute { metric, hops }))
}

fn hop(attributes: &[RouteAttribute], index: Option<u32>, links: &BTreeMap<u32, Interface>) -> Hop {
    let (mut index, mut via) = (index, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Gateway(addr) => via = ip(addr),
            // An IPv4 route by way of an IPv6 router.
            RouteAttribute::Via(RouteVia::Inet6(addr)) => via = Some(IpAddr::V6(*addr)),
            RouteAttribute::Via(RouteVia::Inet(addr)) => via = Some(IpAddr::V4(*addr)),
            _ => {}
        }
    }
    let link = index.and_then(|index| links.get(&index)).map(|link| link.name.clone());
    Hop { link, via }
}

const fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

/// Reads a datagram as answers to what the daemons ask.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(mut datagram: &[u8]) {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;

    let mut links = BTreeMap::new();
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) {
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                links.extend(interface(&link).map(|interface| (interface.index, interface)));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => drop(interface_address(&address)),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                drop(default_route_of(&route, &links))
            }
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
