//! The table of links.
//!
//! Invariant: what a desired link leaves open is not compared; what it says and only creation can set is compared first,
//! because it decides between a change in place and a new link.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::{IfName, Link, LinkKind, VxlanOptions};
use reconcile::{Observed, Owner, Rows, Step, Target};

use super::LinkState;
use super::read::name_references;
use crate::error::{Cause, KernelError};
use crate::rtnl::{Indexes, Rtnl};

/// Which links are ours, by name and settings.
pub type OwnsLink = Box<dyn Fn(&IfName, &Link) -> bool + Send>;

/// The table of links.
pub struct Links {
    rtnl: Rtnl,
    owns: OwnsLink,
    names: Option<BTreeSet<IfName>>,
}

impl Links {
    /// The links of `rtnl`'s namespace, of which those that `owns` returns true for are ours to remove.
    pub fn new(rtnl: Rtnl, owns: OwnsLink) -> Self {
        Self { rtnl, owns, names: None }
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
        // Renamed by somebody: what stands on it stays.
        self.rtnl.rename_link(holder.index, holder.link.up, name)?;
        self.change(name, &Link { up: false, ..holder.link }, link)
    }

    fn change(&mut self, name: &IfName, have: &Link, want: &Link) -> Result<(), KernelError> {
        if kind_satisfies(&have.kind, &want.kind) {
            return self.rtnl.change_link(name, have, want);
        }
        // Moved under what stands on it: routes, neighbours and forwarding entries stay.
        let moved = match (&have.kind, &want.kind) {
            (LinkKind::Vxlan(old), LinkKind::Vxlan(new)) => {
                only_the_underlay_differs(old, new) && self.rtnl.move_vxlan(name, new).is_ok()
            }
            (LinkKind::Ipip(_), LinkKind::Ipip(new)) => self.rtnl.move_ipip(name, *new).is_ok(),
            _ => false,
        };
        if moved {
            return self.rtnl.change_link(name, have, want);
        }
        self.rtnl.delete_link(name)?;
        self.rtnl.create_link(name, want)
    }
}

impl Target for Links {
    type Key = IfName;
    type Value = Link;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<IfName, Link>, KernelError> {
        let links = self.read()?;
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

/// True when the devices differ in address and lower device only, which the kernel changes in place (vxlan_changelink).
fn only_the_underlay_differs(have: &VxlanOptions, want: &VxlanOptions) -> bool {
    let of_one_family = |have: IpAddr, want: IpAddr| have.is_ipv4() == want.is_ipv4();
    have.local.zip(want.local).is_some_and(|(have, want)| of_one_family(have, want))
        && VxlanOptions { local: have.local, lower: have.lower.clone(), ..want.clone() } == *have
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
        (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => {
            have.vni == want.vni
                && have.port == want.port
                && have.learning == want.learning
                && have.gbp == want.gbp
                && (want.local.is_none() || have.local == want.local)
                && (want.lower.is_none() || have.lower == want.lower)
        }
        (have, want) => have == want,
    }
}
