//! `Leases`: Pod subnets in etcd, and whether a host answers.
//!
//! Invariant: a lease is deleted only as it was read: one that was renewed meanwhile stays.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use cluster::etcd::{Deletion, Prefix, Store};
use serde::Deserialize;

use crate::members::Session;
use crate::topology::{ETCD_PREFIX, Host, Purpose, SubnetPolicy, Topology};

/// Leases of a cluster, where they lie in etcd.
pub(crate) struct Leases<'a> {
    session: &'a Session,
    store: Store,
    folder: Prefix,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// `172.7.21.0-24`.
    pub(crate) subnet: String,
    revision: i64,
}

/// Whose it is (flannel, pkg/lease/lease.go).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Holder {
    #[serde(rename = "PublicIP")]
    public_ip: Option<IpAddr>,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<IpAddr>,
}

impl<'a> Leases<'a> {
    /// Those of `topology`; nothing where Nodes have the subnets.
    ///
    /// # Errors
    /// When etcd cannot be asked.
    pub(crate) fn open(topology: &Topology, session: &'a Session) -> Result<Option<Self>, String> {
        if topology.pods.subnets.value == SubnetPolicy::Kubernetes {
            return Ok(None);
        }
        let prefix =
            topology.etcd_prefix.as_ref().map_or_else(|| ETCD_PREFIX.to_owned(), |prefix| prefix.value.to_string());
        let folder = Prefix::parse("etcdPrefix", &prefix).map_err(|problem| problem.to_string())?.folder("subnets");
        Ok(Some(Self { session, store: session.store()?, folder }))
    }

    /// The lease of a host.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) fn of(&self, host: &Host) -> Result<Option<Lease>, String> {
        let listing = self.session.wait(self.store.list(&self.folder)).map_err(|error| error.asked_once())?;
        let is_its = |value: &[u8]| {
            let holder: Holder = serde_json::from_slice(value).unwrap_or_default();
            let own = |address: Option<IpAddr>| host.addresses.iter().any(|found| Some(found.value) == address);
            own(holder.public_ip) || own(holder.public_ipv6)
        };
        let found = listing.entries.into_iter().find(|entry| is_its(&entry.value));
        Ok(found.map(|entry| Lease { subnet: entry.key, revision: entry.mod_revision }))
    }

    /// Deletes a lease; false when it was renewed or taken since.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) fn delete(&self, lease: &Lease) -> Result<bool, String> {
        let gone = self.session.wait(self.store.delete_if(&self.folder.key(&lease.subnet), lease.revision));
        Ok(matches!(gone.map_err(|error| error.asked_once())?, Deletion::Gone))
    }
}

/// Whether a host answers within `limit`, be it with a refusal.
pub(crate) fn answers(topology: &Topology, host: &Host, limit: Duration) -> bool {
    let ports = [Purpose::Kubelet, Purpose::ProxyHealth].map(|purpose| topology.ports.of(purpose));
    let Some(address) = host.addresses.first() else { return false };
    ports.into_iter().any(|port| match TcpStream::connect_timeout(&SocketAddr::new(address.value, port), limit) {
        Ok(_) => true,
        Err(cause) => matches!(cause.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
    })
}
