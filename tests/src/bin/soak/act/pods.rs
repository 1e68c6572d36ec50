//! Pods come and go, as a container runtime makes and removes them.
//!
//! Invariant: an ADD succeeds where the disk has room, its address is nobody else's, CHECK agrees, and a second DEL is no error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::cni::{Attachment, Sandbox};
use lab::echo;

use super::{Heal, services, some_node};
use crate::bounds::CHANGE;
use crate::judge::addresses;
use crate::ledger::Element;
use crate::paths::PORT;
use crate::shared::{RunningPod, Spot, Station};
use crate::world::World;

const ADDRESSES: &str = "no address twice";

/// How a Pod goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// Out of its Services first, then DEL, and DEL again.
    InOrder,
    /// Its network is gone without DEL, as after a crash of the runtime.
    Lost,
}

pub(super) fn add_somewhere(world: &mut World) -> Result<(String, Option<Heal>)> {
    let node = some_node(world, false).context("a node")?;
    let pod = attempt(world, &node)?;
    Ok((format!("{pod} on {node}"), None))
}

/// Makes a Pod with its server.
///
/// # Errors
/// As ADD and CHECK.
pub(crate) fn attempt(world: &mut World, node: &str) -> Result<String> {
    let name = format!("p{}", world.next_pod);
    // Nobody else has it, on whatever node: what is left of a Pod that was lost takes no other one's port.
    let host_port = 20_000 + u16::try_from(world.next_pod % 10_000)?;
    world.next_pod += 1;
    let sandbox = with_port(world, node, &name, host_port)?;
    sandbox.check()?;
    let address = sandbox.address();
    let pods = {
        let state = world.shared.lock();
        let others = state.stations.iter().filter_map(|(name, station)| Some((name.clone(), station.address()?)));
        others.chain([(name.clone(), address)]).collect::<Vec<_>>()
    };
    world.shared.verified(ADDRESSES, addresses::of_pods(&pods));
    let server = echo::serve(sandbox.pod(), &name, PORT)?;
    let pod = RunningPod { name: name.clone(), node: node.to_owned(), sandbox, host_port, server };
    let now = world.shared.now();
    let mut state = world.shared.lock();
    state.ledger.disturb("Pod added", &[Element::Pod(name.clone())], CHANGE, now);
    state.stations.insert(name.clone(), Station { node: node.to_owned(), spot: Spot::Pod(Arc::new(pod)) });
    Ok(name)
}

/// A sandbox whose port is one of the node's too.
fn with_port(world: &World, node: &str, name: &str, host_port: u16) -> Result<Sandbox> {
    let mapping = |protocol| serde_json::json!({"hostPort": host_port, "containerPort": PORT, "protocol": protocol});
    let runtime = &world.node(node)?.runtime;
    let pod = runtime.host().pod(name)?;
    let ports = serde_json::json!([mapping("tcp"), mapping("udp")]);
    let attachment = Attachment::of(&pod).capability("portMappings", ports);
    Sandbox::attach(runtime, pod, attachment)
}

pub(super) fn remove_some(world: &mut World, how: Farewell) -> Result<(String, Option<Heal>)> {
    let idle = world.idle();
    let mut pods = Vec::new();
    for node in idle {
        pods.extend(world.pods(Some(&node)));
    }
    let pod = world.choose(pods).context("a Pod")?;
    remove(world, &pod, how)?;
    Ok((pod, None))
}

/// Removes a Pod.
///
/// # Errors
/// As DEL.
pub(crate) fn remove(world: &mut World, name: &str, how: Farewell) -> Result<()> {
    let lost = how == Farewell::Lost;
    let services = services::with_endpoint(world, name);
    let elements: Vec<Element> = services.iter().map(|(name, _)| Element::Service(name.clone())).collect();
    if !lost {
        services::withdraw(world, name)?;
        return take(world, name, how);
    }
    let now = world.shared.now();
    world.shared.lock().ledger.hold("endpoint lost", &elements, now);
    let taken = take(world, name, how).and_then(|()| services::withdraw(world, name));
    let now = world.shared.now();
    world.shared.lock().ledger.release("endpoint lost", &elements, CHANGE, now);
    taken
}

/// Takes a Pod's network away and nothing else.
pub(crate) fn take(world: &mut World, name: &str, how: Farewell) -> Result<()> {
    let station = {
        let mut state = world.shared.lock();
        let station = state.stations.remove(name).with_context(|| format!("no Pod {name}"))?;
        state.ledger.forget(&Element::Pod(name.to_owned()));
        station
    };
    let Spot::Pod(pod) = station.spot else { bail!("{name} is no Pod") };
    let RunningPod { node, sandbox, server, .. } = alone(pod)?;
    drop(server);
    if how == Farewell::Lost {
        return Ok(());
    }
    let attachment = sandbox.attachment().clone();
    sandbox.stop()?;
    let node = world.node(&node)?;
    let network = node.network.as_ref().context("a network")?;
    node.runtime.del(network, &attachment).context("a second DEL")
}

/// Waits until no probe begins there any more.
fn alone(mut pod: Arc<RunningPod>) -> Result<RunningPod> {
    let begun = Instant::now();
    loop {
        pod = match Arc::try_unwrap(pod) {
            Ok(pod) => return Ok(pod),
            Err(shared) if begun.elapsed() > Duration::from_secs(300) => {
                bail!("{} is still being asked from", shared.name)
            }
            Err(shared) => shared,
        };
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn collect_garbage_somewhere(world: &mut World) -> Result<(String, Option<Heal>)> {
    let node = some_node(world, false).context("a node")?;
    collect_garbage(world, &node)?;
    Ok((node, None))
}

/// GC with the Pods that run.
///
/// # Errors
/// As the verb.
pub(crate) fn collect_garbage(world: &mut World, name: &str) -> Result<()> {
    let valid: Vec<_> = {
        let state = world.shared.lock();
        let stations = state.stations.values().filter(|station| station.node == name);
        let pods = stations.filter_map(|station| match &station.spot {
            Spot::Pod(pod) => Some(pod.sandbox.attachment().clone()),
            Spot::Host(_) => None,
        });
        pods.collect()
    };
    let node = world.node(name)?;
    node.runtime.gc(node.network.as_ref().context("a network")?, Some(&valid))
}
