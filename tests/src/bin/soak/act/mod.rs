//! What happens to the cluster: one action at each step, drawn by chance, and what an earlier one began ends some steps later.
//!
//! Invariant: an action depends on the seed and on earlier actions only, never on the time. Each says in the ledger what it disturbs before
//! it begins; one that disturbs nothing (a daemon is killed, etcd loses members, a disk is full) is the proof that nothing breaks.

mod daemons;
mod disk;
mod etcd;
pub(crate) mod membership;
mod network;
pub(crate) mod pods;
pub(crate) mod rows;
pub(crate) mod services;

use anyhow::Result;

use crate::node::Daemon;
use crate::world::World;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    AddPod,
    RemovePod,
    LosePod,
    CollectGarbage,
    ChangeService,
    AddService,
    RemoveService,
    LoseMember,
    LoseQuorum,
    FillMember,
    KillNetd,
    KillProxy,
    PullCable,
    FlushRules,
    DeleteTable,
    DeleteRows,
    DeleteServiceRows,
    Leave,
    Crash,
    Reboot,
    ChangeAddress,
    FillDisk,
}

/// What an action does to paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What a cluster does all day.
    Usual,
    /// A fault that breaks no path.
    Harmless,
    /// A fault that breaks paths for a while.
    Disturbing,
}

use Action::*;
use Kind::*;

/// Each with its chance, its kind and its title.
const ACTIONS: [(Action, u32, Kind, &str); 22] = [
    (AddPod, 8, Usual, "Pod added (ADD, CHECK)"),
    (RemovePod, 6, Usual, "Pod removed (DEL twice)"),
    (LosePod, 3, Usual, "Pod lost without DEL"),
    (CollectGarbage, 2, Usual, "GC"),
    (ChangeService, 6, Usual, "endpoints changed"),
    (AddService, 3, Usual, "Service added"),
    (RemoveService, 3, Usual, "Service removed"),
    (LoseMember, 3, Harmless, "member of etcd killed"),
    (LoseQuorum, 2, Harmless, "etcd without quorum"),
    (FillMember, 2, Harmless, "data of a member of etcd full"),
    (KillNetd, 4, Harmless, "netd killed"),
    (KillProxy, 4, Harmless, "ipvs-proxy killed"),
    (PullCable, 3, Disturbing, "uplink down and up"),
    (FlushRules, 3, Disturbing, "all nftables rules flushed"),
    (DeleteTable, 3, Disturbing, "table deleted"),
    (DeleteRows, 5, Disturbing, "row of netd's deleted by a stranger"),
    (DeleteServiceRows, 6, Disturbing, "row of a Service deleted by a stranger"),
    (Leave, 2, Disturbing, "node leaves (drain, cleanup)"),
    (Crash, 2, Disturbing, "node crashes"),
    (Reboot, 2, Disturbing, "node reboots"),
    (ChangeAddress, 2, Disturbing, "node changes its address"),
    (FillDisk, 3, Harmless, "/run and /var/lib of a node full"),
];

/// The end of something that is held.
#[derive(Debug, Clone)]
pub(crate) enum Heal {
    Members(Vec<&'static str>),
    Restart(String, Daemon),
    Plug(String),
    Free(String),
    Room(&'static str),
    Join { node: String, after_crash: bool },
}

impl Action {
    /// All of them, in the order of the report.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        ACTIONS.iter().map(|(action, ..)| *action)
    }

    pub(crate) fn title(self) -> &'static str {
        ACTIONS.iter().find(|(action, ..)| *action == self).map_or("", |(.., title)| title)
    }

    /// Whether the state of the cluster allows it.
    fn is_possible(self, world: &World) -> bool {
        let services = world.shared.lock().services.len();
        let (quorum, idle) = (world.has_quorum(), world.idle());
        let others = idle.iter().filter(|name| *name != crate::world::VETERAN).count();
        match self {
            AddPod => world.pods(None).len() < 20 && !idle.is_empty(),
            RemovePod | LosePod => quorum && world.pods(None).len() > 6,
            CollectGarbage | FlushRules | DeleteTable | DeleteRows | DeleteServiceRows => !idle.is_empty(),
            ChangeService => quorum && services > 0,
            AddService => quorum && services < 6,
            RemoveService => quorum && services > 2,
            LoseMember | LoseQuorum | FillMember => world.down.is_empty(),
            KillNetd | KillProxy => others > 0,
            PullCable => world.busy.len() < 2 && !idle.is_empty(),
            FillDisk => world.busy.len() < 2 && others > 0,
            Leave | Crash => quorum && others > 2 && world.joined().len() > 3,
            Reboot | ChangeAddress => quorum && others > 0,
        }
    }

    /// Whether all that it can do was done.
    fn had_its_turn(self, world: &World) -> bool {
        let rows = match self {
            DeleteRows => rows::had_their_turn(world, true),
            DeleteServiceRows => rows::had_their_turn(world, false),
            _ => true,
        };
        rows && world.begun.contains_key(&self)
    }

    /// One that is possible now, by chance, what was never done yet first; a `gentle` one breaks no path.
    pub(crate) fn draw(world: &mut World, gentle: bool) -> Option<Self> {
        let mut possible: Vec<(Self, u32)> = ACTIONS
            .iter()
            .filter(|(action, _, kind, _)| action.is_possible(world) && !(gentle && *kind == Disturbing))
            .map(|(action, chance, ..)| (*action, *chance))
            .collect();
        if possible.iter().any(|(action, _)| !action.had_its_turn(world)) {
            possible.retain(|(action, _)| !action.had_its_turn(world));
        }
        let mut lot = world.random.u32(..possible.iter().map(|(_, chance)| chance).sum::<u32>().max(1));
        possible
            .into_iter()
            .find(|(_, chance)| {
                let drawn = lot < *chance;
                lot = lot.saturating_sub(*chance);
                drawn
            })
            .map(|(action, _)| action)
    }

    /// Does it; gives what it was done to, and what ends it where it goes on.
    pub(crate) fn run(self, world: &mut World) -> Result<(String, Option<Heal>)> {
        *world.begun.entry(self).or_default() += 1;
        match self {
            AddPod => pods::add_somewhere(world),
            RemovePod => pods::remove_some(world, pods::Farewell::InOrder),
            LosePod => pods::remove_some(world, pods::Farewell::Lost),
            CollectGarbage => pods::collect_garbage_somewhere(world),
            ChangeService => services::change_some(world),
            AddService => services::add(world),
            RemoveService => services::remove_some(world),
            LoseMember => etcd::lose(world, 1),
            LoseQuorum => etcd::lose(world, 2),
            FillMember => etcd::fill(world),
            KillNetd => daemons::kill(world, Daemon::Netd),
            KillProxy => daemons::kill(world, Daemon::Proxy),
            PullCable => network::pull_cable(world),
            FlushRules => network::flush_rules(world),
            DeleteTable => network::delete_table(world),
            DeleteRows => rows::touch(world, true),
            DeleteServiceRows => rows::touch(world, false),
            Leave => membership::leave(world),
            Crash => membership::crash(world),
            Reboot => membership::reboot(world),
            ChangeAddress => network::change_address(world),
            FillDisk => disk::fill(world),
        }
    }
}

impl Heal {
    /// Whether it can be done now: a daemon is ready only where etcd serves.
    pub(crate) fn is_possible(&self, world: &World) -> bool {
        match self {
            Self::Restart(..) | Self::Join { .. } => world.has_quorum(),
            _ => true,
        }
    }

    /// Ends what is held.
    pub(crate) fn run(self, world: &mut World) -> Result<String> {
        let mut text = format!("{self:?}");
        match self {
            Self::Members(names) => etcd::bring_back(world, &names)?,
            Self::Restart(node, daemon) => daemons::restart(world, &node, daemon)?,
            Self::Plug(node) => network::plug(world, &node)?,
            Self::Free(node) => disk::free(world, &node)?,
            Self::Room(name) => text += &format!(": {}", etcd::make_room(world, name)?),
            Self::Join { node, after_crash } => membership::join(world, &node, after_crash)?,
        }
        Ok(text)
    }
}

/// One of the nodes at which nothing is held; with `spare` one whose daemons may be ended.
fn some_node(world: &mut World, spare: bool) -> Option<String> {
    let idle = world.idle().into_iter().filter(|name| !spare || name != crate::world::VETERAN).collect();
    world.choose(idle)
}
