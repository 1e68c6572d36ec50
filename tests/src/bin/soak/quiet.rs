//! A quiet point: everything is healed, every node is in with two Pods, the standing Services have their endpoints, and every invariant is
//! verified.
//!
//! Invariant: each quiet point is the same state, so what is counted there may be compared.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{bin, eventually};

use crate::act::{pods, services};
use crate::judge::addresses::{self, Lease};
use crate::judge::services::{self as served, Wanted};
use crate::judge::tables::{self, Tables};
use crate::paths::PORT;
use crate::prober;
use crate::world::{PREFIX, World};

/// Pods of each node.
const PODS: usize = 2;

/// Broken paths after which no further one is asked.
const ENOUGH: usize = 5;

/// Virtual addresses in the mode ipvs; no device of them has none.
pub(crate) const VIRTUAL: &str = "ip -4 -o address show dev kube-ipvs0 2>/dev/null || true";

/// How often the paths that failed are asked again.
const PAUSE: Duration = Duration::from_millis(300);

/// Makes the state and verifies it; gives what is counted.
pub(crate) fn point(world: &mut World) -> Result<BTreeMap<String, u64>> {
    normalize(world).context("make the quiet state")?;
    sweep(world);
    leases(world)?;
    pod_addresses(world)?;
    kernel(world)?;
    services_of_nodes(world)?;
    foreign(world)?;
    in_sync(world)?;
    crate::count::all(world)
}

fn normalize(world: &mut World) -> Result<()> {
    for name in world.joined() {
        let surplus: Vec<String> = world.pods(Some(&name)).into_iter().skip(PODS).collect();
        for pod in surplus {
            pods::remove(world, &pod, pods::Farewell::InOrder)?;
        }
        for _ in world.pods(Some(&name)).len()..PODS {
            pods::attempt(world, &name)?;
        }
        pods::collect_garbage(world, &name)?;
    }
    let others: Vec<String> = world.shared.lock().services.keys().cloned().collect();
    for name in others.iter().filter(|name| services::STANDING.iter().all(|(standing, _)| standing != name)) {
        services::remove(world, name)?;
    }
    // No Pod is an endpoint of both: what is counted would differ.
    let mut endpoints = services::draw(world, services::STANDING.iter().map(|(_, count)| count).sum());
    for (name, count) in services::STANDING {
        let own = endpoints.split_off(endpoints.len().saturating_sub(count));
        services::publish(world, name, own.into_iter().collect())?;
    }
    Ok(())
}

/// Asks every path, and again until it answers; what does not within its bound is judged where it is asked.
fn sweep(world: &World) {
    let shared = &world.shared;
    let found = shared.lock().violations.len();
    let (begun, limit) = (Instant::now(), 2 * world.patience());
    // What is found first says enough.
    let goes_on = || begun.elapsed() < limit && shared.lock().violations.len() < found + ENOUGH;
    let mut failing = shared.lock().paths();
    while !failing.is_empty() && goes_on() {
        failing.retain(|path| goes_on() && !prober::ask(shared, path));
        std::thread::sleep(PAUSE);
    }
    if failing.is_empty() {
        shared.lock().ledger.settle();
    }
}

/// The leases in the store.
pub(crate) fn stored(world: &World) -> Result<Vec<Lease>> {
    let printed = world.etcd.etcdctl(&["get", "--prefix", "--", &format!("{PREFIX}/subnets/")])?.stdout;
    let lines: Vec<&str> = printed.lines().collect();
    let pairs = lines.chunks_exact(2).filter_map(|pair| {
        let [key, value] = pair else { return None };
        Lease::read(key.rsplit('/').next()?, value)
    });
    Ok(pairs.collect())
}

fn leases(world: &World) -> Result<()> {
    let leases = stored(world)?;
    let mut found = addresses::of_leases(&leases);
    for name in world.joined() {
        let (own, subnet) = (world.addresses.get(&name).context("an address")?, world.node(&name)?.subnet()?);
        let lease = leases.iter().find(|lease| lease.node == *own).map(Lease::network);
        if lease.as_deref() != Some(&subnet.replace(".1/", ".0/")) {
            found.push(format!("{name} at {own} has {subnet} in its file and the lease {lease:?}"));
        }
    }
    world.shared.verified("no subnet twice", found);
    Ok(())
}

/// The addresses that Pods really have.
fn pod_addresses(world: &World) -> Result<()> {
    let mut pods = Vec::new();
    for name in world.pods(None) {
        let station = world.shared.lock().stations.get(&name).cloned();
        let Some(crate::shared::Spot::Pod(pod)) = station.map(|station| station.spot) else { continue };
        let printed = pod.sandbox.pod().run(&["ip", "-4", "-o", "address", "show", "dev", "eth0"])?.stdout;
        for word in printed.split_whitespace().filter(|word| word.contains('/')) {
            let address = word.split('/').next().unwrap_or_default();
            pods.push((pod.name.clone(), address.parse().with_context(|| printed.clone())?));
        }
    }
    world.shared.verified("no address twice", addresses::of_pods(&pods));
    Ok(())
}

/// What a node's kernel holds.
fn read_tables(world: &World, name: &str) -> Result<Tables> {
    let node = world.node(name)?;
    let routes = node.sh("ip route show proto 121")?;
    if world.options.backend != "vxlan" {
        return Ok(Tables { routes, ..Tables::default() });
    }
    let fdb = Some(node.sh("bridge fdb show dev flannel.1 || true")?);
    let neighbours = Some(node.sh("ip neigh show dev flannel.1 nud permanent || true")?);
    Ok(Tables { routes, fdb, neighbours })
}

fn kernel(world: &World) -> Result<()> {
    for name in world.joined() {
        let own = *world.addresses.get(&name).context("an address")?;
        let judged = eventually(world.patience(), || {
            let found = tables::of_node(&name, own, &stored(world)?, &read_tables(world, &name)?);
            ensure!(found.is_empty(), "{}", found.join("; "));
            Ok::<_, anyhow::Error>(())
        });
        world.shared.verified("tables are what leases ask", judged.err().map(|error| format!("{error:#}")));
    }
    Ok(())
}

/// The Services that there are, each with its endpoints' addresses.
fn wanted(world: &World) -> Vec<Wanted> {
    let state = world.shared.lock();
    let endpoint = |name: &String| Some((state.stations.get(name)?.address()?, PORT).into());
    let services = state.services.values().map(|service| Wanted {
        address: service.address,
        node_port: service.node_port,
        endpoints: service.endpoints.iter().filter_map(endpoint).collect(),
    });
    services.collect()
}

/// What each node's kernel serves, by the kernel's tools and not by the proxy.
fn services_of_nodes(world: &World) -> Result<()> {
    let wanted = wanted(world);
    for name in world.joined() {
        let node = world.node(&name)?;
        let own = *world.addresses.get(&name).context("an address")?;
        let judged = eventually(world.patience(), || {
            let (at, held) = if world.options.proxy == "ipvs" {
                let addresses = node.sh("ip -4 -o address")?;
                let (servers, virtual_ones) = (node.sh("ipvsadm -Sn")?, node.sh(VIRTUAL)?);
                (served::of_node_ports(&addresses), served::of_ipvs(&servers, &virtual_ones))
            } else {
                let table = node.sh("nft -j list table ip ipvs-proxy")?;
                (vec![own], served::of_nftables(&serde_json::from_str(&table)?))
            };
            let found = served::of_node(&name, &served::wanted(&wanted, &at), &held);
            ensure!(found.is_none(), "{}", found.unwrap_or_default());
            Ok::<_, anyhow::Error>(())
        });
        world.shared.verified("nodes serve what Services ask", judged.err().map(|error| format!("{error:#}")));
    }
    Ok(())
}

/// Compares what is foreign on every node.
pub(crate) fn foreign(world: &World) -> Result<()> {
    for name in world.joined() {
        foreign_of(world, &name)?;
    }
    Ok(())
}

pub(crate) fn foreign_of(world: &World, name: &str) -> Result<()> {
    let node = world.node(name)?;
    let found = tables::of_foreign(name, &node.foreign, &node.foreign_now()?);
    world.shared.verified("nothing foreign changed", found);
    Ok(())
}

/// What both daemons say of themselves.
fn in_sync(world: &World) -> Result<()> {
    for name in world.joined() {
        for daemon in ["netd", "ipvs-proxy"] {
            let judged = eventually(world.patience(), || {
                let status = status(world, &name, daemon)?;
                let value: serde_json::Value = serde_json::from_str(&status)?;
                let pointer = if daemon == "netd" { "/node/in_sync" } else { "/ok" };
                let count = value.get("services").cloned().unwrap_or_default();
                let says = value.pointer(pointer).cloned().unwrap_or_default();
                ensure!(
                    says == true && (daemon == "netd" || count == services::STANDING.len()),
                    "{daemon} on {name} says {pointer} {says}, services {count} (its whole status is in the dump)"
                );
                Ok::<_, anyhow::Error>(())
            });
            world.shared.verified("daemons say in sync", judged.err().map(|error| format!("{error:#}")));
        }
    }
    Ok(())
}

/// `status --json` of a daemon.
pub(crate) fn status(world: &World, name: &str, daemon: &str) -> Result<String> {
    let command = world.node(name)?.host.command(bin(daemon)?).args(["status", "--json"]);
    Ok(command.output()?.stdout)
}
