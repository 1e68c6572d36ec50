//! Members of etcd die and come back, one or the majority.
//!
//! Invariant: neither disturbs any path. Without a quorum nothing that was disturbed before can be due.

use anyhow::Result;

use super::Heal;
use crate::bounds::STORE;
use crate::ledger::Element;
use crate::world::{MEMBERS, World};

/// Kills `count` members.
pub(super) fn lose(world: &mut World, count: usize) -> Result<(String, Option<Heal>)> {
    let mut members = MEMBERS.to_vec();
    world.random.shuffle(&mut members);
    members.truncate(count);
    if count > 1 {
        let now = world.shared.now();
        world.shared.lock().ledger.leave("etcd without quorum", &Element::Store, now);
    }
    for name in &members {
        world.etcd.kill(name)?;
        world.down.insert(name);
    }
    Ok((members.join(", "), Some(Heal::Members(members))))
}

/// Starts them again with the data they had.
pub(super) fn bring_back(world: &mut World, names: &[&'static str]) -> Result<()> {
    let had_quorum = world.has_quorum();
    world.etcd.restart_all(names)?;
    world.down.clear();
    if !had_quorum {
        let now = world.shared.now();
        world.shared.lock().ledger.come_back(&Element::Store, STORE, now);
    }
    Ok(())
}
