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

/// Identifies a row of the IPVS tables. Virtual servers sort first, so that they are there before their real servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A virtual server.
    Virtual(VirtualServerKey),
    /// One of its real servers.
    Real(RealServerKey),
}

impl RowKey {
    /// The virtual server that the row is or belongs to.
    #[must_use]
    pub const fn service(&self) -> &VirtualServerKey {
        match self {
            Self::Virtual(key) => key,
            Self::Real(key) => &key.service,
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtual(key) => key.fmt(f),
            Self::Real(key) => key.fmt(f),
        }
    }
}

/// The rest of a row: of the kind that its key says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Of a virtual server. Most rows are of real servers, and have its room.
    Virtual(Arc<VirtualServer>),
    /// Of a real server.
    Real(RealServer),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtual(server) => server.fmt(f),
            Self::Real(server) => server.fmt(f),
        }
    }
}

impl From<VirtualServer> for Row {
    fn from(value: VirtualServer) -> Self {
        Self::Virtual(Arc::new(value))
    }
}

impl From<RealServer> for Row {
    fn from(value: RealServer) -> Self {
        Self::Real(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_sort_before_real_servers() {
        let service = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
        let real = RowKey::Real(RealServerKey { service, addr: [172, 7, 21, 2].into(), port: 80 });
        assert!(RowKey::Virtual(VirtualServerKey { port: 65535, ..service }) < real);
        assert_eq!(real.service(), &service);
        assert_eq!(real.to_string(), "tcp 192.168.0.10:80 -> 172.7.21.2:80");
    }
}
