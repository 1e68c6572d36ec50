//! Taking everything of ours out of the kernel: for a node that is leaving, never at an ordinary end.
//!
//! Invariants. Only what our record names goes, and routes that bear our number: where this program never ran nothing does, whatever stands
//! on the link of that name. The record goes last, so that a clean-up that was interrupted can be done again.

pub(crate) mod kube_proxy;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::address::Addresses;
use kernel::ipset::Sets;
use kernel::ipvs::{Ipvs, IpvsTable};
use kernel::nft::{Nft, Tables};
use kernel::{Cause, KernelError, Rtnl};
use netstate::nft;
use netstate::{Address, AddressKey, IfName, Prefix};
use reconcile::{Owner, Rows, Step, Target};

use super::lock::Lock;
use super::{addresses, forward, link, lock};
use crate::dataplane::{self, record};

/// What went.
#[derive(Debug)]
pub(crate) enum Cleaned {
    /// Everything, with so many virtual and real servers.
    All(usize),
    /// Everything but virtual servers and their addresses, which this kube-proxy works with.
    LeftTo(String),
}

/// Removes everything but what stands in `excluded` and is not recorded; `None` when there is no record of ours.
///
/// # Errors
/// When a daemon of ours works here; the first thing that the kernel refused to give up.
pub(crate) fn cleanup(excluded: &[Prefix]) -> anyhow::Result<Option<Cleaned>> {
    let _lock = Lock::take()?;
    // They say themselves whose they are.
    let routes = remove_ours(&mut addresses::local_routes(Rtnl::open()?))?;
    let mut tables = Tables::new(Nft::open()?, dataplane::tables());
    let rows = tables.observe()?;
    if rows.is_empty() {
        return Ok((routes > 0).then_some(Cleaned::All(0)));
    }
    let successor = lock::kube_proxy().filter(|_| Sets::open().is_ok_and(|mut sets| works_with_ipvs(&mut sets)));
    let cleaned = match successor {
        // It has taken over what stands there, and removes what it does not want.
        Some(rival) => Cleaned::LeftTo(rival),
        None => Cleaned::All(remove_balancing(&rows, excluded)?),
    };
    remove_ours(&mut forward::rules(Nft::open()?))?;
    remove_ours(&mut tables)?;
    Ok(Some(cleaned))
}

fn works_with_ipvs(sets: &mut Sets) -> bool {
    kube_proxy::sets::are_of_ipvs(sets).unwrap_or(false)
}

/// Removes addresses and virtual servers; returns how many of these, with their real servers.
fn remove_balancing(rows: &Rows<nft::RowKey, nft::Row>, excluded: &[Prefix]) -> anyhow::Result<usize> {
    if record::kept(rows).next().is_some() {
        remove_addresses(rows, &link()?, excluded)?;
    }
    match Ipvs::open() {
        Ok(ipvs) => Ok(remove_ours(&mut IpvsTable::new(ipvs, record::servers(rows)))?),
        Err(KernelError { cause: Cause::Missing(_), .. }) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Removes the addresses of what the record names; the link with them when the record is whole, for then it is ours, or
/// when nothing is left on it; never while it has an excluded address.
fn remove_addresses(rows: &Rows<nft::RowKey, nft::Row>, link: &IfName, excluded: &[Prefix]) -> Result<(), KernelError> {
    let mut addresses = Addresses::new(Rtnl::open()?, [link.clone()]);
    let (ours, others) = ours(rows, addresses.observe()?.into_keys());
    let is_excluded = |key: &AddressKey| excluded.iter().any(|network| network.contains(key.addr));
    let is_shared = others.iter().any(is_excluded);
    if others.is_empty() || !is_shared && record::kept(rows).all(|family| record::is_whole(rows, family)) {
        return Rtnl::open()?.delete_link(link);
    }
    let steps: Vec<_> = ours.into_iter().map(|key| Step::Remove(key, Address)).collect();
    addresses.apply(&steps).into_iter().collect()
}

/// The addresses of recorded virtual servers, and the others.
fn ours(
    rows: &Rows<nft::RowKey, nft::Row>,
    addresses: impl Iterator<Item = AddressKey>,
) -> (Vec<AddressKey>, Vec<AddressKey>) {
    let recorded: BTreeSet<IpAddr> = record::servers(rows).into_iter().map(|server| server.addr).collect();
    addresses.partition(|key| recorded.contains(&key.addr))
}

/// Removes every row of `table` that is ours; returns how many virtual servers or tables they were.
fn remove_ours<T: Target<Error = KernelError>>(table: &mut T) -> Result<usize, KernelError> {
    let rows = table.observe()?.into_iter().filter(|(_, row)| row.owner == Owner::Ours);
    let steps: Vec<_> = rows.map(|(key, row)| Step::Remove(key, row.value)).collect();
    let count = steps.len();
    table.apply(&steps).into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(count)
}
