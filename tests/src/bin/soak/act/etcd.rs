//! Members of etcd die and come back, one or the majority, and one has no room for its data: then it ends by itself as soon as it must have some.
//!
//! Invariant: none of it disturbs any path. Without a quorum nothing that was disturbed before can be due.

use anyhow::{Context, Result};
use lab::eventually;

use super::Heal;
use crate::bounds::{ROW, STORE};
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

/// Where a member's data is in memory: shrinks to what it holds, and is as large as it was.
const SHRINK: &str = "mount -o remount,size=$(df --output=used -k /run | tail -n1 | tr -d ' ')k /run; \
    ! (cat /dev/zero >/run/filler) 2>/dev/null";
const GROW: &str = "rm -f /run/filler; mount -o remount,size=50% /run";

/// Leaves one member no room.
pub(super) fn fill(world: &mut World) -> Result<(String, Option<Heal>)> {
    let name = *world.random.choice(&MEMBERS).context("a member")?;
    let host = world.cluster.host(name)?.clone();
    // What it writes meanwhile is more than what it was to shrink to.
    eventually(ROW, || host.run(&["sh", "-ec", SHRINK]))?;
    world.down.insert(name);
    // More than the free pages of its file hold. Whether the answer comes depends on which member is asked.
    let key = format!("/soak/{}", world.begun.values().sum::<u32>());
    let _ = world.etcd.put(&key, &"x".repeat(100_000));
    Ok((name.to_owned(), Some(Heal::Room(name))))
}

/// Gives it room again, and starts it where it has ended.
pub(super) fn make_room(world: &mut World, name: &'static str) -> Result<String> {
    let host = world.cluster.host(name)?.clone();
    let became = if world.etcd.is_running(name)? { "it went on all the while" } else { "it had ended by itself" };
    host.run(&["sh", "-ec", GROW])?;
    world.etcd.kill(name)?;
    bring_back(world, &[name])?;
    Ok(became.to_owned())
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
