//! State that has no room: `/run` of a node and the folders of our programs in `/var/lib` are filled to the last byte.
//!
//! Invariant: no path is disturbed. A Pod that is asked for meanwhile either gets its network or an error, and leaves nothing behind.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Heal, pods, some_node};
use crate::bounds::{ROW, scale};
use crate::world::World;

const FILL: &str = "for folder in /run /var/lib/cni /var/lib/netd /var/lib/ipvs-proxy; do \
    cat /dev/zero >$folder/filler 2>/dev/null || true; ! (echo more >$folder/probe) 2>/dev/null; done";

const FREE: &str =
    "for folder in /run /var/lib/cni /var/lib/netd /var/lib/ipvs-proxy; do rm -f $folder/filler $folder/probe; done";

pub(super) fn fill(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, true).context("a node whose disk may be full")?;
    world.node(&name)?.sh(FILL)?;
    world.busy.insert(name.clone());
    world.full.insert(name.clone());
    world.full_until = Duration::MAX;
    let outcome = match pods::attempt(world, &name) {
        Ok(pod) => format!("{pod} got its network all the same"),
        Err(error) => format!("a Pod is refused: {}", format!("{error:#}").lines().next().unwrap_or_default()),
    };
    Ok((format!("{name}; {outcome}"), Some(Heal::Free(name))))
}

pub(super) fn free(world: &mut World, name: &str) -> Result<()> {
    world.node(name)?.sh(FREE)?;
    world.busy.remove(name);
    world.full.remove(name);
    // What was being written when there was room again.
    if world.full.is_empty() {
        world.full_until = world.shared.now() + ROW.mul_f64(scale());
    }
    Ok(())
}
