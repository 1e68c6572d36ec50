//! List, then watch from the revision after it; list again after every interruption.
//!
//! Invariants: between two `Reset`s no change below the prefix is missed and none is reported twice or out of order;
//! what one transaction changed ends with one `Commit`. A stream that broke off is never just continued: a store that was
//! restored from a backup keeps its id, and once it has passed our revision nothing but a listing shows what is gone. A
//! slow, jittered audit asks whether the stream is behind, and every so many of them list although nothing happened. A
//! member of another cluster is believed only when every member is.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, KeyValue, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::audit::{Count, Seen};
use super::client::Client;
use super::entry::{Entry, Shown};
use super::fault::fault;
use super::member::Member;
use super::pages::{MAX_MESSAGE, Pages};
use super::prefix::{Prefix, Range};
use crate::error::{Class, Reason};
use crate::heartbeat::Heartbeat;
use crate::{Backoff, ClusterError, Event, Origin, Source};

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
enum Ended {
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

struct Watch<V> {
    client: Client,
    range: Range,
    events: mpsc::Sender<Event<String, V>>,
    heartbeat: Heartbeat,
    /// What is passed on of an entry.
    value: fn(Entry) -> V,
    backoff: Backoff,
    random: fastrand::Rng,
    /// The trouble the consumer knows of.
    lost: Option<ClusterError>,
    /// What was shown since the listing began.
    seen: Seen,
    /// The cluster that was listed last, and how many members of another one have answered since.
    store: Option<u64>,
    strangers: usize,
    /// What the first listing has shown already.
    shown: Option<Shown<V>>,
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
            strangers: 0,
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
        let (member, mut stream) = self.open(listed).await?;
        let followed = self.follow(&mut stream, listed).await;
        if let Err(Ended::Broken(error)) = &followed
            && error.reason == Reason::Unreachable
        {
            self.client.leave(&member);
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
        self.check_same_cluster(origin)?;
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
        self.client.learn_members().await;
        Ok(())
    }

    async fn list_anew(&mut self) -> Result<Origin, Ended> {
        self.heartbeat.busy();
        let mut pages = Pages::new(&self.client, &self.range);
        // The first page is awaited before `Reset`: while nobody answers there is nothing to announce.
        let mut page = pages.next().await?;
        self.check_same_cluster(pages.origin())?;
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

    /// A member that belongs to another cluster is left for the next one; when all do, that is the cluster now.
    fn check_same_cluster(&mut self, listed: Origin) -> Result<(), ClusterError> {
        let other = self.store.is_some_and(|known| known != listed.store);
        self.strangers = self.strangers.saturating_add(1);
        if other && self.strangers < self.client.member_count() {
            let message = format!("member {:x} belongs to another cluster, {:x}", listed.member, listed.store);
            self.client.move_on();
            return Err(self.broken(message, Reason::Other));
        }
        self.store = Some(listed.store);
        self.strangers = 0;
        Ok(())
    }

    async fn open(&self, listed: Origin) -> Result<(Arc<Member>, WatchStream), ClusterError> {
        let options = WatchOptions::new()
            .with_range(self.range.end())
            .with_start_revision(listed.revision.saturating_add(1))
            // A member that has fallen silent behind a living connection shows by their absence.
            .with_progress_notify();
        self.client
            .call_member("watch", &self.range.to_string(), |client| {
                let (start, options) = (self.range.start(), options.clone());
                async move {
                    client.watch_client().max_decoding_message_size(MAX_MESSAGE).watch(start, Some(options)).await
                }
            })
            .await
    }

    async fn follow(&mut self, stream: &mut WatchStream, listed: Origin) -> Result<std::convert::Infallible, Ended> {
        let limit = self.client.limits().operation;
        let first = timeout(limit, self.message(stream)).await;
        let first = first.map_err(|_| self.broken(format!("no answer within {limit:?}"), Reason::Unreachable))??;
        if !first.created() {
            return Err(self.broken("the stream did not begin with its creation".into(), Reason::Other).into());
        }
        self.check_same_store(&first, listed)?;
        let opened = Instant::now();
        for _ in 0..self.client.limits().audits_per_listing.max(1) {
            let audit = Instant::now() + self.next_audit();
            loop {
                self.heartbeat.back_within(audit.saturating_duration_since(Instant::now()));
                let Ok(message) = timeout_at(audit, self.message(stream)).await else { break };
                let message = message.inspect_err(|_| self.calm_down(opened))?;
                self.take(&message).await?;
            }
            self.heartbeat.busy();
            self.client.reload().await;
            self.audit(stream, listed).await?;
        }
        Err(Ended::Audit)
    }

    /// Asks whether the stream has shown everything.
    async fn audit(&mut self, stream: &mut WatchStream, listed: Origin) -> Result<(), Ended> {
        let count = Count::take(&self.client, &self.range).await?;
        let limit = self.client.limits().operation;
        let end = Instant::now() + limit;
        while self.seen.revision < count.origin.revision {
            stream.request_progress().await.map_err(|error| self.failed(&error))?;
            let message = timeout_at(end, self.message(stream)).await;
            let behind = || {
                let (here, there) = (self.seen.revision, count.origin.revision);
                self.broken(
                    format!("the stream is behind: at revision {here} of {there} for {limit:?}"),
                    Reason::Unreachable,
                )
            };
            let message = message.map_err(|_| behind())??;
            self.take(&message).await?;
        }
        if count.is_of(&listed) {
            // Before 3.4.25 and 3.5.8 a member may send a progress notice before the events up to its revision
            // (etcd issue 15220): what is missing may be on its way.
            while !count.agrees(&self.seen) {
                let Ok(message) = timeout_at(end, self.message(stream)).await else { return Err(Ended::Audit) };
                self.take(&message?).await?;
            }
            return Ok(());
        }
        Err(Ended::Audit)
    }

    /// Streams that end as soon as they begin are opened ever more slowly, since each costs a listing.
    fn calm_down(&mut self, opened: Instant) {
        if opened.elapsed() >= Backoff::MAX {
            self.backoff.reset();
        }
    }

    /// Half to one and a half of the configured time, so that the nodes of a cluster do not list in step.
    fn next_audit(&mut self) -> Duration {
        self.client.limits().audit.mul_f64(0.5 + self.random.f64())
    }

    /// The stream may come from another member than the listing: one that is behind, or of another cluster, would stay
    /// silent until it has caught up.
    fn check_same_store(&self, created: &WatchResponse, listed: Origin) -> Result<(), ClusterError> {
        let Some(header) = created.header() else { return Ok(()) };
        if header.cluster_id() != listed.store || header.revision() < listed.revision {
            let message =
                format!("the store went back to revision {} (listed was {})", header.revision(), listed.revision);
            return Err(self.broken(message, Reason::Unreachable));
        }
        Ok(())
    }

    async fn message(&self, stream: &mut WatchStream) -> Result<WatchResponse, ClusterError> {
        let message = stream.message().await.map_err(|error| self.failed(&error))?;
        let message = message.ok_or_else(|| self.broken("the member closed the stream".into(), Reason::Unreachable))?;
        if message.compact_revision() != 0 {
            let text = format!("compacted up to revision {}", message.compact_revision());
            return Err(self.broken(text, Reason::Compacted));
        }
        if message.canceled() {
            return Err(self.broken(format!("cancelled: {}", message.cancel_reason()), Reason::Other));
        }
        Ok(message)
    }

    /// Passes on a response. It holds whole revisions, since no fragments are asked for; one without events is a progress
    /// notice.
    async fn take(&mut self, message: &WatchResponse) -> Result<(), Ended> {
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

    fn failed(&self, error: &etcd_client::Error) -> ClusterError {
        fault("watch", &self.range.to_string(), &self.client.current_endpoint(), error)
    }

    fn broken(&self, message: String, reason: Reason) -> ClusterError {
        let endpoint = self.client.current_endpoint();
        let mut error = ClusterError::new("watch", self.range.to_string(), endpoint, message, Class::Retry);
        error.reason = reason;
        error
    }
}
