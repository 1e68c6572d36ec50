//! Leases in etcd, in flannel's keys: `<prefix>/config` and `<prefix>/subnets/<key>`.
//!
//! Invariants: every change is a transaction on what was read before it. An own key that says the right thing already
//! is kept without a write, so a restart is no event for the other nodes. Its etcd lease is kept alive, not replaced,
//! so a renewal is none either (flannel writes the key anew each day, and every node is notified).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::etcd::{
    Client, Creation, Entry, Hold, LeaseId, LeaseState, Prefix, Replacement, Shown, Store, watch_entries, watch_key,
};
use cluster::{Backoff, ClusterError, Event, Snapshot, Source};

use super::{
    AcquireError, ConfigError, Configs, Held, Keeping, LeaseEvent, LeaseEvents, LeaseRequest, LeaseSource, Sender,
};
use crate::choose::subnet::{Attempt, Choice, Claim, Claims, Unreadable, choose, further};
use crate::format::lease::{Lease, LeaseAttrs, StoredLease, SubnetKey, read_lease};

/// Time to live of a new lease in seconds: flannel's (pkg/subnet/etcd, `subnetTTL`).
const TTL: u32 = 24 * 60 * 60;

/// How long a node that holds a lease may take to write it again after somebody has overwritten it.
const OBJECTION: Duration = Duration::from_secs(3);

/// Leases that are passed on together.
const TOGETHER: usize = 256;

/// Lost races after which the store is not believed any more: more nodes than any network has subnets.
const MAX_RACES: u32 = 1000;

/// The keys of one network in etcd; clones share connections.
#[derive(Debug, Clone)]
pub(crate) struct EtcdLeases {
    store: Store,
    prefix: Prefix,
    renew_margin: u32,
    seed: u64,
    listed: Arc<Mutex<Listed>>,
}

/// The listing by which this node's lease was found: the leases are followed from there, so a start lists them once.
#[derive(Debug)]
enum Listed {
    /// Nobody follows the leases yet.
    Wanted,
    /// The own lease was found in it, and nothing was written for it.
    Kept(Shown<LeaseEvent>),
    /// Somebody does; further listings are of no use to him.
    Followed,
}

/// All keys under `subnets/` at one revision.
struct Leases {
    claims: Claims,
    shown: Shown<LeaseEvent>,
}

impl Leases {
    /// What was read under `key`, if it is a lease.
    fn stored(&self, key: &SubnetKey) -> Option<&StoredLease> {
        let (values, name) = (&self.shown.values, key.to_string());
        let found = values.binary_search_by(|(other, ..)| other.as_str().cmp(&name)).ok()?;
        match values.get(found) {
            Some((_, _, LeaseEvent::Put(stored))) => Some(stored),
            _ => None,
        }
    }
}

impl EtcdLeases {
    /// The network below `prefix`. `renew_margin` is in seconds; `seed` spreads the retries of many nodes.
    #[must_use]
    pub(crate) fn new(client: Client, prefix: Prefix, renew_margin: u32, seed: u64) -> Self {
        let listed = Arc::new(Mutex::new(Listed::Wanted));
        Self { store: Store::new(client), prefix, renew_margin, seed, listed }
    }

    /// Keeps the listing for whoever begins to follow the leases, if the own lease stands in it as it is held.
    fn keep_listing(&self, held: &Held, read: Leases) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if held.revision == read.shown.origin.revision && !matches!(*listed, Listed::Followed) {
            *listed = Listed::Kept(read.shown);
        }
    }

    /// The listing that was kept. From now on none is.
    fn kept_listing(&self) -> Option<Shown<LeaseEvent>> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *listed, Listed::Followed) {
            Listed::Kept(shown) => Some(shown),
            Listed::Wanted | Listed::Followed => None,
        }
    }

    async fn read(&self, request: &LeaseRequest) -> Result<Leases, ClusterError> {
        let shown = self.store.show(&self.prefix.folder("subnets"), put).await?;
        tracing::info!(keys = shown.values.len(), revision = shown.origin.revision, "the leases are listed");
        let mut claims = Claims::default();
        for (name, revision, event) in &shown.values {
            match event {
                LeaseEvent::Put(stored) => {
                    let recorded = request.record.has(&stored.lease.key, stored.token);
                    claims.leases.push(Claim { stored: Arc::clone(stored), recorded });
                }
                _ => claims.unreadable.extend(name.parse::<SubnetKey>().ok().map(|key| {
                    let recorded = request.record.names(&key);
                    Unreadable { key, revision: *revision, recorded }
                })),
            }
        }
        Ok(Leases { claims, shown })
    }

    /// `None` when the key changed meanwhile.
    async fn keep_own(
        &self,
        request: &LeaseRequest,
        kept: &Lease,
        read: &Leases,
    ) -> Result<Option<Held>, AcquireError> {
        let Some(stored) = read.stored(&kept.key) else { return Ok(None) };
        let lease = Lease { key: kept.key, attrs: request.attrs_for(&kept.attrs) };
        let held = |how: &str, revision: i64| Held {
            lease: lease.clone(),
            token: stored.token,
            revision,
            how: how.to_owned(),
            others: Vec::new(),
        };
        if lease.attrs == kept.attrs && !request.objects {
            return Ok(Some(held("it names this node already", read.shown.origin.revision)));
        }
        let how = if lease.attrs == kept.attrs {
            "it names this node already, and was written again for whoever else has its address"
        } else if lease.attrs.public_ips == kept.attrs.public_ips {
            "it named this node already, with other details"
        } else {
            "it is this node's, from before its address changed"
        };
        let hold = stored.token.and_then(LeaseId::new).map_or(Hold::Forever, Hold::Lease);
        let value = lease.attrs.render();
        match self.store.replace_if(&self.key(kept.key), value.as_bytes(), hold, stored.revision).await? {
            Replacement::Replaced { mod_revision, .. } => Ok(Some(held(how, mod_revision))),
            Replacement::Changed(_) => Ok(None),
        }
    }

    /// Keeps a lease that only its address says to be this node's, or everything but its address: if another node holds it, that one
    /// writes it again.
    async fn take_over(
        &self,
        request: &LeaseRequest,
        claim: &Claim,
        read: &Leases,
    ) -> Result<Option<Held>, AcquireError> {
        let kept = claim.lease();
        if request.rival.as_ref() == Some(kept) {
            return Err(AcquireError::Rival(Box::new(kept.clone())));
        }
        let adopts_mac = request.adopts_mac && request.node.may_be_a_copys(claim);
        let request = LeaseRequest { adopts_mac, objects: true, ..request.clone() };
        let Some(held) = self.keep_own(&request, kept, read).await? else { return Ok(None) };
        tokio::time::sleep(OBJECTION).await;
        let Some(now) = self.store.get(&self.key(kept.key)).await? else { return Ok(None) };
        match read_lease(&kept.key.to_string(), &now.value) {
            Ok(lease) if now.mod_revision > held.revision => Err(AcquireError::Rival(Box::new(lease))),
            _ => Ok(Some(held)),
        }
    }

    /// Writes the own lease again where something that is no lease stands under its key now.
    async fn overwrite(
        &self,
        request: &LeaseRequest,
        junk: &Unreadable,
        how: String,
    ) -> Result<Option<Held>, AcquireError> {
        let value = request.attrs.render();
        let hold = Hold::Seconds(TTL);
        match self.store.replace_if(&self.key(junk.key), value.as_bytes(), hold, junk.revision).await? {
            Replacement::Replaced { lease, mod_revision } => {
                let token = lease.map(LeaseId::get);
                let how = format!("{how}; what stood there was no lease");
                let lease = Lease { key: junk.key, attrs: request.attrs.clone() };
                Ok(Some(Held { lease, token, revision: mod_revision, how, others: Vec::new() }))
            }
            Replacement::Changed(_) => Ok(None),
        }
    }

    /// `None` when somebody else was faster.
    async fn claim(&self, request: &LeaseRequest, key: SubnetKey, how: String) -> Result<Option<Held>, AcquireError> {
        let value = request.attrs.render();
        match self.store.create(&self.key(key), value.as_bytes(), Hold::Seconds(TTL)).await? {
            Creation::Created { lease: etcd_lease, mod_revision } => {
                let lease = Lease { key, attrs: request.attrs.clone() };
                let token = etcd_lease.map(LeaseId::get);
                Ok(Some(Held { lease, token, revision: mod_revision, how, others: Vec::new() }))
            }
            Creation::Exists(winner) => {
                let winner = LeaseAttrs::parse(&winner.value, key.subnets().families());
                let winner = winner.map(|attrs| attrs.public_ips.list());
                tracing::info!(subnet = key.list(), winner = winner.unwrap_or_default(), "another node was faster");
                Ok(None)
            }
        }
    }

    /// Deletes leases that this node held before, which would attract packets to it for a day, and returns the other
    /// keys that name it.
    async fn give_up_earlier(&self, request: &LeaseRequest, read: &Leases, held: &Held) -> Vec<Lease> {
        let mut others = Vec::new();
        for claim in further(&request.node, &read.claims.leases, &held.lease.key) {
            let (Some(stored), key) = (read.stored(&claim.lease().key), claim.lease().key) else { continue };
            if !claim.recorded {
                others.push(claim.lease().clone());
                continue;
            }
            match self.store.delete_if(&self.key(key), stored.revision).await {
                Ok(_) => tracing::info!(subnet = key.list(), "gave up an earlier lease of this node"),
                Err(error) => tracing::warn!(subnet = key.list(), %error, "an earlier lease of this node stays"),
            }
        }
        others
    }

    fn key(&self, key: SubnetKey) -> String {
        self.prefix.folder("subnets").key(&key.to_string())
    }
}

impl LeaseSource for EtcdLeases {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn config_place(&self) -> String {
        format!("etcd key {}", self.prefix.key("config"))
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        Ok(self.store.get(&self.prefix.key("config")).await?.map(|entry| entry.value))
    }

    fn configs(&self) -> Configs {
        let key = self.prefix.key("config");
        let source = watch_key(self.store.client(), &key, self.seed);
        let progress = source.progress();
        Configs::spawn(move |texts| follow_config(key, source, texts)).fed_by(progress)
    }

    fn events(&self) -> LeaseEvents {
        let (folder, shown) = (self.prefix.folder("subnets"), self.kept_listing());
        let source = watch_entries(self.store.client(), &folder, self.seed, put, shown);
        let progress = source.progress();
        LeaseEvents::spawn(move |events| follow(source, events)).fed_by(progress)
    }

    fn dial_anew(&self) {
        self.store.client().dial_anew();
    }

    async fn list(&self) -> Result<Vec<LeaseEvent>, ClusterError> {
        // A second opinion is another member's, where there is one.
        self.store.client().move_on();
        let shown = self.store.show(&self.prefix.folder("subnets"), put).await?;
        let leases = shown.values.into_iter().map(|(_, _, event)| event);
        Ok([LeaseEvent::Reset].into_iter().chain(leases).chain([LeaseEvent::Complete]).collect())
    }

    async fn acquire(&self, request: &LeaseRequest) -> Result<Held, AcquireError> {
        let mut pause = Backoff::new(self.seed);
        for lost_races in 0..MAX_RACES {
            if lost_races > 0 {
                // Nodes that race for one subnet must not come back in step.
                tokio::time::sleep(pause.next_delay()).await;
            }
            let read = self.read(request).await?;
            let attempt = Attempt { lost_races, seed: self.seed };
            let held = match choose(&request.network, &request.node, &read.claims, &request.policies, attempt)? {
                Choice::Keep(lease) => match read.claims.leases.iter().find(|claim| *claim.lease() == lease) {
                    Some(claim) if request.doubts(claim) => self.take_over(request, claim, &read).await?,
                    _ => self.keep_own(request, &lease, &read).await?,
                },
                Choice::Take { key, how, passed_over } => {
                    let reasons: String = passed_over.iter().map(|reason| format!("; {reason}")).collect();
                    let how = format!("{how}{reasons}");
                    match read.claims.unreadable.iter().find(|junk| junk.key == key) {
                        Some(junk) => self.overwrite(request, junk, how).await?,
                        None => self.claim(request, key, how).await?,
                    }
                }
            };
            if let Some(held) = held {
                let others = self.give_up_earlier(request, &read, &held).await;
                self.keep_listing(&held, read);
                return Ok(Held { others, ..held });
            }
        }
        Err(AcquireError::Races(MAX_RACES))
    }

    async fn keep(&self, held: &Held, mut report: impl FnMut(Keeping) + Send) -> Result<String, ClusterError> {
        let Some(lease) = held.token.and_then(LeaseId::new) else { return std::future::pending().await };
        let granted =
            self.store.time_to_live(lease).await?.map_or(Duration::from_secs(u64::from(TTL)), |ttl| ttl.granted);
        let period = renewal_period(u32::try_from(granted.as_secs()).unwrap_or(TTL), self.renew_margin);
        // The library renews at each third of what it is given.
        let mut keep_alive = self.store.keep_alive(lease, period.saturating_mul(3), self.seed);
        loop {
            match keep_alive.changed().await {
                LeaseState::Lost => return Ok("etcd does not know it any more".to_owned()),
                LeaseState::Kept => report(Keeping::Kept),
                LeaseState::Failing(error) => report(Keeping::Failing(error.to_string())),
                LeaseState::Unknown => {}
            }
        }
    }
}

/// Reports the configuration under `key` after each listing and each change.
async fn follow_config(key: String, mut source: Source, texts: Sender<Option<Vec<u8>>>) {
    let mut known = Snapshot::<String, Vec<u8>>::new();
    while let Some(event) = source.next().await {
        let whole = event.is_end();
        known.apply(event);
        if whole && !texts.send(known.get(&key).cloned()).await {
            return;
        }
    }
}

/// Turns the store's events into events of leases, for as long as somebody listens. Leases that wait already are one event.
async fn follow(mut source: Source<String, LeaseEvent>, events: Sender<LeaseEvent>) {
    while let Some(event) = source.next().await {
        let (mut leases, mut next) = (Vec::new(), lease_event(event));
        while let Some(LeaseEvent::Put(stored)) = next {
            leases.push(stored);
            next = if leases.len() < TOGETHER { source.try_next().and_then(lease_event) } else { None };
        }
        let puts = match leases.len() {
            0 | 1 => leases.pop().map(LeaseEvent::Put),
            _ => Some(LeaseEvent::Puts(leases)),
        };
        for event in puts.into_iter().chain(next) {
            if !events.send(event).await {
                return;
            }
        }
    }
}

fn lease_event(event: Event<String, LeaseEvent>) -> Option<LeaseEvent> {
    Some(match event {
        Event::Reset => LeaseEvent::Reset,
        Event::Put { value, .. } => value,
        Event::Delete { key, revision } => match key.parse::<SubnetKey>() {
            Ok(lease) => LeaseEvent::Delete(lease, revision),
            Err(_) => LeaseEvent::Removed(key),
        },
        Event::Complete => LeaseEvent::Complete,
        Event::Lost(error) => LeaseEvent::Lost(Box::new(error)),
        Event::Invalid { source, reason, .. } => LeaseEvent::Invalid { key: source, reason, revision: 0 },
        Event::Valid { source } => LeaseEvent::Removed(source),
        Event::Origin(origin) => LeaseEvent::Origin(origin),
        Event::Commit => LeaseEvent::Commit,
        Event::Notes { .. } => return None,
    })
}

fn put(entry: Entry) -> LeaseEvent {
    let (created, revision) = (entry.create_revision, entry.mod_revision);
    let token = entry.lease.map(LeaseId::get);
    match read_lease(&entry.key, &entry.value) {
        Ok(lease) => LeaseEvent::Put(Arc::new(StoredLease { lease, created, revision, token })),
        Err(reason) => LeaseEvent::Invalid { key: entry.key, reason, revision },
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
