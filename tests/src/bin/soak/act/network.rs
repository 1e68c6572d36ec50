//! Cables, addresses and whole rule sets: what becomes of a node's network from outside.
//!
//! Invariant: what is foreign is put back by whoever flushes it, so that a later difference is somebody else's.

use anyhow::{Context, Result, ensure};
use lab::eventually;

use super::{Heal, some_node};
use crate::bounds::{LINK, NODE, ROW, STORE, scale};
use crate::ledger::Element;
use crate::node::FOREIGN_RULES;
use crate::world::{GATEWAY, PREFIX, World, everything_of};

const CABLE: &str = "uplink down and up";

pub(super) fn pull_cable(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    let elements = [Element::Uplink(name.clone()), Element::Services(name.clone())];
    let now = world.shared.now();
    world.shared.lock().ledger.hold(CABLE, &elements, now);
    world.cluster.unplug(&name)?;
    world.busy.insert(name.clone());
    Ok((name.clone(), Some(Heal::Plug(name))))
}

pub(super) fn plug(world: &mut World, name: &str) -> Result<()> {
    world.cluster.plug(name)?;
    world.busy.remove(name);
    let now = world.shared.now();
    let mut state = world.shared.lock();
    state.ledger.release(CABLE, &[Element::Uplink(name.to_owned())], LINK, now);
    // What changed meanwhile comes when TCP tries its connection to etcd again.
    state.ledger.release("etcd out of reach", &[Element::Services(name.to_owned())], NODE, now);
    Ok(())
}

/// Does something short to a node that disturbs `elements`. What is to be deleted may be on its way back from the last time.
pub(super) fn briefly(
    world: &mut World,
    cause: &'static str,
    name: &str,
    elements: &[Element],
    script: &str,
) -> Result<()> {
    let now = world.shared.now();
    world.shared.lock().ledger.hold(cause, elements, now);
    let node = world.node(name)?;
    let done = eventually(ROW.mul_f64(scale()), || node.sh(script));
    let now = world.shared.now();
    world.shared.lock().ledger.release(cause, elements, ROW, now);
    done.map(drop)
}

pub(super) fn flush_rules(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    // Nobody watches host ports, as with the reference plugin: who flushes them puts them back.
    let script = format!(
        "ports=$(nft list table inet netd-ports 2>/dev/null || true); nft flush ruleset; echo \"$ports\" | nft -f -\n{FOREIGN_RULES}"
    );
    briefly(world, "rules flushed", &name, &translation_of(&name), &script)?;
    Ok((name, None))
}

pub(super) fn delete_table(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    let table = *world.random.choice(&["netd", "ipvs-proxy"]).context("a table")?;
    let [services, other] = translation_of(&name);
    let element = if table == "netd" { other } else { services };
    briefly(world, "table deleted", &name, &[element], &format!("nft delete table ip {table}"))?;
    Ok((format!("ip {table} on {name}"), None))
}

/// What rules of nftables do at a node.
fn translation_of(name: &str) -> [Element; 2] {
    [Element::Services(name.to_owned()), Element::Translation(name.to_owned())]
}

/// The node's only address becomes another one.
pub(super) fn change_address(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, true).context("a node")?;
    let (elements, now) = (everything_of(&name), world.shared.now());
    world.shared.lock().ledger.hold("address changed", &elements, now);
    let address = std::net::Ipv4Addr::from([10, 4, 7, world.next_address]);
    // Those from .101 to .199, over and over.
    world.next_address = if world.next_address == 199 { 101 } else { world.next_address + 1 };
    let subnet = world.node(&name)?.subnet()?;
    let script = format!(
        "ip address flush dev eth0; ip address add {address}/24 brd + dev eth0; ip route replace default via {GATEWAY} dev eth0"
    );
    world.node(&name)?.sh(&script)?;
    world.addresses.insert(name.clone(), address);
    let now = world.shared.now();
    {
        let mut state = world.shared.lock();
        state.machines.insert(name.clone(), address);
        state.ledger.release("address changed", &elements, NODE, now);
    }
    let key = format!("{PREFIX}/subnets/{}", subnet.replace(".1/", ".0-"));
    eventually(STORE.mul_f64(scale()), || {
        let value = world.etcd.get(&key)?.unwrap_or_default();
        ensure!(value.contains(&format!("\"PublicIP\":\"{address}\"")), "{key} of {name} is {value:?}");
        Ok(())
    })?;
    let kept = world.node(&name)?.subnet()?;
    ensure!(kept == subnet, "{name} had {subnet} and has {kept} with its new address {address}");
    Ok((format!("{name} is {address}"), None))
}
