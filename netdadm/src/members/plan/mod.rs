//! What is to be done to add, remove or replace a member, from what the members are now.
//!
//! Pure. Invariants: no step leaves fewer members that serve than a quorum of those that vote; a member that is new gets no vote
//! before it has caught up; what was done already is in no plan, so that a plan that broke off is finished by the next.

#[cfg(test)]
mod tests;

use std::fmt;

use super::view::{Member, Place, View};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// The host gets a member.
    Add(Place),
    /// A member goes.
    Remove(String),
    /// A member goes, and the host gets one.
    Replace(String, Place),
}

/// A step; each is done by one request, but for [`Step::Start`], which somebody does on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Add a member without a vote.
    Add {
        /// The host.
        host: String,
        /// Where other members reach it.
        peer: String,
    },
    /// Wait until it has been started.
    Start {
        /// The host.
        host: String,
    },
    /// Give it a vote once it has caught up.
    Promote {
        /// The host.
        host: String,
        /// How many members vote then.
        voters: usize,
    },
    /// Have another one lead.
    MoveLeader {
        /// Who leads then.
        to: String,
        /// Its id.
        id: u64,
    },
    /// Take a member out.
    Remove {
        /// What it is called.
        name: String,
        /// Its id.
        id: u64,
        /// How many members vote then.
        voters: usize,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { host, peer } => write!(f, "add {host} at {peer} as a learner, which has no vote"),
            Self::Start { host } => write!(f, "wait until the member of {host} has started with an empty folder"),
            Self::Promote { host, voters } => {
                write!(f, "give {host} a vote once it has caught up: {}", survival(*voters))
            }
            Self::MoveLeader { to, .. } => write!(f, "have {to} lead"),
            Self::Remove { name, id, voters } => write!(f, "remove the member {name} ({id:x}): {}", survival(*voters)),
        }
    }
}

/// How many losses so many members survive.
fn survival(voters: usize) -> String {
    let losses = voters.saturating_sub(quorum(voters));
    let losses = match losses {
        0 => "the loss of none".to_owned(),
        1 => "the loss of one".to_owned(),
        losses => format!("the loss of {losses}"),
    };
    let members = if voters == 1 { "1 member votes and survives" } else { "members vote and survive" };
    let text = if voters == 1 { format!("{members} {losses}") } else { format!("{voters} {members} {losses}") };
    // Another member would only add to what may be lost.
    if voters > 1 && voters.is_multiple_of(2) { text + ", no more than one less would" } else { text }
}

const fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Why nothing can be changed.
const NOBODY: &str = "if one has died just now, the others choose another within seconds, so ask again; without a quorum \
                      nothing can be changed: bring members back, or restore a backup";

/// The steps that are left; none when it is done.
///
/// # Errors
/// Why it cannot be done, and what to do first.
pub(crate) fn plan(view: &View, order: &Order) -> Result<Vec<Step>, String> {
    if view.leader().is_none() {
        return Err(format!("{}; {NOBODY}", view.leaderless()));
    }
    one_of_a_name(view, order)?;
    match order {
        Order::Add(place) => add(view, place),
        Order::Remove(name) => remove(view, name),
        Order::Replace(old, place) if *old == place.host => renew(view, place),
        Order::Replace(old, place) => replace(view, old, place),
    }
}

/// Of several members that are called the same none is chosen.
fn one_of_a_name(view: &View, order: &Order) -> Result<(), String> {
    let names = match order {
        Order::Add(place) => vec![&place.host],
        Order::Remove(name) => vec![name],
        Order::Replace(old, place) => vec![old, &place.host],
    };
    for name in names {
        let ids: Vec<String> = view.called(name).map(|member| format!("{:x}", member.entry.id)).collect();
        if ids.len() > 1 {
            let ids = ids.join(", ");
            return Err(format!("{name} is the name of the members {ids}: remove the one that is too much by its id"));
        }
    }
    Ok(())
}

fn voters(view: &View) -> usize {
    view.voters().count()
}

fn add(view: &View, place: &Place) -> Result<Vec<Step>, String> {
    let host = place.host.clone();
    if let Some(member) = view.member(&host) {
        return left_of(view, member, host);
    }
    if let Some(other) = view.members.iter().find(|member| member.entry.is_learner) {
        return Err(format!(
            "{} learns still, and etcd has one learner at a time: finish that, or remove it",
            other.name()
        ));
    }
    if let Some(silent) = view.voters().find(|member| !member.serves()) {
        let (name, reason) = (silent.name(), silent.status.as_ref().err().map_or("it has no leader", String::as_str));
        return Err(format!(
            "{name} does not serve ({reason}), and etcd adds nobody while a member is not connected: bring it back, or `netdadm etcd remove {name}`"
        ));
    }
    fits(view, place)?;
    let voters = voters(view).saturating_add(1);
    let add = Step::Add { host: host.clone(), peer: place.peer.clone() };
    Ok(vec![add, Step::Start { host: host.clone() }, Step::Promote { host, voters }])
}

/// What a member lacks that is there already.
fn left_of(view: &View, member: &Member, host: String) -> Result<Vec<Step>, String> {
    let promote = |voters: usize| Step::Promote { host: host.clone(), voters };
    match (member.entry.is_learner, member.has_started(), member.serves()) {
        (false, _, true) => Ok(Vec::new()),
        // Added by hand, with a vote.
        (false, false, false) => Ok(vec![Step::Start { host }]),
        (false, true, false) => Err(format!(
            "{host} has a member, which does not serve ({}): `netdadm etcd replace {host}` if it does not come back",
            member.status.as_ref().err().map_or("it has no leader", String::as_str)
        )),
        (true, true, true) => Ok(vec![promote(voters(view).saturating_add(1))]),
        (true, ..) => {
            let promote = promote(voters(view).saturating_add(1));
            Ok(vec![Step::Start { host }, promote])
        }
    }
}

/// Whether the member, as it is rendered, would be taken in.
fn fits(view: &View, place: &Place) -> Result<(), String> {
    let host = &place.host;
    if !place.joins {
        return Err(format!(
            "hosts.{host}.joins is not true in the topology: its member would make a cluster of its own; set it, and render"
        ));
    }
    let mut expected: Vec<&str> =
        view.members.iter().flat_map(|member| &member.entry.peer_urls).map(String::as_str).collect();
    expected.push(&place.peer);
    expected.sort_unstable();
    let mut rendered: Vec<&str> = place.initial.iter().map(String::as_str).collect();
    rendered.sort_unstable();
    if expected == rendered {
        return Ok(());
    }
    Err(format!(
        "the members will be {}, and by the topology {host} is to know {}: etcd would refuse it; give the role etcd to the hosts with these members alone, \
         and `joins` to those alone that are added, in the order of the file",
        expected.join(" "),
        rendered.join(" ")
    ))
}

fn remove(view: &View, name: &str) -> Result<Vec<Step>, String> {
    let Some(member) = view.member(name) else { return Ok(Vec::new()) };
    let after = view.without(member.entry.id);
    let left = voters(&after);
    let gone = Step::Remove { name: member.name(), id: member.entry.id, voters: left };
    if member.entry.is_learner {
        return Ok(vec![gone]);
    }
    if left == 0 {
        return Err(format!("{name} is the only member: without it there is no etcd"));
    }
    let silent: Vec<String> = after.voters().filter(|member| !member.serves()).map(Member::name).collect();
    let live = left.saturating_sub(silent.len());
    if live < quorum(left) {
        return Err(format!(
            "without {name} {live} of {left} members would serve, and {} must: the quorum would be lost; bring {} back first",
            quorum(left),
            silent.join(", ")
        ));
    }
    let mut steps = Vec::new();
    if view.leader().is_some_and(|leader| leader.entry.id == member.entry.id) {
        let next = view.best_follower().ok_or("nobody else can lead")?;
        steps.push(Step::MoveLeader { to: next.name(), id: next.entry.id });
    }
    steps.push(gone);
    Ok(steps)
}

/// A member of the same host, whose data are lost.
fn renew(view: &View, place: &Place) -> Result<Vec<Step>, String> {
    let host = &place.host;
    match view.member(host) {
        None => add(view, place),
        Some(member) if member.entry.is_learner || member.serves() || !member.has_started() => add(view, place),
        Some(dead) => {
            let mut steps = remove(view, host)?;
            steps.extend(add(&view.without(dead.entry.id), place)?);
            Ok(steps)
        }
    }
}

/// A member of another host: behind it where the old one serves and the new one is rendered to know it, else before.
fn replace(view: &View, old: &str, place: &Place) -> Result<Vec<Step>, String> {
    let Some(member) = view.member(old) else { return add(view, place) };
    let first = if member.serves() { add(view, place).ok() } else { None };
    let Some(mut steps) = first else {
        let mut steps = remove(view, old)?;
        steps.extend(add(&view.without(member.entry.id), place)?);
        return Ok(steps);
    };
    let count = if steps.is_empty() { voters(view) } else { voters(view).saturating_add(1) };
    let gone = remove(view, old)?.into_iter().map(|step| match step {
        Step::Remove { name, id, .. } => Step::Remove { name, id, voters: count.saturating_sub(1) },
        other => other,
    });
    steps.extend(gone);
    Ok(steps)
}
