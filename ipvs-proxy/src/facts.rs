//! What the tools of an operator judge: the objects of the source, what is planned from them, and the rows of the kernel, all read anew.
//!
//! Invariant: nothing is taken from the daemon but how it was started and which data path it uses; what cannot be read is said.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::shell::seed;
use daemon::status::{State, Stored};
use kernel::Rtnl;
use kernel::ipvs::{Connections, Ipvs};
use kernel::nft::{Nft, Tables};
use kernel::query::{Interface, Query};
use netstate::ipvs::{self, RealServer, VirtualServer, VirtualServerKey};
use netstate::nft::{Row, RowKey};
use netstate::{Prefix, Route, RouteKey};
use reconcile::Target as _;
use serde::Deserialize as _;
use serde_json::Value;

use crate::command::args::Invocation;
use crate::command::config::{self, Config, run_dir};
use crate::command::load;
use crate::command::settings::fields::path;
use crate::dataplane::{self, DataPlane, Mode, NodeAddresses, vip};
use crate::object::key::Kind;
use crate::plan::here::{self, Here};
use crate::plan::networks::{Networks, placed};
use crate::plan::remarks::remarks;
use crate::plan::{Claims, plan};
use crate::run::status::ProxyStatus;
use crate::run::{self, NAME};
use crate::source::Source;
use crate::source::view::View;

/// Longest wait for the source's objects.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the kernel shows its virtual servers, once it has IPVS.
pub(crate) const IPVS: &str = "/proc/net/ip_vs";

/// Everything; see the module's text.
pub(crate) struct Facts {
    /// What to say of a daemon that does not run, or that nobody knows of.
    pub(crate) silence: Option<String>,
    /// Why the objects cannot be read, if so.
    pub(crate) lost: Option<String>,
    pub(crate) view: View,
    pub(crate) here: Here,
    /// What differs between flags, Node object and machine, and why load balancers are to send nobody here.
    pub(crate) remarks: Vec<String>,
    /// The Pod networks.
    pub(crate) pods: Vec<Prefix>,
    /// The networks that must not overlap.
    pub(crate) networks: Networks,
    /// The kernel's name of the common scheduler of virtual servers.
    pub(crate) scheduler: String,
    /// Networks that are to be local by routes.
    pub(crate) local: Vec<Prefix>,
    /// What the daemon said last.
    pub(crate) status: Option<ProxyStatus>,
    pub(crate) planned: Planned,
    pub(crate) kernel: Kernel,
}

/// What is planned, and its rows.
pub(crate) struct Planned {
    pub(crate) claims: Claims,
    pub(crate) plane: DataPlane,
    pub(crate) nft: BTreeMap<RowKey, Row>,
    pub(crate) ipvs: BTreeMap<VirtualServerKey, ipvs::Row>,
    /// Virtual addresses.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Addresses that cannot be virtual here, by Service.
    pub(crate) misplaced: BTreeMap<String, String>,
}

/// What the kernel holds.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) nft: BTreeMap<RowKey, Row>,
    pub(crate) servers: BTreeMap<VirtualServerKey, Server>,
    pub(crate) interfaces: Vec<Interface>,
    /// Routes of ours that make whole networks local.
    pub(crate) routes: BTreeMap<RouteKey, Route>,
}

/// A virtual server with its real servers.
pub(crate) struct Server {
    pub(crate) value: VirtualServer,
    pub(crate) reals: BTreeMap<SocketAddr, (RealServer, Connections)>,
}

impl Kernel {
    /// Every address of this node.
    pub(crate) fn local(&self) -> BTreeSet<IpAddr> {
        self.interfaces.iter().flat_map(|link| link.addresses.iter().map(|address| address.addr)).collect()
    }

    /// Its own addresses: all but the virtual ones.
    pub(crate) fn own(&self) -> BTreeSet<IpAddr> {
        let others = self.interfaces.iter().filter(|link| link.name.as_str() != vip::LINK_NAME);
        others.flat_map(|link| link.addresses.iter().map(|address| address.addr)).collect()
    }

    /// Whether the link of virtual addresses has `addr`.
    pub(crate) fn has_virtual(&self, addr: IpAddr) -> bool {
        let mut links = self.interfaces.iter().filter(|link| link.name.as_str() == vip::LINK_NAME);
        links.any(|link| link.addresses.iter().any(|address| address.addr == addr))
    }
}

/// The invocation that the daemon was started by where this one names no source, and what to say of the daemon.
fn daemon(invocation: &Invocation) -> (Invocation, Option<String>, Option<Value>) {
    let folder = run_dir(&invocation.flags);
    let stored = match Stored::read(&folder) {
        Ok(stored) => stored,
        Err(error) => {
            let silence = format!("no daemon is known in {}: {error}", folder.display());
            return (invocation.clone(), Some(silence), None);
        }
    };
    let warning = stored.warning(NAME).filter(|_| stored.state != State::Running);
    let flags = &invocation.flags;
    let names_server = [path::KUBECONFIG, path::MASTER].iter().any(|key| invocation.given.contains_key(key));
    let names_source =
        flags.services_dir.is_some() || flags.etcd.etcd_endpoints.is_some() || flags.config.is_some() || names_server;
    let words = stored.status.get("startedWith").and_then(Value::as_array);
    let words: Vec<&str> = words.into_iter().flatten().filter_map(Value::as_str).collect();
    let as_started = words.into_iter().map(str::to_owned).chain(invocation.words.iter().skip(1).cloned());
    let read = if names_source { None } else { Invocation::read(as_started.map(Into::into)).ok() };
    (read.unwrap_or_else(|| invocation.clone()), warning, Some(stored.status))
}

/// Reads everything but virtual servers.
///
/// # Errors
/// When the settings are wrong or the kernel cannot be read.
pub(crate) fn gather(invocation: &Invocation) -> Result<Facts> {
    let (invocation, silence, status) = daemon(invocation);
    let config = load::config(&invocation).context("how the daemon is started, by the flags or its status file")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let (view, lost) = runtime.block_on(objects(&config));
    let (interfaces, networks, mut facts) = runtime.block_on(async {
        let interfaces = Query::open()?.interfaces().await?;
        Ok::<_, anyhow::Error>((interfaces, run::networks_of(&config).await?, run::facts(&config).await?))
    })?;
    let rows = Tables::new(Nft::open()?, dataplane::tables()).observe()?;
    let nft = rows.into_iter().map(|(key, row)| (key, row.value)).collect();
    let routes = run::addresses::local_routes(Rtnl::open()?).observe()?;
    let routes = routes.into_iter().map(|(key, row)| (key, row.value)).collect();
    let kernel = Kernel { nft, interfaces, routes, ..Kernel::default() };
    facts.object = view.node(&config.node).cloned();
    let mode = mode(status.as_ref(), config.mode);
    let here = facts.here(match mode {
        Mode::Ipvs => here::Mode::Ipvs,
        Mode::Nftables => here::Mode::Nftables,
    });
    let pods = config.settings.text(path::CLUSTER_CIDR).split(',').filter_map(|network| network.parse().ok()).collect();
    let mut plane = run::plane(&config, mode)?;
    plane.set_pods(here.pods.clone(), std::iter::empty());
    let status = status.as_ref().and_then(|status| ProxyStatus::deserialize(status).ok());
    // What is announced is as the daemon knows it: its rows are compared with these.
    let announced = status.iter().flat_map(|status| &status.service_networks).filter(|network| network.used);
    plane.set_announced(announced.filter_map(|network| network.network.parse().ok()).collect());
    let planned = Planned::of(plane, &view, &here, &networks);
    let (scheduler, local) = (config.scheduler.name, config.local);
    let leaving = facts.object.as_ref().and_then(|node| Some((&node.name, node.leaving?)));
    let leaving =
        leaving.map(|(name, leaving)| format!("Node {name}: {leaving}, so that load balancers send nobody here"));
    let remarks = leaving.into_iter().chain(remarks(&facts)).collect();
    Ok(Facts { silence, lost, view, here, remarks, pods, networks, scheduler, local, status, planned, kernel })
}

impl Facts {
    /// Reads these virtual servers, as far as they exist.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(crate) fn read_servers(&mut self, keys: &BTreeSet<VirtualServerKey>) -> Result<()> {
        // Opening IPVS would load it.
        if !Path::new(IPVS).exists() {
            return Ok(());
        }
        let mut ipvs = Ipvs::open()?;
        for key in keys {
            let Some(value) = ipvs.virtual_server(key)? else { continue };
            let reals = ipvs.real_servers(key)?.into_iter();
            let reals = reals.map(|(real, held)| (SocketAddr::new(real.addr, real.port), held)).collect();
            self.kernel.servers.insert(*key, Server { value, reals });
        }
        Ok(())
    }
}

/// The data path that is in use, or that a start would choose.
fn mode(status: Option<&Value>, asked: config::Mode) -> Mode {
    let said = status.and_then(|status| status.get("mode")).and_then(Value::as_str);
    match (said, asked) {
        (Some("ipvs"), _) => Mode::Ipvs,
        (Some("nftables"), _) => Mode::Nftables,
        (_, config::Mode::Ipvs) => Mode::Ipvs,
        (_, config::Mode::Auto) if Path::new(IPVS).exists() => Mode::Ipvs,
        (_, config::Mode::Auto | config::Mode::Nftables) => Mode::Nftables,
    }
}

/// The source's objects, and why they cannot be read if so.
async fn objects(config: &Config) -> (View, Option<String>) {
    let mut view = View::default();
    let mut waiting: BTreeSet<Kind> = Kind::ALL.into();
    let mut source = Source::listen(&config.place, &config.node, seed());
    let listing = async {
        while !waiting.is_empty() && view.lost().is_none() {
            let Some(update) = source.next().await else { break };
            for kind in update.completes() {
                waiting.remove(kind);
            }
            view.take(update);
        }
    };
    let late = tokio::time::timeout(LIMIT, listing).await.is_err();
    let reason = view.lost().map(ToString::to_string);
    let late = late.then(|| format!("it does not answer within {} s", LIMIT.as_secs()));
    (view, reason.or(late))
}

impl Planned {
    /// What is planned for the objects that are known.
    pub(crate) fn of(mut plane: DataPlane, view: &View, here: &Here, networks: &Networks) -> Self {
        let (mut claims, mut misplaced) = (Claims::default(), BTreeMap::new());
        let (mut nft, mut ipvs, mut addresses) = (plane.tables().collect(), BTreeMap::new(), BTreeSet::new());
        change(&mut nft, plane.set_node(NodeAddresses::from(here), claims.all()).nft);
        for service in view.services() {
            let (at, refused) = placed(service, networks, Vec::new);
            let reasons: Vec<_> = refused.iter().map(ToString::to_string).collect();
            if !reasons.is_empty() {
                misplaced.insert(service.name.to_string(), reasons.join("; "));
            }
            let plan = plan(service, &at, view.slices(&service.name), here);
            let changes = plane.rows(&claims.settle(&service.name, Some(plan)));
            change(&mut nft, changes.nft);
            change(&mut ipvs, changes.ipvs);
            for (key, wanted) in changes.addresses {
                if wanted.is_some() {
                    addresses.insert(key.addr);
                } else {
                    addresses.remove(&key.addr);
                }
            }
        }
        Self { claims, plane, nft, ipvs, addresses, misplaced }
    }
}

fn change<K: Ord, V>(rows: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
}
