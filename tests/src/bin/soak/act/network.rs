//! Cables, addresses, rows and rules: what becomes of a node's network from outside.
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

/// Does something short to a node that disturbs `elements`.
fn briefly(world: &mut World, cause: &'static str, name: &str, elements: &[Element], script: &str) -> Result<()> {
    let now = world.shared.now();
    world.shared.lock().ledger.hold(cause, elements, now);
    let done = world.node(name)?.sh(script);
    let now = world.shared.now();
    world.shared.lock().ledger.release(cause, elements, ROW, now);
    done.map(drop)
}

pub(super) fn flush_rules(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    let script = format!("nft flush ruleset\n{FOREIGN_RULES}");
    briefly(world, "rules flushed", &name, &[Element::Services(name.clone())], &script)?;
    Ok((name, None))
}

pub(super) fn delete_table(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    let services = [Element::Services(name.clone())];
    let table = *world.random.choice(&["netd", "ipvs-proxy"]).context("a table")?;
    let elements: &[Element] = if table == "netd" { &[] } else { &services };
    briefly(world, "table deleted", &name, elements, &format!("nft delete table ip {table}"))?;
    Ok((format!("ip {table} on {name}"), None))
}

/// What a stranger does to rows, with whether it stops forwarding altogether.
const ROWS: [(&str, bool, bool, &str); 8] = [
    ("a route", false, false, "ip route | grep 'proto 121' | head -n1 | sed 's/linkdown//g' | xargs -r ip route del"),
    ("all routes", false, false, "ip route flush proto 121"),
    ("forwarding", true, false, "sysctl -qw net.ipv4.ip_forward=0"),
    ("the subnet file", false, false, "rm /run/flannel/subnet.env"),
    (
        "a forwarding entry",
        false,
        true,
        "bridge fdb show dev flannel.1 | grep ' dst ' | head -n1 | cut -d' ' -f1 | xargs -rI% bridge fdb del % dev flannel.1",
    ),
    ("all neighbours", false, true, "ip neigh flush dev flannel.1 nud permanent"),
    ("the device's address", false, true, "ip address flush dev flannel.1"),
    ("the device", false, true, "ip link delete flannel.1"),
];

pub(super) fn delete_rows(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    let vxlan = world.options.backend == "vxlan";
    let rows: Vec<_> = ROWS.into_iter().filter(|(_, _, of_vxlan, _)| vxlan || !of_vxlan).collect();
    let (what, whole, _, script) = world.choose(rows).context("rows")?;
    let element = if whole { Element::Node(name.clone()) } else { Element::Uplink(name.clone()) };
    briefly(world, "rows deleted", &name, &[element], script)?;
    Ok((format!("{what} on {name}"), None))
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
    world.shared.lock().ledger.release("address changed", &elements, NODE, now);
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
