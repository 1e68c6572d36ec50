//! Nodes leave in order, crash, come back and reboot.
//!
//! Invariant: a node that leaves in order leaves no row of ours; one that comes back after a reboot has the subnet that it had.

use anyhow::{Context, Result, ensure};
use lab::bin;

use super::pods::{self, Farewell};
use super::{Heal, services, some_node};
use crate::bounds::{CHANGE, STORE, scale};
use crate::ledger::Element;
use crate::node::Daemon;
use crate::world::{GATEWAY, World, everything_of};

/// What is left of us on a node: routes, rules, links, virtual servers, the subnet file, and what the plugin keeps.
const LEFT: &str = "ip route show proto 121; ip route show table local proto 122; nft list tables | grep -e ' netd' -e 'ipvs-proxy' || true; \
                    ip -o link | grep -o -e 'flannel[^:@]*' -e 'kube-ipvs0' -e 'cbr0' || true; tail -qn +4 /proc/net/ip_vs 2>/dev/null || true; \
                    ls /run/flannel/subnet.env 2>/dev/null || true; find /var/lib/cni/netd /var/lib/cni/networks/cbr0 -type f 2>/dev/null || true";

/// The network of the Pods, which the plugin is to forget.
const LIST: &str = "/etc/cni/net.d/10-netd.conflist";

/// Drained, ended in order, cleaned up.
pub(super) fn leave(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, true).context("a node that may leave")?;
    for pod in world.pods(Some(&name)) {
        pods::remove(world, &pod, Farewell::InOrder)?;
    }
    depart(world, &name);
    let endpoints = world.etcd.endpoints();
    let node = world.node_mut(&name)?;
    node.end(Daemon::Netd, true)?;
    node.end(Daemon::Proxy, true)?;
    let cleanup = node.host.command(bin("netd")?).args(["cleanup", "--yes", "--files", "--etcd-endpoints", &endpoints]);
    cleanup.run()?;
    node.host.command(bin("ipvs-proxy")?).arg("--cleanup").run()?;
    node.host.command(bin("netd-cni")?).args(["cleanup", "--yes", LIST]).run()?;
    nothing_is_left(world, &name)?;
    Ok((name.clone(), Some(Heal::Join { node: name, after_crash: false })))
}

/// Verifies that a node has nothing of ours any more.
pub(crate) fn nothing_is_left(world: &World, name: &str) -> Result<()> {
    let left: Vec<String> = world.node(name)?.sh(LEFT)?.lines().map(str::to_owned).collect();
    let found = (!left.is_empty()).then(|| format!("{name} after its cleanup: {}", left.join(", ")));
    world.shared.verified("cleanup leaves nothing", found);
    Ok(())
}

/// Without power: nobody says goodbye, and the lease stays.
pub(super) fn crash(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, true).context("a node that may crash")?;
    fall(world, &name, true)?;
    Ok((name.clone(), Some(Heal::Join { node: name, after_crash: true })))
}

/// Down and up again; the kubelet then makes its Pods anew.
pub(super) fn reboot(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, true).context("a node that may reboot")?;
    let subnet = world.node(&name)?.subnet()?;
    fall(world, &name, false)?;
    join(world, &name, true)?;
    let again = world.node(&name)?.subnet()?;
    ensure!(again == subnet, "{name} had {subnet} before its reboot and has {again}");
    Ok((name, None))
}

/// A node is wanted no more.
fn depart(world: &mut World, name: &str) {
    world.busy.insert(name.to_owned());
    if let Some(node) = world.nodes.get_mut(name) {
        node.joined = false;
    }
    let mut state = world.shared.lock();
    state.stations.remove(name);
    everything_of(name).iter().for_each(|element| state.ledger.forget(element));
}

/// Everything on a node ends at once; its Pods are taken out of Services as a node controller would.
fn fall(world: &mut World, name: &str, unplug: bool) -> Result<()> {
    let pods = world.pods(Some(name));
    let affected: Vec<Element> = {
        let state = world.shared.lock();
        let hit = state.services.iter().filter(|(_, service)| pods.iter().any(|pod| service.endpoints.contains(pod)));
        hit.map(|(name, _)| Element::Service(name.clone())).collect()
    };
    let now = world.shared.now();
    world.shared.lock().ledger.hold("node lost", &affected, now);
    depart(world, name);
    if unplug {
        world.cluster.unplug(name)?;
    }
    let node = world.node_mut(name)?;
    node.end(Daemon::Netd, false)?;
    node.end(Daemon::Proxy, false)?;
    for pod in &pods {
        pods::take(world, pod, Farewell::Lost)?;
    }
    for pod in &pods {
        services::withdraw(world, pod)?;
    }
    let now = world.shared.now();
    world.shared.lock().ledger.release("node lost", &affected, CHANGE, now);
    Ok(())
}

/// A machine becomes a node, with two Pods.
pub(super) fn join(world: &mut World, name: &str, after_crash: bool) -> Result<()> {
    if after_crash {
        world.cluster.plug(name)?;
        world.node_mut(name)?.wipe(GATEWAY)?;
    }
    world.start_daemons(name)?;
    world.node(name)?.await_ready(STORE.mul_f64(scale()))?;
    world.enter(name)?;
    world.busy.remove(name);
    pods::collect_garbage(world, name)?;
    for _ in 0..2 {
        pods::attempt(world, name)?;
    }
    Ok(())
}
