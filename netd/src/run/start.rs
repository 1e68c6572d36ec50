//! From the configuration to a daemon that can run: interface, network, plan of addresses, lease keeper.
//!
//! Invariant: everything that is wrong is told before anything is changed. What may still come (the store, the network's
//! configuration) is waited for; what only a person can correct ends the program.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cluster::Backoff;
use netstate::{IfName, MacAddr, Prefix, Route, RouteKey};

use super::daemon::{Daemon, Ears, Node};
use super::{facts, files, subnet_file};
use crate::choose::interface::{self, External};
use crate::choose::subnet::Applicant;
use crate::command::config::{self, Config, Store};
use crate::format::lease::LeaseAttrs;
use crate::format::net_conf::{Backend, NetConf, Network};
use crate::plan::{self, LocalNode};
use crate::source::view::View;
use crate::source::{Keeper, LeaseStore, Wish};
use cluster::{Problem, Problems};

/// File in the run-time folder with the names of tunnel devices that are ours, one a line.
const DEVICES: &str = "devices";

/// Gets everything ready. Ends only when the network's configuration is there.
pub(super) async fn start(config: Config) -> Result<Daemon> {
    let seed = config::seed();
    let facts = facts::gather(config.interface.can_reach).context("look at this host")?;
    let external =
        interface::choose(&config.interface, &facts).map_err(|problem| one("choice of interface", problem))?;
    tracing::info!(
        interface = %external.interface, address = %external.address, public_ip = %external.public_ip,
        mtu = external.mtu, "this node's interface towards the others"
    );
    let (network, store) = network(&config, seed).await?;
    check_plan(&config, &external, &network)?;
    let (mac, adopts_mac) = device_mac(&external, &network)?;
    let wish = wish(&config, &external, &network, mac, adopts_mac);
    let local = LocalNode {
        // Not known before the lease is; until then no subnet is this node's.
        subnet: Prefix::host(external.address.into()),
        public_ip: external.public_ip,
        interface: external.interface,
        address: external.address,
        node_network: external.network,
        mtu: external.mtu,
        vtep_mac: mac,
        has_ipv6: facts::has_ipv6(),
    };
    let devices = record_devices(&config.run_dir, &network)?;
    let ears = match store {
        Some(store) => Ears::Etcd { keeper: Keeper::start(store.clone(), wish, seed), store, source: None },
        None => Ears::Alone(Some(wish.alone().context("choose a subnet")?)),
    };
    let ours = |key: &RouteKey, route: &Route| plan::owns_route(&network, &local, key, route);
    let view = View::new(facts::has_route(ours).context("look for routes of an earlier run")?);
    Ok(Daemon::new(Node { config, network, local, devices }, ears, view))
}

fn one(source: &str, problem: Problem) -> Problems {
    Problems { source: source.to_owned(), list: vec![problem] }
}

/// The network's configuration and, unless this machine is alone, the store of leases.
async fn network(config: &Config, seed: u64) -> Result<(Network, Option<LeaseStore>)> {
    match &config.store {
        Store::Local { net_conf } => {
            let text = std::fs::read_to_string(net_conf).with_context(|| format!("read {}", net_conf.display()))?;
            Ok((parse(&net_conf.display().to_string(), &text)?, None))
        }
        Store::Etcd { etcd, prefix, renew_margin } => {
            let problems = |list: Vec<Problem>| Problems { source: "etcd".to_owned(), list };
            let client = cluster::etcd::Client::new(etcd, seed).map_err(problems)?;
            let store = LeaseStore::new(client, prefix.clone(), *renew_margin, seed);
            let key = store.config_key();
            let text = wait_for_config(&store, &key, seed).await;
            let text = String::from_utf8(text).with_context(|| format!("etcd key {key} holds no text"))?;
            Ok((parse(&format!("etcd key {key}"), &text)?, Some(store)))
        }
    }
}

fn parse(source: &str, text: &str) -> Result<Network, Problems> {
    let conf = NetConf::parse(text).map_err(|list| Problems { source: source.to_owned(), list })?;
    for note in &conf.notes {
        tracing::warn!(source, "{note}");
    }
    let network = conf.network;
    tracing::info!(source, network = %network.network, backend = network.backend.name(), "the network");
    Ok(network)
}

async fn wait_for_config(store: &LeaseStore, key: &str, seed: u64) -> Vec<u8> {
    let mut backoff = Backoff::new(seed);
    let mut told = String::new();
    loop {
        let trouble = match store.network_config().await {
            Ok(Some(text)) => return text,
            Ok(None) => format!("etcd key {key} does not exist: write the network's configuration there"),
            Err(error) => error.to_string(),
        };
        if trouble != told {
            tracing::warn!("waiting: {trouble}");
            told = trouble;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

fn check_plan(config: &Config, external: &External, network: &Network) -> Result<()> {
    let overlaps = plan::overlaps(external.network, network.network, &config.services);
    let list: Vec<Problem> = overlaps.iter().map(|overlap| Problem::new("networks", overlap.to_string(), "")).collect();
    if !list.is_empty() {
        return Err(Problems { source: "address plan".to_owned(), list }.into());
    }
    if network.backend == Backend::HostGw && external.public_ip != external.address {
        bail!(
            "backend host-gw: public IP {} differs from {} of interface {}: other nodes cannot route through an \
             address behind NAT; use backend vxlan or drop --public-ip",
            external.public_ip,
            external.address,
            external.interface
        );
    }
    let mtu = plan::pod_mtu(&network.backend, external.mtu);
    if mtu < netstate::mtu::MIN_IPV4 {
        bail!(
            "interface {} with MTU {} leaves {mtu} bytes to Pods; {} are needed",
            external.interface,
            external.mtu,
            netstate::mtu::MIN_IPV4
        );
    }
    Ok(())
}

/// The device's hardware address and whether an earlier lease may still change it: that of the device when it is there,
/// so that the other nodes need not learn a new one.
fn device_mac(external: &External, network: &Network) -> Result<(MacAddr, bool)> {
    let vni = match &network.backend {
        Backend::Vxlan(options) => options.vni,
        Backend::HostGw => 0,
    };
    let existing = match &network.backend {
        Backend::Vxlan(_) => facts::vxlan_mac(&plan::device(vni)?).context("look for the tunnel device")?,
        Backend::HostGw => None,
    };
    Ok(match existing {
        Some(mac) => (mac, false),
        None => (plan::generated_mac(external.public_ip, vni), true),
    })
}

fn wish(config: &Config, external: &External, network: &Network, mac: MacAddr, adopts_mac: bool) -> Wish {
    Wish {
        network: network.clone(),
        node: Applicant {
            public_ip: external.public_ip,
            node_network: external.network,
            previous: subnet_file::previous(&config.subnet_file, network),
        },
        policies: config.policies.clone(),
        attrs: LeaseAttrs {
            public_ip: external.public_ip,
            public_ipv6: None,
            backend: plan::backend_attrs(&network.backend, mac),
        },
        adopts_mac,
    }
}

/// Adds this network's device to the recorded ones before it is made: what is recorded is ours to remove when a later
/// configuration does not want it.
fn record_devices(run_dir: &Path, network: &Network) -> Result<BTreeSet<IfName>> {
    let path = run_dir.join(DEVICES);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let mut devices: BTreeSet<IfName> = text.lines().filter_map(|line| line.parse().ok()).collect();
    if let Backend::Vxlan(options) = &network.backend {
        devices.insert(plan::device(options.vni)?);
    }
    let text: String = devices.iter().map(|device| format!("{device}\n")).collect();
    files::replace(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    Ok(devices)
}
