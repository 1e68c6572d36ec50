//! From the configuration to a daemon that can run: interface, network, plan of addresses, lease keeper.
//!
//! Invariant: everything that is wrong is reported before anything is changed. What may still come (the store, the
//! network's configuration, an interface with an address) is waited for; what only a person can correct ends the program.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use cluster::Backoff;
use daemon::shell::Shell;
use netstate::address_plan::AddressPlan;
use netstate::family::{IpFamily, PerFamily};
use netstate::{MacAddr, Prefix};

use super::LEASES;
use super::claim::Claimed;
use super::daemon::{Daemon, Node};
use super::external::{self, External as Following};
use super::identity::Identity;
use super::reconfigure::earlier_backend;
use super::records::{self, Records};
use super::status::Status;
use super::targets::{Folders, Targets};
use super::{facts, needs, subnet_file, vrf};
use crate::choose::interface::{External, NodeAddress};
use crate::choose::policy::Policy;
use crate::choose::subnet::Candidate;
use crate::command::config::{Config, Store};
use crate::format::lease::LeaseAttrs;
use crate::format::net_conf::{NetConf, Network};
use crate::plan::{LocalNode, Ownership, Place, Ways, unreachable};
use crate::source::{
    ConfigError, EtcdLeases, Keeper, KubernetesLeases, LeaseRecord, LeaseRequest, LeaseSource, LocalLeases,
};
use cluster::kubernetes::Client;
use cluster::{Problem, Problems};

/// Runs with the source of leases that the configuration names.
pub(super) async fn run(mut config: Config, seed: u64, shell: Shell, claimed: Claimed) -> Result<()> {
    match &config.store {
        Store::Kubernetes { access, settings } => {
            let client = Client::connect(access)?;
            let report = |missing: &str| awaits(&shell, "kubernetes", missing);
            let source = KubernetesLeases::begin(client, settings.clone(), seed, report).await;
            config.interface.public_ips =
                source.public_ips().zip(config.interface.public_ips).map(|_, (named, own)| named.or(own));
            let ended = match start(config, source.clone(), seed, shell, claimed).await {
                Ok(daemon) => daemon.run().await,
                Err(error) => Err(error),
            };
            if let Err(error) = &ended {
                source.report_end(error).await;
            }
            ended
        }
        Store::Local { net_conf } => {
            let source = LocalLeases::new(net_conf.clone());
            start(config, source, seed, shell, claimed).await?.run().await
        }
        Store::Etcd { client, prefix, renew_margin } => {
            let source = EtcdLeases::new(client.clone(), prefix.clone(), *renew_margin, seed);
            start(config, source, seed, shell, claimed).await?.run().await
        }
    }
}

/// Gets everything ready. Ends only when the network's configuration is there.
async fn start<S: LeaseSource>(
    config: Config,
    source: S,
    seed: u64,
    shell: Shell,
    claimed: Claimed,
) -> Result<Daemon<S>> {
    let Found { text, network, families, external } = found(&config, &source, seed, &shell).await?;
    let host = facts::interfaces().await.context("read the addresses of this host")?;
    let retiring = earlier_backend(&source, &config.run_dir, &network);
    let macs = facts::tunnel_macs(&network, &retiring).context("look for the tunnel devices")?;
    let identity = needs::check(&config, &network).and_then(|()| Identity::of(&network.backend, &config))?;
    let previous = subnet_file::previous(&config.subnet_file, &network);
    let (addresses, public_key) = (external.addresses, identity.public_key());
    let node = Candidate { addresses, previous, device_macs: macs, public_key, ..Candidate::default() };
    let of_interface = facts::vrf(&external.interface).context("read the interface's VRF")?;
    let ways = Ways { own: facts::addresses(&host, &external.interface), vrf: of_interface, ..Ways::default() };
    let machine = facts::machine(&external.interface).context("read what identifies this machine")?;
    let known = Known { macs: &macs, identity: &identity, machine: &machine };
    let local = LocalNode { ways, ..local(&external, &network, &known) };
    check_plan(&config, &network, &local)?;
    check_addresses(&network, &local)?;
    let claimed = claimed.extend(network.networks(), network.devices()).await?;
    vrf::release(&network, &external.interface).context("compare the tunnel's VRF with its interface's")?;
    let records = Records::open(&config, &network, &claimed)?;
    let record = records::leases(&config.run_dir);
    let identity = identity.distinct(&source, &node, &record, &config.wireguard_key_file).await?;
    let public_key = identity.public_key();
    let (node, local) = (Candidate { public_key, ..node }, LocalNode { public_key, ..local });
    let request = request(&config, &network, &local, node, &record);
    let ownership = Ownership { retiring, earlier: records.networks, ..Ownership::of(network.clone(), local) };
    let (ownership, leftovers) = earlier_routes(ownership, records.adopts.then_some(previous))?;
    let keeper = Keeper::start(source.clone(), request, seed);
    let leftovers = if source.is_shared() { leftovers } else { BTreeSet::new() };
    let external = Following::new(config.interface.clone(), families, external, host);
    let folders = Folders { instance: config.instance.clone(), run_dir: config.run_dir.clone() };
    let node = Node {
        config,
        claimed: Some(claimed),
        network,
        devices: records.devices,
        machine,
        ownership,
        record,
        leftovers,
        text,
        identity,
        open: Box::new(move |ownership, devices, identity| Targets::of_kernel(&folders, ownership, devices, identity)),
    };
    Ok(Daemon::new(node, source, keeper, external, shell))
}

/// What a daemon waits for.
struct Found {
    /// The network's configuration as it is written.
    text: String,
    network: Network,
    /// The network's families of addresses.
    families: Vec<IpFamily>,
    external: External,
}

/// Waits for the network's configuration and for an interface that has addresses of its families.
async fn found<S: LeaseSource>(config: &Config, source: &S, seed: u64, shell: &Shell) -> Result<Found> {
    let report = |missing: &str| awaits(shell, source.kind(), missing);
    let of_host = |missing: &str| report(&format!("an interface: {missing}"));
    // What names no interface in any network is reported before the store has one.
    external::wait(&config.interface, &IpFamily::ALL, &of_host).await.context("read the interfaces of this host")?;
    let (text, network) = network(source, seed, &report).await?;
    let families: Vec<IpFamily> = network.pools.families().collect();
    let external = external::wait(&config.interface, &families, &of_host).await;
    let external = external.context("read the interfaces of this host")?;
    report("");
    report_interface(&external, &families);
    Ok(Found { text, network, families, external })
}

/// Says where the daemon's health and status are asked for what it waits.
fn awaits(shell: &Shell, kind: &str, missing: &str) {
    shell.readiness.await_for(LEASES, missing);
    shell.board.set(&Status::awaiting(kind, missing));
}

/// The subnets that routes of an earlier run lead to; at a first start, with what flannel's file names, the routes are adopted.
fn earlier_routes(
    ownership: Ownership,
    previous: Option<PerFamily<Option<Prefix>>>,
) -> Result<(Ownership, BTreeSet<Prefix>)> {
    let routes = facts::routes().context("look for routes of an earlier run")?;
    let ownership = match previous {
        Some(previous) => ownership.adopting(routes.iter().cloned(), &previous),
        None => ownership,
    };
    // A route of flannel's to the whole network is no node's.
    let whole = |dst: &Prefix| ownership.network.networks().any(|network| network == *dst);
    let own = routes.iter().filter(|(key, route)| ownership.owns(key, route) && !whole(&key.dst));
    let leftovers = own.map(|(key, _)| key.dst).collect();
    Ok((ownership, leftovers))
}

fn request(
    config: &Config,
    network: &Network,
    local: &LocalNode,
    node: Candidate,
    record: &LeaseRecord,
) -> LeaseRequest {
    LeaseRequest {
        network: network.clone(),
        policies: config.policies.clone().or_else(|| network.assignment.clone()).unwrap_or(Policy::DEFAULT.into()),
        attrs: LeaseAttrs { public_ips: local.public_ips(), backend: network.backend.attrs(local) },
        adopts_mac: node.device_macs.is_empty(),
        node,
        record: record.clone(),
        rival: None,
        objects: false,
    }
}

/// Reports the interface, and a family of the network that this node does not have.
fn report_interface(external: &External, families: &[IpFamily]) {
    tracing::info!(
        interface = %external.interface, public_ip = external.public_ips().list(), mtu = external.mtu,
        "this node's interface towards the others"
    );
    for family in families.iter().filter(|family| external.addresses.get(**family).is_none()) {
        tracing::warn!(
            interface = %external.interface, %family,
            "the interface has no address of a family of the network: this node has no Pods of it"
        );
    }
}

/// What is found of this node besides its interface.
struct Known<'a> {
    /// Hardware addresses of its tunnel devices.
    macs: &'a PerFamily<Option<MacAddr>>,
    identity: &'a Identity,
    /// What distinguishes its machine from others.
    machine: &'a [u8],
}

fn local(external: &External, network: &Network, known: &Known) -> LocalNode {
    let Known { macs, identity, machine } = known;
    let place = |family, own: Option<NodeAddress>| {
        let own = own?;
        // The device's own, so that the other nodes need not learn a new one.
        let mac = macs.get(family).unwrap_or_else(|| network.backend.generated_mac(own.public_ip, machine));
        Some(Place::new(&own, mac))
    };
    LocalNode {
        places: external.addresses.map(place),
        unserved: PerFamily::default(),
        interface: external.interface.clone(),
        mtu: external.mtu,
        has_ipv6: facts::has_ipv6(),
        accepts_routers: facts::accepts_routers(&external.interface),
        checksum_fault: facts::checksum_fault(&external.interface),
        flowtables: facts::flowtables(),
        public_key: identity.public_key(),
        data: identity.data.clone(),
        ways: Ways::default(),
    }
}

/// The network's configuration, waited for.
async fn network<S: LeaseSource>(source: &S, seed: u64, report: &impl Fn(&str)) -> Result<(String, Network)> {
    let place = source.config_place();
    let text = wait_for_config(source, &place, seed, report).await?;
    let text = String::from_utf8(text).with_context(|| format!("{place} holds no text"))?;
    let conf = net_conf(source, &text).map_err(|list| Problems { source: place.clone(), list })?;
    for note in &conf.notes {
        tracing::warn!(source = place, "{note}");
    }
    let network = conf.network;
    tracing::info!(source = place, %network, backend = network.backend.name(), "the network");
    Ok((text, network))
}

/// Reads a configuration as the source of the leases takes it.
pub(super) fn net_conf<S: LeaseSource>(source: &S, text: &str) -> Result<NetConf, Vec<Problem>> {
    if source.is_chosen_from() { NetConf::parse(text) } else { NetConf::parse_assigned(text) }
}

async fn wait_for_config<S: LeaseSource>(
    source: &S,
    place: &str,
    seed: u64,
    report: &impl Fn(&str),
) -> Result<Vec<u8>> {
    let mut backoff = Backoff::new(seed);
    let mut reported = String::new();
    loop {
        let trouble = match source.config().await {
            Ok(Some(text)) => return Ok(text),
            Ok(None) => {
                format!(
                    "{place} does not exist: write the network's configuration there (`netd config set -f net-conf.json`)"
                )
            }
            Err(error @ ConfigError::File(..)) => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        if trouble != reported {
            tracing::warn!("waiting: {trouble}");
            report(&trouble);
            reported = trouble;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Refuses an own address that every other node would refuse.
fn check_addresses(network: &Network, local: &LocalNode) -> Result<()> {
    let refused = |(_, own): (_, &Place)| unreachable(network, Some(own.node_network), own.public_ip);
    match local.places.present().find_map(refused) {
        Some(reason) => bail!("{reason}: give --iface or --public-ip an address that the other nodes reach"),
        None => Ok(()),
    }
}

pub(super) fn check_plan(config: &Config, network: &Network, local: &LocalNode) -> Result<()> {
    let nodes = local.places.present().map(|(_, place)| place.node_network);
    let plan = nodes.fold(AddressPlan::default(), |plan, network| plan.node(None, network));
    let plan = network.networks().fold(plan, AddressPlan::pods);
    let plan = config.services.iter().copied().fold(plan, AddressPlan::services);
    let list: Vec<Problem> =
        plan.overlaps().iter().map(|overlap| Problem::new("networks", overlap.to_string(), "")).collect();
    if !list.is_empty() {
        return Err(Problems { source: "address plan".to_owned(), list }.into());
    }
    if config.probe_port != 0 && network.backend.tunnel_ports().contains(&config.probe_port) {
        let port = config.probe_port;
        bail!(
            "the tunnel's UDP port is {port}, where netd answers probes: give the backend or --probe-port another one"
        );
    }
    if let Some(reason) = network.backend.refuses(local) {
        bail!(reason);
    }
    match local.refuses_mtu(network.backend.pod_mtu(local)) {
        Some(reason) => bail!(reason),
        None => Ok(()),
    }
}
