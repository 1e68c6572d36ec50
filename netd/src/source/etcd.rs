//! Leases in etcd, in flannel's keys: `<prefix>/config` and `<prefix>/subnets/<key>`.
//!
//! Invariants: every change is a transaction on what was read before it. An own key that says the right thing already
//! is kept without a write, so a restart is no event for the other nodes. Its etcd lease is kept alive, not replaced,
//! so a renewal is none either (flannel writes the key anew each day, and every node hears of it).

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::etcd::{Client, Creation, Entry, Hold, KeepAlive, LeaseId, Listing, Prefix, Replacement, Store};
use cluster::{ClusterError, Source};

use super::Wish;
use crate::choose::subnet::{Choice, Claims, NoSubnet, choose, leftovers};
use crate::format::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::source::view::read_lease;

/// Time to live of a new lease in seconds: flannel's (pkg/subnet/etcd, `subnetTTL`).
const TTL: u32 = 24 * 60 * 60;

/// Lost races after which the store is not believed any more: more nodes than any network has subnets.
const MAX_RACES: u32 = 1000;

/// A lease that this node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub lease: Lease,
    /// The etcd lease that ends it; `None` for a reservation, which stays.
    pub etcd_lease: Option<LeaseId>,
    /// How it was come by, for the log.
    pub how: String,
}

/// Why no subnet could be had.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The store cannot be asked, or said no.
    #[error(transparent)]
    Store(#[from] ClusterError),
    /// Nothing is free.
    #[error(transparent)]
    NoSubnet(#[from] NoSubnet),
    /// Others were always faster.
    #[error("lost the race for a subnet {0} times: is the store in order?")]
    Races(u32),
}

/// The keys of one network in etcd; clones share connections.
#[derive(Debug, Clone)]
pub struct LeaseStore {
    store: Store,
    prefix: Prefix,
    renew_margin: u32,
    seed: u64,
}

/// One look at the leases.
struct Look {
    claims: Claims,
    entries: BTreeMap<SubnetKey, Entry>,
}

impl LeaseStore {
    /// The network below `prefix`. `renew_margin` is in seconds; `seed` spreads the retries of many nodes.
    #[must_use]
    pub fn new(client: Client, prefix: Prefix, renew_margin: u32, seed: u64) -> Self {
        Self { store: Store::new(client), prefix, renew_margin, seed }
    }

    /// The key of the network's configuration.
    #[must_use]
    pub fn config_key(&self) -> String {
        self.prefix.key("config")
    }

    /// The network's configuration; `None` while nobody has written it.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn network_config(&self) -> Result<Option<Vec<u8>>, ClusterError> {
        Ok(self.store.get(&self.config_key()).await?.map(|entry| entry.value))
    }

    /// Follows the leases.
    #[must_use]
    pub fn watch(&self) -> Source {
        cluster::etcd::watch(self.store.client(), &self.prefix.folder("subnets"), self.seed)
    }

    /// Every key below `subnets/` with its value.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn list(&self) -> Result<Vec<(String, Vec<u8>)>, ClusterError> {
        let listing = self.store.list(&self.prefix.folder("subnets")).await?;
        Ok(listing.entries.into_iter().map(|entry| (entry.key, entry.value)).collect())
    }

    /// Gets this node a subnet: keeps the one that names it, or claims a free one, until that succeeds.
    ///
    /// # Errors
    /// When the store cannot be asked, or nothing is free.
    pub async fn acquire(&self, wish: &Wish) -> Result<Held, AcquireError> {
        for lost_races in 0..MAX_RACES {
            let look = self.look().await?;
            let held = match choose(&wish.network, &wish.node, &look.claims, &wish.policies, lost_races)? {
                Choice::Keep(lease) => self.keep(wish, &lease, &look).await?,
                Choice::Take { subnet, policy, passed_over } => {
                    let reasons: String = passed_over.iter().map(|reason| format!("; {reason}")).collect();
                    self.claim(wish, SubnetKey::v4(subnet), format!("policy {policy}{reasons}")).await?
                }
            };
            if let Some(held) = held {
                self.drop_leftovers(wish, &look, &held).await;
                return Ok(held);
            }
        }
        Err(AcquireError::Races(MAX_RACES))
    }

    async fn look(&self) -> Result<Look, ClusterError> {
        let Listing { entries, .. } = self.store.list(&self.prefix.folder("subnets")).await?;
        let mut look = Look { claims: Claims::default(), entries: BTreeMap::new() };
        for entry in entries {
            let Ok(key) = entry.key.parse::<SubnetKey>() else { continue };
            match read_lease(&entry.key, &entry.value) {
                Ok(lease) => look.claims.leases.push(lease),
                Err(_) => look.claims.unreadable.push(key.v4),
            }
            look.entries.insert(key, entry);
        }
        Ok(look)
    }

    /// `None` when the key changed meanwhile.
    async fn keep(&self, wish: &Wish, kept: &Lease, look: &Look) -> Result<Option<Held>, AcquireError> {
        let Some(entry) = look.entries.get(&kept.key) else { return Ok(None) };
        let lease = Lease { key: kept.key, attrs: wish.attrs_for(&kept.attrs) };
        let held = |how: &str| Held { lease: lease.clone(), etcd_lease: entry.lease, how: how.to_owned() };
        if lease.attrs == kept.attrs {
            return Ok(Some(held("it names this node already")));
        }
        let hold = entry.lease.map_or(Hold::Forever, Hold::Lease);
        let value = lease.attrs.render();
        match self.store.replace_if(&self.key(kept.key), value.as_bytes(), hold, entry.mod_revision).await? {
            Replacement::Replaced { .. } => Ok(Some(held("it named this node already, with other details"))),
            Replacement::Changed(_) => Ok(None),
        }
    }

    /// `None` when somebody else was faster.
    async fn claim(&self, wish: &Wish, key: SubnetKey, how: String) -> Result<Option<Held>, AcquireError> {
        let value = wish.attrs.render();
        match self.store.create(&self.key(key), value.as_bytes(), Hold::Seconds(TTL)).await? {
            Creation::Created { lease: etcd_lease, .. } => {
                Ok(Some(Held { lease: Lease { key, attrs: wish.attrs.clone() }, etcd_lease, how }))
            }
            Creation::Exists(winner) => {
                let winner = LeaseAttrs::parse(&winner.value).map(|attrs| attrs.public_ip.to_string());
                tracing::info!(subnet = %key.v4, winner = winner.unwrap_or_default(), "another node was faster");
                Ok(None)
            }
        }
    }

    /// Leases of this node that do not fit the network any more would attract packets to it for a day.
    async fn drop_leftovers(&self, wish: &Wish, look: &Look, held: &Held) {
        for lease in leftovers(&wish.node, &look.claims.leases, &held.lease.key.v4) {
            let Some(entry) = look.entries.get(&lease.key) else { continue };
            match self.store.delete_if(&self.key(lease.key), entry.mod_revision).await {
                Ok(_) => tracing::info!(subnet = %lease.key.v4, "gave up an earlier lease of this node"),
                Err(error) => tracing::warn!(subnet = %lease.key.v4, %error, "an earlier lease of this node stays"),
            }
        }
    }

    /// Keeps a held lease alive until the returned value is dropped; a reservation needs no keeping.
    ///
    /// # Errors
    /// When nobody answers. A lease that is gone already is reported by the returned value.
    pub async fn keep_alive(&self, held: &Held) -> Result<Option<KeepAlive>, ClusterError> {
        let Some(lease) = held.etcd_lease else { return Ok(None) };
        let granted =
            self.store.time_to_live(lease).await?.map_or(Duration::from_secs(u64::from(TTL)), |ttl| ttl.granted);
        let period = renewal_period(u32::try_from(granted.as_secs()).unwrap_or(TTL), self.renew_margin);
        // The keeper renews at each third of what it is told.
        Ok(Some(self.store.keep_alive(lease, period.saturating_mul(3), self.seed)))
    }

    fn key(&self, key: SubnetKey) -> String {
        self.prefix.folder("subnets").key(&key.to_string())
    }
}

/// Seconds between renewals of a lease of `ttl` seconds: a third of it, or less when that would leave less than `margin`
/// seconds before its end.
fn renewal_period(ttl: u32, margin: u32) -> u32 {
    let third = ttl / 3;
    let before_margin = ttl.saturating_sub(margin);
    if before_margin == 0 { third.max(1) } else { third.min(before_margin).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_renewed_before_its_margin_and_at_each_third() {
        assert_eq!(renewal_period(86_400, 3600), 28_800);
        assert_eq!(renewal_period(86_400, 23 * 3600 + 59 * 60), 60);
        assert_eq!(renewal_period(6, 3600), 2, "a margin longer than the lease says nothing");
        assert_eq!(renewal_period(0, 3600), 1);
    }
}
