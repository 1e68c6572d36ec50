//! List, then watch from the revision after it; list again after every interruption.
//!
//! Invariants: between two `Reset`s no change below the prefix is missed and none is reported twice or out of order;
//! what one transaction changed ends with one `Commit`. A stream that broke off is never just continued: a store that was
//! restored from a backup keeps its id, and once it has passed our revision nothing but a listing shows what is gone. A
//! slow, jittered audit asks whether the stream is behind, and every so many of them list although nothing happened. A
//! member that belongs to another cluster, or lists an older state than was shown, is believed only when every member says
//! the same, or nobody has said otherwise for [`GRACE`].

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{EventType, KeyValue, ResponseHeader, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::audit::Seen;
use super::client::Client;
use super::entry::{Entry, Shown};
use super::pages::Pages;
use super::prefix::{Prefix, Range};
use crate::error::{Class, Reason};
use crate::heartbeat::Heartbeat;
use crate::{Backoff, ClusterError, Event, Origin, Source};

/// Time after which a member is believed that contradicts what was shown, when the others do not answer.
const GRACE: Duration = Duration::from_secs(30);

/// Watches every key below `prefix/`. Keys of the events are relative to it, values are the stored bytes,
/// revisions are etcd's. `seed` spreads the retries and audits of many nodes.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch(client: &Client, prefix: &Prefix, seed: u64) -> Source {
    start(client, Range::Below(prefix.clone()), seed, |entry| entry.value, None)
}

/// As [`watch`], with what `read` makes of all that the store knows of a key as the value. What was `shown` just before is
/// what the first events show, instead of one more listing; what has changed since follows.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch_entries<V: Send + Sync + 'static>(
    client: &Client,
    prefix: &Prefix,
    seed: u64,
    read: fn(Entry) -> V,
    shown: Option<Shown<V>>,
) -> Source<String, V> {
    start(client, Range::Below(prefix.clone()), seed, read, shown)
}

/// As [`watch`], of one key, which the events name whole.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch_key(client: &Client, key: &str, seed: u64) -> Source {
    start(client, Range::Key(key.to_owned()), seed, |entry| entry.value, None)
}

fn start<V: Send + Sync + 'static>(
    client: &Client,
    range: Range,
    seed: u64,
    value: fn(Entry) -> V,
    shown: Option<Shown<V>>,
) -> Source<String, V> {
    let client = client.clone();
    Source::spawn(move |events, heartbeat| {
        Watch { shown, ..Watch::new(Ends { client, range, events, heartbeat }, seed, value) }.run()
    })
}

/// Why a pass over list and stream ended.
pub(super) enum Ended {
    /// The consumer is gone.
    Closed,
    /// It is time to list although nothing happened.
    Audit,
    /// Trouble; try again after a pause.
    Broken(ClusterError),
}

impl From<ClusterError> for Ended {
    fn from(error: ClusterError) -> Self {
        Self::Broken(error)
    }
}

/// What a watch stands between.
struct Ends<V> {
    client: Client,
    range: Range,
    events: mpsc::Sender<Event<String, V>>,
    heartbeat: Heartbeat,
}

pub(super) struct Watch<V> {
    pub(super) client: Client,
    pub(super) range: Range,
    events: mpsc::Sender<Event<String, V>>,
    pub(super) heartbeat: Heartbeat,
    /// What is passed on of an entry.
    value: fn(Entry) -> V,
    pub(super) backoff: Backoff,
    pub(super) random: fastrand::Rng,
    /// The trouble the consumer knows of.
    lost: Option<ClusterError>,
    /// What was shown since the listing began.
    pub(super) seen: Seen,
    /// The cluster that was listed last.
    store: Option<u64>,
    /// Members that have contradicted since.
    contradicted: Option<Contradicted>,
    /// What the first listing has shown already.
    shown: Option<Shown<V>>,
}

/// Members that say something else than what was shown.
struct Contradicted {
    since: Instant,
    members: BTreeSet<String>,
}

impl<V: Send + Sync + 'static> Watch<V> {
    fn new(ends: Ends<V>, seed: u64, value: fn(Entry) -> V) -> Self {
        let Ends { client, range, events, heartbeat } = ends;
        let random = fastrand::Rng::with_seed(seed);
        Self {
            client,
            range,
            events,
            heartbeat,
            value,
            backoff: Backoff::new(seed),
            random,
            lost: None,
            seen: Seen::default(),
            store: None,
            contradicted: None,
            shown: None,
        }
    }

    async fn run(mut self) {
        loop {
            let error = match self.pass().await {
                Ended::Closed => return,
                Ended::Audit => continue,
                Ended::Broken(error) => error,
            };
            if self.report(error).await.is_err() {
                return;
            }
            let delay: Duration = self.backoff.next_delay();
            self.heartbeat.back_within(delay);
            sleep(delay).await;
        }
    }

    /// Lists, then follows the stream until it breaks or an audit is due.
    async fn pass(&mut self) -> Ended {
        match self.list_and_follow().await {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    async fn list_and_follow(&mut self) -> Result<std::convert::Infallible, Ended> {
        let listed = self.list().await?;
        let mut stream = self.open(listed).await?;
        let followed = self.follow(&mut stream).await;
        if let Err(Ended::Broken(error)) = &followed
            && error.reason == Reason::Unreachable
        {
            self.client.leave(&stream.member);
        }
        followed
    }

    async fn list(&mut self) -> Result<Origin, Ended> {
        match self.shown.take() {
            Some(shown) => self.begin_with(shown).await,
            None => self.list_anew().await,
        }
    }

    /// Shows what was listed before the watch began.
    async fn begin_with(&mut self, shown: Shown<V>) -> Result<Origin, Ended> {
        let Shown { values, origin } = shown;
        self.believe(origin, String::new())?;
        self.begin(origin).await?;
        for (key, revision, value) in values {
            self.seen.list();
            self.send(Event::Put { key, value, revision }).await?;
        }
        self.complete().await?;
        Ok(origin)
    }

    async fn begin(&mut self, origin: Origin) -> Result<(), Ended> {
        self.seen = Seen { revision: origin.revision, ..Seen::default() };
        self.send(Event::Reset).await?;
        self.send(Event::Origin(origin)).await
    }

    async fn complete(&mut self) -> Result<(), Ended> {
        self.send(Event::Complete).await?;
        self.lost = None;
        self.client.note_keys(self.seen.keys);
        self.client.learn_members().await;
        Ok(())
    }

    async fn list_anew(&mut self) -> Result<Origin, Ended> {
        self.heartbeat.busy();
        let mut pages = Pages::new(&self.client, &self.range);
        // The first page is awaited before `Reset`: while nobody answers there is nothing to announce.
        let mut page = pages.next().await?;
        self.believe(pages.origin(), pages.endpoint())?;
        self.begin(pages.origin()).await?;
        while let Some(entries) = page {
            for entry in entries {
                self.seen.list();
                self.send(self.put(entry)).await?;
            }
            self.heartbeat.busy();
            page = pages.next().await?;
        }
        self.complete().await?;
        Ok(pages.origin())
    }

    /// Checks what the member at `endpoint` has listed against what was shown before. One that contradicts is left for the
    /// next one.
    fn believe(&mut self, listed: Origin, endpoint: String) -> Result<(), ClusterError> {
        let Some(known) = self.store.replace(listed.store) else { return Ok(()) };
        let reason = if known != listed.store {
            format!("member {:x} belongs to another cluster, {:x}", listed.member, listed.store)
        } else if listed.revision < self.seen.revision {
            let behind = self.seen.revision.saturating_sub(listed.revision);
            format!("the member is behind: it lists revision {}, {behind} less than was shown", listed.revision)
        } else {
            self.contradicted = None;
            return Ok(());
        };
        let now = Instant::now();
        let contradicted =
            self.contradicted.get_or_insert_with(|| Contradicted { since: now, members: BTreeSet::new() });
        let error = broken(&self.range, &endpoint, reason, Reason::Other);
        contradicted.members.insert(endpoint);
        if contradicted.members.len() >= self.client.member_count() || contradicted.since + GRACE <= now {
            self.contradicted = None;
            return Ok(());
        }
        self.store = Some(known);
        self.client.move_on();
        Err(error)
    }

    /// Passes on a response. It holds whole revisions, since no fragments are asked for; one without events is a progress
    /// notice.
    pub(super) async fn take(&mut self, message: &WatchResponse) -> Result<(), Ended> {
        let shown = message.header().map_or(0, ResponseHeader::revision);
        self.seen.revision = self.seen.revision.max(shown);
        for event in message.events() {
            let Some(entry) = event.kv() else { continue };
            let (key, revision) = (self.range.name(entry.key()), entry.mod_revision());
            let change = match event.event_type() {
                EventType::Put => {
                    self.seen.put(entry);
                    self.put(entry.clone())
                }
                EventType::Delete => {
                    self.seen.delete(revision);
                    Event::Delete { key, revision }
                }
            };
            self.send(change).await?;
        }
        if message.events().is_empty() { Ok(()) } else { self.send(Event::Commit).await }
    }

    fn put(&self, entry: KeyValue) -> Event<String, V> {
        let (key, revision) = (self.range.name(entry.key()), entry.mod_revision());
        Event::Put { key: key.clone(), value: (self.value)(Entry::new(key, entry)), revision }
    }

    async fn send(&self, event: Event<String, V>) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Closed)
    }

    /// Reports trouble that the consumer does not know of yet.
    async fn report(&mut self, error: ClusterError) -> Result<(), Ended> {
        if self.lost.as_ref() == Some(&error) {
            return Ok(());
        }
        tracing::debug!(%error, "etcd watch broke off");
        self.lost = Some(error.clone());
        self.send(Event::Lost(error)).await
    }
}

/// Trouble with a watch of `range` at `endpoint`.
pub(super) fn broken(range: &Range, endpoint: &str, message: String, reason: Reason) -> ClusterError {
    let mut error = ClusterError::new("watch", range.to_string(), endpoint, message, Class::Retry);
    error.reason = reason;
    error
}
