//! IPVS, the kernel's layer 4 load balancer, over generic netlink.
//!
//! [`Ipvs`] is the conversation: what the kernel can do, its time-outs, its servers with their connection numbers.
//! [`IpvsTable`] is the same tables as rows that can be reconciled; it alone writes servers. What it writes goes by netlink; IPv4
//! servers, of which there may be ten thousands, are read by getsockopt(2), which takes a tenth of the time.
//!
//! Invariant: a virtual server that this product did not make is never changed or removed, unless the same protocol,
//! address and port is desired. [`IpvsTable`] says how it knows.

mod agreement;
mod compare;
mod sockopt;
mod table;
mod wire;
mod write;

use std::collections::BTreeMap;

use netstate::ipvs::{RealServer, RealServerKey, VirtualServer, VirtualServerKey};

pub use table::IpvsTable;
pub use write::{ServerStep, server_steps};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use sockopt::fuzz_entries;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use wire::fuzz_answer;

use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError};
use crate::genl::Genl;
use crate::socket::Fault;
use sockopt::{Listed, Sockopt};

/// Connections of one real server as the kernel counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// TCP connections that are established; for other protocols those with traffic in both directions.
    pub active: u32,
    /// All others, such as TCP connections in TIME_WAIT (two minutes).
    pub inactive: u32,
}

impl Connections {
    /// True when the kernel holds no connection at all.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.active == 0 && self.inactive == 0
    }
}

/// What a virtual server has counted since it was made. Linux puts the numbers of its processors together every two seconds, and since 6.2
/// only while `net.ipv4.vs.run_estimation` is 1; they go on being counted meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that it has scheduled.
    pub connections: u64,
    /// Packets from clients, and to them.
    pub packets: [u64; 2],
    /// Their bytes.
    pub bytes: [u64; 2],
}

/// What the kernel's IPVS is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpvsInfo {
    /// Version as (major, minor, patch); 1.2.1 since 2008.
    pub version: (u8, u8, u8),
    /// Buckets of the connection table.
    pub connection_table: u32,
}

/// How long idle connections are kept, in seconds, for all virtual servers of a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections; 900 by default.
    pub tcp: u32,
    /// TCP connections after a FIN; 120 by default.
    pub tcp_fin: u32,
    /// UDP flows; 300 by default.
    pub udp: u32,
}

/// A conversation with the IPVS of the network namespace it was opened in.
#[derive(Debug)]
pub struct Ipvs {
    genl: Genl,
    sockopt: Sockopt,
}

impl Ipvs {
    /// Opens the conversation; the kernel loads `ip_vs` when it can.
    ///
    /// # Errors
    /// [`Cause::Missing`] when this kernel has no IPVS.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { genl: Genl::open(wire::FAMILY, wire::VERSION)?, sockopt: Sockopt::open()? })
    }

    /// Version and size of the connection table.
    ///
    /// # Errors
    /// When the kernel refuses (CAP_NET_ADMIN is needed even for reading).
    pub fn info(&mut self) -> Result<IpvsInfo, KernelError> {
        let error = |cause: Cause| KernelError::new("read version of", "IPVS", cause);
        let answers = self.genl.ask(wire::GET_INFO, Writer::default()).map_err(|fault| error(fault.into()))?;
        answers.first().and_then(|body| wire::read_info(body)).ok_or_else(|| error(unexpected("no version")))
    }

    /// The time-outs in force.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn timeouts(&mut self) -> Result<Timeouts, KernelError> {
        let error = |cause: Cause| KernelError::new("read time-outs of", "IPVS", cause);
        let answers = self.genl.ask(wire::GET_CONFIG, Writer::default()).map_err(|fault| error(fault.into()))?;
        let read = |body: &Vec<u8>| {
            let seconds = |kind| attribute::find(body, kind).and_then(attribute::u32);
            let (tcp, tcp_fin) = (seconds(wire::TIMEOUT_TCP)?, seconds(wire::TIMEOUT_TCP_FIN)?);
            Some(Timeouts { tcp, tcp_fin, udp: seconds(wire::TIMEOUT_UDP)? })
        };
        answers.first().and_then(read).ok_or_else(|| error(unexpected("not all three time-outs")))
    }

    /// Sets the time-outs; 0 keeps one as it is.
    ///
    /// # Errors
    /// When the kernel refuses; it takes at most about 24 days (`INT_MAX / HZ`).
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), KernelError> {
        let mut body = Writer::default();
        body.put(wire::TIMEOUT_TCP, &timeouts.tcp.to_ne_bytes());
        body.put(wire::TIMEOUT_TCP_FIN, &timeouts.tcp_fin.to_ne_bytes());
        body.put(wire::TIMEOUT_UDP, &timeouts.udp.to_ne_bytes());
        let answer = self.genl.request(wire::SET_CONFIG, body);
        answer.map(|_| ()).map_err(|fault| KernelError::new("set time-outs of", "IPVS", fault))
    }

    /// True when the kernel has the scheduler or can load its module. Makes nothing: the question is a virtual server
    /// whose prefix length is out of range, which the kernel checks after the scheduler (`ip_vs_add_service`).
    ///
    /// # Errors
    /// When the kernel refuses otherwise, or knows no IPv6, where a server of that form does not exist.
    pub fn has_scheduler(&mut self, name: &str) -> Result<bool, KernelError> {
        match self.genl.request(wire::NEW_SERVICE, wire::scheduler_question(name)) {
            Err(Fault::Nack(nack)) if nack.errno == libc::EINVAL => Ok(true),
            Err(Fault::Nack(nack)) if nack.errno == libc::ENOENT => Ok(false),
            Err(fault) => Err(KernelError::new("find IPVS scheduler", name, fault)),
            Ok(_) => {
                Err(KernelError::new("find IPVS scheduler", name, unexpected("the question was taken for a server")))
            }
        }
    }

    /// All virtual servers that are identified by protocol, address and port; those of a firewall mark are nobody's
    /// business here.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn virtual_servers(&mut self) -> Result<BTreeMap<VirtualServerKey, VirtualServer>, KernelError> {
        let answers = self.genl.dump(wire::GET_SERVICE, Writer::default());
        let answers = answers.map_err(|fault| KernelError::new("list", "IPVS virtual servers", fault))?;
        Ok(answers.iter().filter_map(|body| wire::read_service(body)).collect())
    }

    /// Those of them that are of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn virtual_servers_of_ipv6(&mut self) -> Result<Vec<(VirtualServerKey, VirtualServer)>, KernelError> {
        let read = |body: &[u8]| wire::read_service(body).filter(|(key, _)| key.addr.is_ipv6());
        let listed = self.genl.list(wire::GET_SERVICE, Writer::default(), read);
        listed.map_err(|fault| KernelError::new("list", "IPVS virtual servers of IPv6", fault))
    }

    /// What the virtual servers have counted that have counted anything.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn traffic(&mut self) -> Result<Vec<(VirtualServerKey, Traffic)>, KernelError> {
        let read = |body: &[u8]| wire::read_traffic(body).filter(|(_, traffic)| *traffic != Traffic::default());
        let counted = self.genl.list(wire::GET_SERVICE, Writer::default(), read);
        counted.map_err(|fault| KernelError::new("list counters of", "IPVS virtual servers", fault))
    }

    /// One virtual server; `None` when it does not exist.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn virtual_server(&mut self, key: &VirtualServerKey) -> Result<Option<VirtualServer>, KernelError> {
        match self.genl.ask(wire::GET_SERVICE, wire::service_id(key)) {
            Ok(answers) => Ok(answers.first().and_then(|body| wire::read_service(body)).map(|(_, value)| value)),
            Err(Fault::Nack(nack)) if nack.errno == libc::ESRCH => Ok(None),
            Err(fault) => Err(KernelError::new("read virtual server", key, fault)),
        }
    }

    /// The real servers of one virtual server with their connections; empty also when there is no such virtual server.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn real_servers(
        &mut self,
        service: &VirtualServerKey,
    ) -> Result<BTreeMap<RealServerKey, (RealServer, Connections)>, KernelError> {
        let answers = self.genl.dump(wire::GET_DEST, wire::service_id(service));
        let answers = answers.map_err(|fault| KernelError::new("list real servers of", service, fault))?;
        Ok(answers.iter().filter_map(|body| wire::read_dest(body, *service)).collect())
    }
}

fn unexpected(text: &str) -> Cause {
    Cause::Unexpected(text.to_owned())
}
