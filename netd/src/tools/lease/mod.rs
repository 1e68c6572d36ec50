//! `netd lease`: the keys below `subnets/`, for operators.
//!
//! Invariants: a key is changed or deleted only as it was read; a lease that has not ended is deleted when that is asked
//! for twice, never by a slip.

mod list;
mod reserve;

use anyhow::{Context, Result, bail};
use cluster::etcd::{Deletion, Prefix as Folder, Store};
use daemon::lifecycle::Exit;
use daemon::terminal;
use netstate::Prefix;
use netstate::family::PerFamily;

use super::{block_on, etcd};
use crate::command::args::Flags;
use crate::command::config;
use crate::command::verbs::LeaseVerb;
use crate::format::lease::{SubnetKey, read_lease};

/// Does what `verb` says.
///
/// # Errors
/// When etcd cannot be asked, or there is a reason against what was asked for.
pub(super) fn act(verb: &LeaseVerb, flags: &Flags) -> Result<Exit> {
    let (store, prefix) = match super::store(flags)? {
        config::Store::Etcd { client, prefix, .. } => (Store::new(client), prefix),
        config::Store::Kubernetes { .. } => bail!(
            "leases are Nodes here: kubectl get nodes shows them with their podCIDRs, netd status those that are in use"
        ),
        config::Store::Local { .. } => bail!("--store=local: this machine is alone, and its subnet is nobody's lease"),
    };
    block_on(async {
        match verb {
            LeaseVerb::List { json } => list::show(&store, &prefix, *json).await?,
            LeaseVerb::Reserve { subnet, node } => reserve::reserve(&store, &prefix, &key(subnet)?, node).await?,
            LeaseVerb::Release { subnet, force } => release(&store, &prefix, subnet, *force).await?,
        }
        Ok(Exit::Success)
    })
}

/// The key of subnets that are written as networks, one of each family, or as the key itself.
fn key(text: &str) -> Result<SubnetKey> {
    let mut subnets = PerFamily::<Option<Prefix>>::default();
    let read = |text: &str| text.parse::<Prefix>().ok().filter(|subnet| subnet.to_string() == text);
    let twice = text.split(',').any(|text| match read(text) {
        Some(subnet) => subnets.get_mut(subnet.family()).replace(subnet).is_some(),
        None => true,
    });
    let key = SubnetKey::new(subnets).filter(|_| !twice).or_else(|| text.parse().ok());
    let accepted = "a network without host bits such as 172.7.21.0/24, one of each family apart by a comma";
    key.with_context(|| format!("{text:?} is no subnet; accepted: {accepted}"))
}

/// Deletes a key: of a subnet, or by its name whatever that is.
async fn release(store: &Store, prefix: &Folder, subnet: &str, force: bool) -> Result<()> {
    let name = key(subnet).map_or_else(|_| subnet.to_owned(), |key| key.to_string());
    let whole = etcd::subnets(prefix).key(&name);
    let entry = store.get(&whole).await?.with_context(|| format!("{whole} does not exist"))?;
    let holder = read_lease(&name, &entry.value).map(|lease| lease.attrs.public_ips.list());
    let holder = holder.unwrap_or_else(|_| "nobody who can be read".to_owned());
    if !force && let Some(left) = etcd::remaining(store, &entry).await? {
        bail!(
            "{subnet} is leased by {holder} for another {}: --force deletes it all the same, and a daemon that runs there claims it again",
            list::duration(left.remaining)
        );
    }
    match store.delete_if(&whole, entry.mod_revision).await? {
        Deletion::Gone => terminal::put(&format!("{whole} is deleted; it was of {holder}\n"))?,
        Deletion::Changed(_) => bail!("{whole} was changed by somebody else meanwhile: it stays"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_written_as_networks_or_as_keys() {
        for (text, wanted) in [("172.7.21.0/24", "172.7.21.0-24"), ("172.7.21.0-24", "172.7.21.0-24")] {
            assert_eq!(key(text).unwrap().to_string(), wanted);
        }
        assert_eq!(key("172.7.21.0/24,fc00:0:0:1::/64").unwrap().to_string(), "172.7.21.0-24&fc00:0:0:1::-64");
        assert_eq!(key("fc00:0:0:1::/64").unwrap().to_string(), "0.0.0.0-0&fc00:0:0:1::-64");
        for text in ["172.7.21.1/24", "junk", "172.7.21.0/24,172.7.22.0/24", "172.7.21.0/24,", ""] {
            assert!(key(text).is_err(), "{text}");
        }
    }
}
