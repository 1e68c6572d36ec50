//! IPVS virtual servers and real servers: identity and options, no counters.
//!
//! Counters and connection numbers change by themselves; they are no part of what must be equal.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::Protocol;
pub use crate::scheduler::{InvalidScheduler, Scheduler, SchedulerFlags};

/// How a row that somebody else made or changed shows.
const FOREIGN: &str = " with options of others";

/// What clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualServerKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Virtual address.
    pub addr: IpAddr,
    /// Virtual port, 1..=65535.
    pub port: u16,
}

impl VirtualServerKey {
    /// The key of its real server at `at`.
    #[must_use]
    pub const fn real(self, at: SocketAddr) -> RealServerKey {
        RealServerKey { service: self, addr: at.ip(), port: at.port() }
    }
}

impl fmt::Display for VirtualServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.addr, self.port))
    }
}

/// How a virtual server chooses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualServer {
    /// The scheduler.
    pub scheduler: Scheduler,
    /// How a client stays with its real server; `None` without session affinity (IP_VS_SVC_F_PERSISTENT).
    pub persistence: Option<Persistence>,
    /// It has options that nobody here asks for: one packet a connection, a netmask that is no prefix, an unknown flag.
    pub foreign_options: bool,
}

impl VirtualServer {
    /// One as this product makes it.
    #[must_use]
    pub fn new(scheduler: impl Into<Scheduler>, persistence: Option<Persistence>) -> Self {
        Self { scheduler: scheduler.into(), persistence, foreign_options: false }
    }
}

impl fmt::Display for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scheduler {}", self.scheduler)?;
        self.persistence.map_or(Ok(()), |persistence| write!(f, " persistent {persistence}"))?;
        f.write_str(if self.foreign_options { FOREIGN } else { "" })
    }
}

/// How clients stay with their real servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Persistence {
    /// For so many seconds after the last connection, at least 1.
    pub seconds: u32,
    /// Clients whose addresses are equal in so many bits are one client: from 1 to the family's length; `None` where each address
    /// is one.
    pub prefix: Option<u8>,
}

impl From<u32> for Persistence {
    /// Each address is a client.
    fn from(seconds: u32) -> Self {
        Self { seconds, prefix: None }
    }
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seconds.fmt(f)?;
        self.prefix.map_or(Ok(()), |prefix| write!(f, " netmask /{prefix}"))
    }
}

/// One real server of a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerKey {
    /// The virtual server it belongs to.
    pub service: VirtualServerKey,
    /// Address of the real server.
    pub addr: IpAddr,
    /// Port of the real server, 1..=65535.
    pub port: u16,
}

impl RealServerKey {
    /// Where it is.
    #[must_use]
    pub const fn at(&self) -> SocketAddr {
        SocketAddr::new(self.addr, self.port)
    }
}

impl fmt::Display for RealServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.service, SocketAddr::new(self.addr, self.port))
    }
}

/// How a real server is used. Forwarding is always masquerading (IP_VS_CONN_F_MASQ): Pods answer through the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RealServer {
    /// Share of new connections; 0 keeps running connections and takes no new ones.
    pub weight: u32,
    /// It has options that nobody here asks for: another forwarding method, thresholds.
    pub foreign_options: bool,
}

impl RealServer {
    /// One as this product makes it.
    #[must_use]
    pub const fn new(weight: u32) -> Self {
        Self { weight, foreign_options: false }
    }
}

impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {}{}", self.weight, if self.foreign_options { FOREIGN } else { "" })
    }
}

/// A virtual server with its real servers: one row of the IPVS tables. Ten thousand of ten are ten thousand rows and not a hundred
/// thousand. A copy shares its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// How it chooses.
    pub server: Arc<VirtualServer>,
    /// Whom it chooses from; nobody is known of a virtual server that is not ours.
    pub reals: RealServers,
}

impl Row {
    /// The servers of the row of `key`, as the kernel takes them: the virtual server first.
    pub fn servers(&self, key: VirtualServerKey) -> impl Iterator<Item = (ServerKey, Server)> {
        let virtual_server = (ServerKey::Virtual(key), Server::Virtual(Arc::clone(&self.server)));
        let reals = self.reals.iter().map(move |(at, real)| (ServerKey::Real(key.real(at)), Server::Real(real)));
        std::iter::once(virtual_server).chain(reals)
    }

    /// The same virtual server with other real servers.
    #[must_use]
    pub fn with(&self, reals: RealServers) -> Self {
        Self { server: Arc::clone(&self.server), reals }
    }
}

impl From<VirtualServer> for Row {
    /// One without real servers.
    fn from(value: VirtualServer) -> Self {
        Self { server: Arc::new(value), reals: RealServers::default() }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.fmt(f)?;
        let mut between = " -> ";
        for (at, real) in self.reals.iter() {
            write!(f, "{between}{at} {real}")?;
            between = ", ";
        }
        Ok(())
    }
}

/// The real servers of one virtual server: each address and port once, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RealServers(Arc<[(IpAddr, u16, RealServer)]>);

impl RealServers {
    /// Each with its address and port, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SocketAddr, RealServer)> + '_ {
        self.0.iter().map(|(addr, port, real)| (SocketAddr::new(*addr, *port), *real))
    }

    /// The one at an address and port.
    #[must_use]
    pub fn get(&self, at: SocketAddr) -> Option<RealServer> {
        let place = self.0.binary_search_by_key(&(at.ip(), at.port()), |(addr, port, _)| (*addr, *port)).ok()?;
        self.0.get(place).map(|(.., real)| *real)
    }

    /// These with another one at `at`, or with none there.
    #[must_use]
    pub fn with(&self, at: SocketAddr, real: Option<RealServer>) -> Self {
        let others = self.iter().filter(|(other, _)| *other != at);
        others.chain(real.map(|real| (at, real))).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(SocketAddr, RealServer)> for RealServers {
    /// Of two at one address and port the later one counts.
    fn from_iter<I: IntoIterator<Item = (SocketAddr, RealServer)>>(reals: I) -> Self {
        let mut list: Vec<_> = reals.into_iter().map(|(at, real)| (at.ip(), at.port(), real)).collect();
        list.sort_by_key(|(addr, port, _)| (*addr, *port));
        list.dedup_by(|later, kept| {
            let same = (later.0, later.1) == (kept.0, kept.1);
            kept.2 = if same { later.2 } else { kept.2 };
            same
        });
        Self(list.into())
    }
}

/// Identifies what the kernel takes with one message. Virtual servers sort first, so that they are there before their real servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerKey {
    /// A virtual server.
    Virtual(VirtualServerKey),
    /// One of its real servers.
    Real(RealServerKey),
}

impl ServerKey {
    /// The virtual server that it is or belongs to.
    #[must_use]
    pub const fn service(&self) -> &VirtualServerKey {
        match self {
            Self::Virtual(key) => key,
            Self::Real(key) => &key.service,
        }
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtual(key) => key.fmt(f),
            Self::Real(key) => key.fmt(f),
        }
    }
}

/// What is said of it: of the kind that its key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Of a virtual server.
    Virtual(Arc<VirtualServer>),
    /// Of a real server.
    Real(RealServer),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtual(server) => server.fmt(f),
            Self::Real(server) => server.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([172, 7, 21, last], 80))
    }

    #[test]
    fn virtual_servers_sort_before_real_servers() {
        let service = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
        let real = ServerKey::Real(service.real(at(2)));
        assert!(ServerKey::Virtual(VirtualServerKey { port: 65535, ..service }) < real);
        assert_eq!(real.service(), &service);
        assert_eq!(real.to_string(), "tcp 192.168.0.10:80 -> 172.7.21.2:80");
    }

    #[test]
    fn each_place_has_one_real_server_in_whatever_order_they_come() {
        let of = |reals: &[(u8, u32)]| {
            reals.iter().map(|(last, weight)| (at(*last), RealServer::new(*weight))).collect::<RealServers>()
        };
        assert_eq!(of(&[(3, 1), (2, 1), (3, 5)]), of(&[(2, 1), (3, 5)]));
        let reals = of(&[(2, 1), (4, 2)]);
        assert_eq!([2, 3, 4].map(|last| reals.get(at(last)).map(|real| real.weight)), [Some(1), None, Some(2)]);
        assert_eq!(reals.with(at(3), Some(RealServer::new(7))), of(&[(2, 1), (3, 7), (4, 2)]));
        assert_eq!(reals.with(at(4), Some(RealServer::new(0))), of(&[(2, 1), (4, 0)]));
        assert_eq!(reals.with(at(2), None), of(&[(4, 2)]));
        assert_eq!((reals.len(), of(&[]).is_empty()), (2, true));
    }
}
