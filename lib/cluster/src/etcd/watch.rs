//! List, then watch from the revision after it; list again after every interruption.
//!
//! Invariants: between two `Reset`s no change below the prefix is missed and none is reported twice or out of order;
//! what one transaction changed ends with one `Commit`. A stream that broke off is never just continued: a store that was
//! restored from a backup keeps its id, and once it has passed our revision nothing but a listing shows what is gone. A
//! slow, jittered audit lists although nothing happened.

use std::time::Duration;

use etcd_client::{EventType, KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::client::Client;
use super::entry::Entry;
use super::fault::fault;
use super::pages::{MAX_MESSAGE, Pages};
use super::prefix::Prefix;
use crate::error::{Class, Reason};
use crate::{Backoff, ClusterError, Event, Origin, Source};

/// Watches every key below `prefix/`. Keys of the events are relative to it, values are the stored bytes,
/// revisions are etcd's. `seed` spreads the retries and audits of many nodes.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch(client: &Client, prefix: &Prefix, seed: u64) -> Source {
    start(client, prefix, seed, |entry| entry.value)
}

/// As [`watch`], with all that the store knows of a key as the value.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch_entries(client: &Client, prefix: &Prefix, seed: u64) -> Source<String, Entry> {
    start(client, prefix, seed, |entry| entry)
}

fn start<V: Send + 'static>(client: &Client, prefix: &Prefix, seed: u64, value: fn(Entry) -> V) -> Source<String, V> {
    let (client, prefix) = (client.clone(), prefix.clone());
    Source::spawn(move |events| Watch::new(client, prefix, events, seed, value).run())
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

struct Watch<V> {
    client: Client,
    prefix: Prefix,
    events: mpsc::Sender<Event<String, V>>,
    /// What is passed on of an entry.
    value: fn(Entry) -> V,
    backoff: Backoff,
    random: fastrand::Rng,
    /// The trouble the consumer knows of.
    lost: Option<ClusterError>,
}

impl<V: Send + 'static> Watch<V> {
    fn new(
        client: Client,
        prefix: Prefix,
        events: mpsc::Sender<Event<String, V>>,
        seed: u64,
        value: fn(Entry) -> V,
    ) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { client, prefix, events, value, backoff: Backoff::new(seed), random, lost: None }
    }

    async fn run(mut self) {
        loop {
            let error = match self.pass().await {
                Ended::Closed => return,
                Ended::Audit => {
                    self.client.reload().await;
                    continue;
                }
                Ended::Broken(error) => error,
            };
            if self.report(error).await.is_err() {
                return;
            }
            let delay: Duration = self.backoff.next_delay();
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
            self.client.leave(member);
        }
        followed
    }

    async fn list(&mut self) -> Result<Origin, Ended> {
        let mut pages = Pages::new(&self.client, &self.prefix);
        // The first page is awaited before `Reset`: while nobody answers there is nothing to announce.
        let mut page = pages.next().await?;
        self.send(Event::Reset).await?;
        self.send(Event::Origin(pages.origin())).await?;
        while let Some(entries) = page {
            for entry in entries {
                self.send(self.put(entry)).await?;
            }
            page = pages.next().await?;
        }
        self.send(Event::Complete).await?;
        self.lost = None;
        Ok(pages.origin())
    }

    async fn open(&self, listed: Origin) -> Result<(usize, WatchStream), ClusterError> {
        let options = WatchOptions::new()
            .with_range(self.prefix.range_end())
            .with_start_revision(listed.revision.saturating_add(1))
            // A member that has fallen silent behind a living connection shows by their absence.
            .with_progress_notify();
        self.client
            .call_member("watch", &self.prefix.to_string(), |client| {
                let (start, options) = (self.prefix.range_start(), options.clone());
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
        let audit = opened + self.next_audit();
        loop {
            let message = match timeout_at(audit, self.message(stream)).await {
                Err(_) => return Err(Ended::Audit),
                Ok(message) => message.inspect_err(|_| self.calm_down(opened))?,
            };
            self.take(&message).await?;
        }
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
            return Err(self.broken(message, Reason::Compacted));
        }
        Ok(())
    }

    async fn message(&self, stream: &mut WatchStream) -> Result<WatchResponse, ClusterError> {
        let message = stream
            .message()
            .await
            .map_err(|error| fault("watch", &self.prefix.to_string(), self.client.current_endpoint(), &error))?;
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
        for event in message.events() {
            let Some(entry) = event.kv() else { continue };
            let (key, revision) = (self.prefix.below(entry.key()), entry.mod_revision());
            let change = match event.event_type() {
                EventType::Put => self.put(entry.clone()),
                EventType::Delete => Event::Delete { key, revision },
            };
            self.send(change).await?;
        }
        if message.events().is_empty() { Ok(()) } else { self.send(Event::Commit).await }
    }

    fn put(&self, entry: KeyValue) -> Event<String, V> {
        let (key, revision) = (self.prefix.below(entry.key()), entry.mod_revision());
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

    fn broken(&self, message: String, reason: Reason) -> ClusterError {
        let endpoint = self.client.current_endpoint();
        let mut error = ClusterError::new("watch", self.prefix.to_string(), endpoint, message, Class::Retry);
        error.reason = reason;
        error
    }
}
