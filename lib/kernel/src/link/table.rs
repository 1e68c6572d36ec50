//! The table of links.
//!
//! Invariant: what a desired link leaves open is not compared; what it says and only creation can set is compared first,
//! because it decides between a change in place and a new link.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use netstate::{IfName, Link, LinkKind};
use reconcile::{Observed, Owner, Rows, Step, Target};

use super::read::name_references;
use super::{LinkState, vxlan};
use crate::error::{Cause, KernelError};
use crate::rtnl::{Indexes, Rtnl};

/// Which links are ours, by name and settings.
pub type OwnsLink = Box<dyn Fn(&IfName, &Link) -> bool + Send>;

/// The link by which a change is tried, for a moment.
const SPARE: &str = "netd-try";

/// Indexes of links by the names that they had.
pub type LinkIndexes = BTreeMap<IfName, u32>;

/// The table of links.
pub struct Links {
    rtnl: Rtnl,
    owns: OwnsLink,
    names: Option<BTreeSet<IfName>>,
    /// Which link had a name when it was last listed: it is the same under another name.
    indexes: LinkIndexes,
    /// Given these whenever they change, and again at the next listing where it could not keep them.
    remember: Box<dyn FnMut(&LinkIndexes) -> bool + Send>,
    remembered: bool,
}

impl Links {
    /// The links of `rtnl`'s namespace, of which those that `owns` returns true for are ours to remove.
    pub fn new(rtnl: Rtnl, owns: OwnsLink) -> Self {
        Self { rtnl, owns, names: None, indexes: LinkIndexes::new(), remember: Box::new(|_| true), remembered: true }
    }

    /// Takes links of these indexes for those that had the names when they were last listed, by an earlier run: somebody
    /// may have renamed them since. `remember` is given what the next run should know, whenever that changes; at the next
    /// listing again after it has returned `false`.
    #[must_use]
    pub fn known_as(self, indexes: LinkIndexes, remember: impl FnMut(&LinkIndexes) -> bool + Send + 'static) -> Self {
        Self { indexes, remember: Box::new(remember), ..self }
    }

    /// Lists these links only: what others there are costs nothing. Every desired link has to be among them.
    #[must_use]
    pub fn only(self, names: impl IntoIterator<Item = IfName>) -> Self {
        Self { names: Some(names.into_iter().collect()), ..self }
    }

    fn read(&mut self) -> Result<Vec<LinkState>, KernelError> {
        let Some(names) = &self.names else { return self.rtnl.links() };
        let mut found = Vec::new();
        for name in names {
            found.extend(self.rtnl.link(name)?);
        }
        let indexes: BTreeSet<u32> =
            found.iter().flat_map(|link| [link.master_index, link.lower_index]).flatten().collect();
        let others = Indexes::numbered(&mut self.rtnl, &indexes)?;
        name_references(&mut found, |index| others.name(index).cloned());
        Ok(found)
    }

    fn create(&mut self, name: &IfName, link: &Link) -> Result<(), KernelError> {
        if let Some(renamed) = self.renamed(name, &link.kind)? {
            return self.take_back(renamed, name, link);
        }
        let refused = match self.rtnl.create_link(name, link) {
            Err(error) if error.errno() == Some(libc::EEXIST) => error,
            other => return other,
        };
        let same = |state: &LinkState| is_same_tunnel(&state.link.kind, &link.kind);
        let Some(holder) = self.rtnl.links()?.into_iter().find(same) else { return Err(refused) };
        if link.mac.is_none() || holder.link.mac != link.mac {
            let its = if matches!(link.kind, LinkKind::Ipip(_)) { "two ends" } else { "VNI and UDP port" };
            let what = format!("device {} has its {its}: delete that or give it others", holder.name);
            return Err(KernelError::new("create link", name, Cause::Taken(what)));
        }
        self.take_back(holder, name, link)
    }

    /// The link of this kind that had `name` when it was last listed, and has another now.
    fn renamed(&mut self, name: &IfName, kind: &LinkKind) -> Result<Option<LinkState>, KernelError> {
        let Some(index) = self.indexes.get(name) else { return Ok(None) };
        let found = self.rtnl.link_by_index(*index)?;
        Ok(found.filter(|state| state.name != *name && is_same_kind(&state.link.kind, kind)))
    }

    /// Gives a link that somebody renamed its name back: what stands on it stays.
    fn take_back(&mut self, state: LinkState, name: &IfName, link: &Link) -> Result<(), KernelError> {
        self.rtnl.rename_link(state.index, state.link.up, name)?;
        self.change(name, &Link { up: false, ..state.link }, link)
    }

    fn change(&mut self, name: &IfName, have: &Link, want: &Link) -> Result<(), KernelError> {
        if kind_satisfies(&have.kind, &want.kind) {
            return self.rtnl.change_link(name, have, want);
        }
        // Moved under what stands on it: routes, neighbours and forwarding entries stay.
        let moved = match (&have.kind, &want.kind) {
            (LinkKind::Vxlan(old), LinkKind::Vxlan(new)) => {
                vxlan::changes_in_place(old, new) && self.rtnl.change_vxlan(name, old, new).is_ok()
            }
            (LinkKind::Ipip(_), LinkKind::Ipip(new)) => self.rtnl.move_ipip(name, *new).is_ok(),
            _ => false,
        };
        if moved {
            return self.rtnl.change_link(name, have, want);
        }
        self.try_beside(have, want)?;
        self.rtnl.delete_link(name)?;
        self.rtnl.create_link(name, want).inspect_err(|_| {
            // What was there is better than nothing; why it is not the other one is said.
            let _ = self.rtnl.create_link(name, have);
        })
    }

    /// Whether the kernel takes `want`, by a link beside `have`, which would make room for it: where its port is taken, or what it
    /// stands on is gone, nothing is lost.
    fn try_beside(&mut self, have: &Link, want: &Link) -> Result<(), KernelError> {
        let spare = IfName::literal(SPARE);
        // Of a run that was killed.
        if let Some(left) = self.rtnl.link(&spare)?.filter(|left| is_same_kind(&left.link.kind, &want.kind)) {
            self.rtnl.delete_link(&left.name)?;
        }
        match self.rtnl.create_link(&spare, want) {
            Ok(()) => self.rtnl.delete_link(&spare),
            Err(error) => {
                if self.rtnl.link(&spare)?.is_some() {
                    self.rtnl.delete_link(&spare)?;
                }
                if is_in_the_way(&have.kind, &want.kind, &error) { Ok(()) } else { Err(error) }
            }
        }
    }
}

impl Target for Links {
    type Key = IfName;
    type Value = Link;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<IfName, Link>, KernelError> {
        let links = self.read()?;
        let mut indexes = self.indexes.clone();
        indexes.extend(links.iter().map(|state| (state.name.clone(), state.index)));
        if indexes != self.indexes || !self.remembered {
            self.indexes = indexes;
            self.remembered = (self.remember)(&self.indexes);
        }
        let owner = |state: &LinkState| match (self.owns)(&state.name, &state.link) {
            true => Owner::Ours,
            false => Owner::Foreign,
        };
        Ok(links.into_iter().map(|s| (s.name.clone(), Observed { owner: owner(&s), value: s.link })).collect())
    }

    fn satisfies(&self, have: &Link, want: &Link) -> bool {
        kind_satisfies(&have.kind, &want.kind)
            && want.mtu.is_none_or(|mtu| have.mtu == Some(mtu))
            && want.mac.is_none_or(|mac| have.mac == Some(mac))
            && have.up == want.up
            && (want.master.is_none() || have.master == want.master)
    }

    fn apply(&mut self, steps: &[Step<IfName, Link>]) -> Vec<Result<(), KernelError>> {
        let step = |step: &Step<IfName, Link>| match step {
            Step::Create(name, link) => self.create(name, link),
            Step::Change(name, have, want) => self.change(name, have, want),
            Step::Remove(name, _) => self.rtnl.delete_link(name),
        };
        steps.iter().map(step).collect()
    }
}

/// True where it is `have` that keeps `want` out: one tunnel network on one port, or one port by sockets of other options.
fn is_in_the_way(have: &LinkKind, want: &LinkKind, error: &KernelError) -> bool {
    let has_port = match (have, want) {
        (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => have.port == want.port,
        _ => false,
    };
    match error.errno() {
        Some(libc::EEXIST) => true,
        Some(libc::EADDRINUSE) => has_port,
        _ => false,
    }
}

fn is_same_kind(one: &LinkKind, other: &LinkKind) -> bool {
    mem::discriminant(one) == mem::discriminant(other)
}

/// True for two devices that cannot be beside each other: one tunnel network on one port.
fn is_same_tunnel(have: &LinkKind, want: &LinkKind) -> bool {
    match (have, want) {
        (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => have.vni == want.vni && have.port == want.port,
        (LinkKind::Ipip(have), LinkKind::Ipip(want)) => have == want,
        _ => false,
    }
}

fn kind_satisfies(have: &LinkKind, want: &LinkKind) -> bool {
    match (have, want) {
        (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => vxlan::satisfies(have, want),
        (have, want) => have == want,
    }
}
