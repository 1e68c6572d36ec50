//! A daemon is killed, and started again some steps later.
//!
//! Invariant: this disturbs no path; it only blocks recovery of what is disturbed meanwhile.

use anyhow::{Context, Result};

use super::{Heal, some_node};
use crate::bounds::{CHANGE, STORE, scale};
use crate::ledger::Element;
use crate::node::Daemon;
use crate::world::World;

pub(super) fn kill(world: &mut World, daemon: Daemon) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, true).context("a node with daemons that may end")?;
    let now = world.shared.now();
    let cause = if daemon == Daemon::Netd { "netd killed" } else { "ipvs-proxy killed" };
    world.shared.lock().ledger.leave(cause, &element(&name, daemon), now);
    world.node_mut(&name)?.end(daemon, false)?;
    world.busy.insert(name.clone());
    Ok((name.clone(), Some(Heal::Restart(name, daemon))))
}

pub(super) fn restart(world: &mut World, name: &str, daemon: Daemon) -> Result<()> {
    let (endpoints, options) = (world.etcd.endpoints(), world.options.clone());
    let node = world.node_mut(name)?;
    match daemon {
        Daemon::Netd => node.start_netd(&endpoints)?,
        Daemon::Proxy => node.start_proxy(&endpoints, &options)?,
    }
    node.await_ready(STORE.mul_f64(scale()))?;
    world.busy.remove(name);
    let now = world.shared.now();
    world.shared.lock().ledger.come_back(&element(name, daemon), CHANGE, now);
    Ok(())
}

fn element(node: &str, daemon: Daemon) -> Element {
    match daemon {
        Daemon::Netd => Element::Netd(node.to_owned()),
        Daemon::Proxy => Element::Proxy(node.to_owned()),
    }
}
