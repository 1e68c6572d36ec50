//! `Facts`: what this host is like, read once; `Case`: beside what it shall be.
//!
//! Pure. Invariant: nothing here is a judgement; what could not be asked is in `unread`, by the check that needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netstate::{IpFamily, Prefix};

use crate::topology::{Host, Purpose, Role, Topology, Transport};

/// A host as it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Files with their texts, by their place on the host.
    pub(crate) texts: BTreeMap<String, String>,
    /// Files and folders that are there, among those that a check asks for.
    pub(crate) paths: BTreeSet<String>,
    /// The clock.
    pub(crate) clock: Option<Clock>,
    /// Addresses that the system's resolver gives for names that are not in /etc/hosts, or what it says.
    pub(crate) resolved: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    /// Links with their addresses.
    pub(crate) links: Vec<Link>,
    /// Routes of all tables but the local one, default routes left out.
    pub(crate) routes: Vec<Route>,
    /// The way to each address of another host, or what the kernel says.
    pub(crate) ways: BTreeMap<IpAddr, Result<Way, String>>,
    /// What rules deny of what other hosts send here.
    pub(crate) denied: Vec<Denied>,
    /// Chains of others that drop what is forwarded, each with whether netd can accept Pods' packets in it.
    pub(crate) forward: Vec<(String, bool)>,
    /// Who has rules: `nft`, `iptables-legacy`, with the tables.
    pub(crate) legacy_tables: Vec<String>,
    /// nft tables of iptables that hold rules.
    pub(crate) iptables_nft: Vec<String>,
    /// firewalld has its rules here.
    pub(crate) has_firewalld: bool,
    /// Sockets that wait for clients.
    pub(crate) sockets: Vec<Socket>,
    /// File systems of folders.
    pub(crate) disks: Vec<Disk>,
    /// What the kernel said when it was asked for what our programs use.
    pub(crate) features: BTreeMap<&'static str, Result<(), String>>,
    /// What could not be asked, by check.
    pub(crate) unread: BTreeMap<&'static str, String>,
}

/// The clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Somebody keeps it.
    pub(crate) synchronized: bool,
    /// How wrong it is at most.
    pub(crate) error: Duration,
}

/// A link.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Addresses with the length of their network.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
}

/// A route to a network.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) dst: Prefix,
    pub(crate) link: String,
    /// netd or ipvs-proxy made it.
    pub(crate) ours: bool,
}

/// Where packets to an address go.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) link: String,
    pub(crate) source: Option<IpAddr>,
}

/// A port that rules close to another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denied {
    /// What listens there, by its field in the topology.
    pub(crate) purpose: String,
    pub(crate) port: u16,
    pub(crate) transport: Transport,
    /// Who is denied.
    pub(crate) from: IpAddr,
    /// Rule or policy.
    pub(crate) by: String,
}

/// A socket that waits for clients.
#[derive(Debug, Clone)]
pub(crate) struct Socket {
    pub(crate) transport: Transport,
    pub(crate) at: SocketAddr,
    /// The process; the kernel's own tunnels have none.
    pub(crate) owner: Option<Process>,
}

/// A process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// At most 15 characters of its name.
    pub(crate) name: String,
    /// The unit of systemd that it belongs to.
    pub(crate) unit: Option<String>,
}

/// Room in the file system of a folder.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) folder: String,
    pub(crate) free: u64,
    pub(crate) size: u64,
    pub(crate) free_files: u64,
    pub(crate) files: u64,
}

/// A host beside what it shall be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Case {
    pub(crate) facts: Facts,
    /// The cluster, and which of its hosts this one is.
    pub(crate) plan: Option<Plan>,
}

/// What a host shall be.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) topology: Topology,
    pub(crate) host: Host,
}

impl Facts {
    /// A file's text.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// A parameter of the kernel, by its name with dots.
    pub(crate) fn parameter(&self, key: &str) -> Option<u64> {
        self.text(&format!("/proc/sys/{}", key.replace('.', "/")))?.trim().parse().ok()
    }

    /// Files in `folder`, in the order of their names.
    pub(crate) fn files_in<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let within = move |path: &str| {
            path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).is_some_and(|name| !name.contains('/'))
        };
        let texts = self.texts.iter().filter(move |(path, _)| within(path));
        texts.map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// What the host calls itself.
    pub(crate) fn host_name(&self) -> &str {
        self.text("/proc/sys/kernel/hostname").unwrap_or_default().trim()
    }
}

impl Case {
    /// True when this host is, or may be, for `role`: without a topology it may be for all of them.
    pub(crate) fn is(&self, role: Role) -> bool {
        self.plan.as_ref().is_none_or(|plan| plan.host.has(role))
    }

    /// True when netd runs, or may run, on this host.
    pub(crate) fn has_netd(&self) -> bool {
        self.plan.as_ref().is_none_or(|plan| plan.topology.has_netd(&plan.host))
    }

    /// True when this host has, or may have, what a port is for.
    pub(crate) fn serves(&self, purpose: Purpose) -> bool {
        self.plan.as_ref().is_none_or(|plan| purpose.is_served_by(&plan.topology, &plan.host))
    }

    /// Families that Pods and Services have.
    pub(crate) fn families(&self) -> Vec<IpFamily> {
        let Some(plan) = &self.plan else { return vec![IpFamily::V4] };
        let networks = &plan.topology.networks;
        let has = |family: &IpFamily| networks.pods.iter().any(|network| network.value.family() == *family);
        IpFamily::ALL.into_iter().filter(has).collect()
    }

    /// The other hosts.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Host> {
        let plan = self.plan.iter();
        plan.flat_map(|plan| plan.topology.hosts.iter().filter(|host| host.name.value != plan.host.name.value))
    }

    /// The names of a host: short, and with the domain.
    pub(crate) fn names(&self, host: &Host) -> Vec<String> {
        let name = host.name.value.clone();
        let domain = self.plan.as_ref().and_then(|plan| plan.topology.domain.as_ref());
        let is_short = !name.contains('.');
        let long = domain.filter(|_| is_short).map(|domain| format!("{name}.{}", domain.value));
        std::iter::once(name).chain(long).collect()
    }
}

#[cfg(test)]
impl Case {
    /// A host of which only these files are known.
    pub(crate) fn planted(texts: &[(&str, &str)]) -> Self {
        let texts = texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Self { facts: Facts { texts, ..Facts::default() }, plan: None }
    }

    /// The host `name` of the reference cluster.
    pub(crate) fn of_host(mut self, name: &str) -> Self {
        let text = include_str!("../../../configs/clusters/reference.yaml");
        let topology = crate::check::text(text).topology.unwrap();
        let host = topology.hosts.iter().find(|host| host.name.value == name).unwrap().clone();
        self.plan = Some(Plan { topology, host });
        self
    }
}
