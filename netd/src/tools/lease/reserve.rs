//! Reservations: keys without an end, which a node takes in the place of a lease.
//!
//! Invariants: a reservation is flannel's, a lease's key and value without time to live; a subnet that somebody else has,
//! or that overlaps another key, is not reserved.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cluster::etcd::{Creation, Entry, Hold, Prefix, Replacement, Store};
use daemon::terminal;

use super::etcd;
use crate::format::lease::{LeaseAttrs, SubnetKey, read_lease};
use crate::format::net_conf::{NetConf, Network};
use crate::plan::backend::BackendAttrs;
use crate::plan::unreachable;
use netstate::family::{IpFamily, PerFamily};

/// Reserves the subnet of `key`.
///
/// # Errors
/// When there is a reason against it, or etcd cannot be asked.
pub(super) async fn reserve(store: &Store, prefix: &Prefix, key: &SubnetKey, node: &[IpAddr]) -> Result<()> {
    let network = network(store, prefix).await?;
    check(&network, key)?;
    node.iter().try_for_each(|address| check_node(&network, *address))?;
    let entries = store.list(&etcd::subnets(prefix)).await?.entries;
    let others = entries.iter().filter_map(|entry| entry.key.parse::<SubnetKey>().ok()).filter(|other| other != key);
    for other in others {
        let overlaps = |(family, subnet)| other.get(family).is_some_and(|theirs| theirs.overlaps(&subnet));
        if key.subnets().present().any(|(family, subnet)| overlaps((family, *subnet))) {
            bail!("{} overlaps {}, which is in the store", key.list(), other.list());
        }
    }
    let name = key.to_string();
    let whole = etcd::subnets(prefix).key(&name);
    match entries.iter().find(|entry| entry.key == name) {
        Some(entry) => keep(store, &whole, entry, node).await?,
        None => create(store, &whole, node).await?,
    }
    for other in entries.iter().filter(|entry| entry.key != name) {
        let Ok(lease) = read_lease(&other.key, &other.value) else { continue };
        if names(&lease.attrs, node) {
            let (holder, subnet) = (lease.attrs.public_ips.list(), lease.key.list());
            terminal::put(&format!("note: {holder} has {subnet} and keeps it as long as Pods live there\n"))?;
        }
    }
    Ok(())
}

/// A node of the network may get the subnets of `key`, one of each family.
fn check(network: &Network, key: &SubnetKey) -> Result<()> {
    let fits = IpFamily::ALL.iter().all(|family| match (network.pools.get(*family), key.get(*family)) {
        (Some(pool), Some(subnet)) => pool.may_lease(&subnet),
        (None, None) => true,
        _ => false,
    });
    if !fits {
        bail!("{} is no subnet that a node may get in {network}: see `netd config check`", key.list());
    }
    Ok(())
}

/// A node of the network can have this address.
fn check_node(network: &Network, address: IpAddr) -> Result<()> {
    let family = IpFamily::of(address);
    if network.pools.get(family).is_none() {
        bail!("--node {address}: {network} has no Pods of {family}");
    }
    match unreachable(network, None, address) {
        Some(reason) => bail!("--node {address}: {reason}"),
        None => Ok(()),
    }
}

/// True when a lease is that of one of the addresses `node`.
fn names(attrs: &LeaseAttrs, node: &[IpAddr]) -> bool {
    attrs.public_ips.present().any(|(_, address)| node.contains(address))
}

async fn network(store: &Store, prefix: &Prefix) -> Result<Network> {
    let place = prefix.key("config");
    let entry =
        store.get(&place).await?.with_context(|| format!("{place} does not exist: write it with `netd config set`"))?;
    let text = String::from_utf8(entry.value).with_context(|| format!("{place} holds no text"))?;
    let conf = NetConf::parse(&text).map_err(|list| cluster::Problems { source: place, list })?;
    Ok(conf.network)
}

/// Takes the end off a lease.
async fn keep(store: &Store, whole: &str, entry: &Entry, node: &[IpAddr]) -> Result<()> {
    let lease = read_lease(&entry.key, &entry.value).map_err(|reason| anyhow::anyhow!("{whole}: {reason}"))?;
    let holder = lease.attrs.public_ips.list();
    if !node.is_empty() && !names(&lease.attrs, node) {
        bail!("{whole} is {holder}'s: release it first");
    }
    if entry.lease.is_none() {
        terminal::put(&format!("{whole} is reserved for {holder} already\n"))?;
        return Ok(());
    }
    match store.replace_if(whole, &entry.value, Hold::Forever, entry.mod_revision).await? {
        Replacement::Replaced { .. } => {
            terminal::put(&format!("{whole}: the lease of {holder} is a reservation now\n"))?
        }
        Replacement::Changed(_) => bail!("{whole} was changed by somebody else meanwhile: it stays a lease"),
    }
    Ok(())
}

async fn create(store: &Store, whole: &str, node: &[IpAddr]) -> Result<()> {
    let mut public_ips = PerFamily::<Option<IpAddr>>::default();
    for address in node {
        *public_ips.get_mut(IpFamily::of(*address)) = Some(*address);
    }
    if public_ips.is_empty() {
        bail!("{whole} does not exist: say for which node with --node");
    }
    let node = public_ips.list();
    let value = LeaseAttrs { public_ips, backend: BackendAttrs::Other(String::new()) }.render();
    match store.create(whole, value.as_bytes(), Hold::Forever).await? {
        Creation::Created { .. } => {
            terminal::put(&format!("{whole} is reserved for {node}, which takes it when it has no subnet\n"))?
        }
        Creation::Exists(_) => bail!("{whole} was written by somebody else meanwhile"),
    }
    Ok(())
}
