//! What this program writes into: the kernel's tables of one network, and the files of an operator's own program.
//!
//! Invariant: each table lists, and calls ours, only what [`Ownership`] or its device says is ours; what all of them write is
//! known to whoever reads the kernel's notifications.

use std::collections::BTreeSet;
use std::path::PathBuf;

use daemon::monitors::Interests;
use kernel::address::Addresses;
use kernel::fdb::Fdbs;
use kernel::neighbour::Neighbours;
use kernel::nft;
use kernel::nft::forward::Forward;
use kernel::offload::TxChecksums;
use kernel::route::Routes;
use kernel::sysctl::Sysctls;
use kernel::watch::Interest;
use kernel::wireguard::{Fingerprint, Wireguards};
use kernel::writer::{Subject, Writers};
use kernel::{KernelError, Rtnl};
use netstate::nft::{Row, RowKey};
use netstate::wireguard;
use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, Neighbour, NeighbourKey, Route, RouteKey, SysctlKey, TxChecksum,
};
use reconcile::Target;

use super::extension::EventFiles;
use super::identity::Identity;
use super::indexes::{Unwritten, links};
use super::notification::interest;
use super::rivals::Rivals;
use super::unannounced::{Check, check};
use crate::command::instance::Instance;
use crate::plan::Ownership;
use crate::plan::backend::{Backend, FileText};

/// One kernel table, or a fake of it.
pub(super) type Rows<K, V> = Box<dyn Target<Key = K, Value = V, Error = KernelError> + Send>;

/// The tables as something that rows can be written into.
pub(super) struct Targets {
    pub(super) links: Rows<IfName, Link>,
    /// Whether what the next run should know of these could be written down.
    pub(super) unwritten: Unwritten,
    pub(super) checksums: Rows<IfName, TxChecksum>,
    /// Identity, port and peers of WireGuard devices, where there are any.
    pub(super) wireguard: Option<Rows<wireguard::RowKey, wireguard::Row>>,
    /// Says whether somebody may have changed these, which the kernel notifies nobody of.
    pub(super) wireguard_differs: Option<Check>,
    /// Lists the parameters that it is asked for.
    pub(super) sysctls: Box<dyn Fn(BTreeSet<SysctlKey>) -> Rows<SysctlKey, String> + Send>,
    pub(super) addresses: Rows<AddressKey, Address>,
    pub(super) nft: Rows<RowKey, Row>,
    /// The nft tables of what sees packets as they arrive on links.
    pub(super) ingress: Rows<RowKey, Row>,
    pub(super) neighbours: Rows<NeighbourKey, Neighbour>,
    pub(super) fdb: Rows<FdbKey, Fdb>,
    pub(super) routes: Rows<RouteKey, Route>,
    /// Files of the operator's own program, where that carries the packets.
    pub(super) files: Option<Rows<String, FileText>>,
    pub(super) forward: Option<Forward>,
    /// Finds the routes of others in front of ours.
    pub(super) rivals: Option<Rivals>,
    pub(super) interests: Interests,
}

/// What names the parts of one network on this host.
pub(super) struct Folders {
    pub(super) instance: Instance,
    pub(super) run_dir: PathBuf,
}

impl Targets {
    /// The kernel's tables of one network with the rows that `ownership` calls ours. `devices` are names of tunnel devices that an
    /// earlier run of this program recorded as its own.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub(super) fn of_kernel(
        folders: &Folders,
        ownership: &Ownership,
        devices: &BTreeSet<IfName>,
        identity: &Identity,
    ) -> Result<Self, KernelError> {
        let mut own_ports = BTreeSet::new();
        let mut rtnl = || {
            let rtnl = Rtnl::open()?;
            own_ports.insert(rtnl.port()?);
            Ok::<_, KernelError>(rtnl)
        };
        let (tables, ingress, foreign) = (nft::Nft::open()?, nft::Nft::open()?, nft::Nft::open()?);
        let nft_ports = BTreeSet::from([tables.port()?, ingress.port()?, foreign.port()?]);
        let devices_now = ownership.devices();
        let wireguard = wireguard(ownership, identity)?;
        let fingerprint = wireguard.as_ref().map(|_| Fingerprint::open(ownership.key_devices())).transpose()?;
        let needs_files = ownership.backends().any(Backend::needs_files);
        let files = needs_files.then(|| EventFiles::below(&folders.run_dir));
        let instance = &folders.instance;
        let recorded: BTreeSet<IfName> = devices.iter().chain(&devices_now).cloned().collect();
        let names = recorded.clone();
        let own_link = move |name: &IfName, link: &Link| recorded.contains(name) && Backend::makes_link(link);
        let ownership = ownership.clone();
        let (table, protocols) = Ownership::CANDIDATES;
        let (own, pods) = (ownership.local.subnets().collect(), ownership.network.networks().collect::<Vec<_>>());
        let inside = move |key: &RouteKey| pods.iter().any(|pods| pods.covers(&key.dst));
        let interest = interest(&ownership, names.clone());
        let own_route = move |key: &RouteKey, route: &Route| ownership.owns(key, route);
        let routes = Routes::within(rtnl()?, table, protocols, Box::new(own_route), inside);
        let rivals = Rivals::new(routes.foreign(), rtnl()?, own);
        let fdb = Fdbs::new(rtnl()?, devices_now.clone());
        let neighbours = Neighbours::new(rtnl()?, devices_now.clone());
        let (written, removed, writers) = (fdb.written(), neighbours.removed(), Writers::default());
        let (links, unwritten) = links(rtnl()?, Box::new(own_link), names, &folders.run_dir);
        Ok(Self {
            links: Box::new(writers.watch(links, Subject::Link)),
            unwritten,
            checksums: Box::new(TxChecksums::open(devices_now.iter().cloned())?),
            wireguard,
            wireguard_differs: fingerprint.map(check),
            sysctls: Box::new(|keys| Box::new(Sysctls::new(keys))),
            addresses: Box::new(writers.watch(Addresses::new(rtnl()?, devices_now.clone()), Subject::Address)),
            nft: Box::new(writers.watch_tables(nft::Tables::new(tables, instance.tables()))),
            ingress: Box::new(writers.watch_tables(nft::Tables::new(ingress, instance.ingress()))),
            neighbours: Box::new(writers.watch(neighbours, Subject::Neighbour)),
            fdb: Box::new(writers.watch(fdb, Subject::Forwarding)),
            routes: Box::new(writers.watch(routes, Subject::Route)),
            files: files.map(|files| Box::new(files) as Rows<String, FileText>),
            forward: Some(Forward::new(foreign, instance.all_tables(), instance.marker()).watched(writers.clone())),
            rivals: Some(rivals),
            interests: Interests {
                rtnl: Interest { own: own_ports, written, removed, writers, ..interest },
                nft: nft_ports,
            },
        })
    }
}

/// The devices and peers of WireGuard, when this node has a key.
fn wireguard(
    ownership: &Ownership,
    identity: &Identity,
) -> Result<Option<Rows<wireguard::RowKey, wireguard::Row>>, KernelError> {
    let Some(key) = &identity.key else { return Ok(None) };
    let keys = ownership.key_devices().into_iter().map(|device| (device, key.clone()));
    Ok(Some(Box::new(Wireguards::open(keys)?)))
}
