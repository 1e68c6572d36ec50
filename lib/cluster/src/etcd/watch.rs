//! List, then watch from the revision after it; go on after a failure; list again when that is not possible.
//!
//! Invariants: between two `Reset`s no change below the prefix is missed and none is told twice out of order;
//! a broken stream is continued from the last revision seen, without `Reset`; a listing happens only at the
//! start, after compaction, after a refusal, or when the store went back in time (restored from a backup).

use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::client::Client;
use super::fault::fault;
use super::pages::{MAX_MESSAGE, Pages};
use super::prefix::Prefix;
use crate::error::{Class, Reason};
use crate::{Backoff, ClusterError, Event, Source};

/// Watches every key below `prefix/`. Keys of the events are relative to it, values are the stored bytes,
/// revisions are etcd's. `seed` spreads the retries of many nodes.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch(client: &Client, prefix: &Prefix, seed: u64) -> Source {
    let (client, prefix) = (client.clone(), prefix.clone());
    Source::spawn(move |events| Watch::new(client, prefix, events, seed).run())
}

/// Why a pass over list and stream ended.
enum Ended {
    /// The consumer is gone.
    Unheard,
    /// Trouble; try again after a pause.
    Broken(ClusterError),
}

impl From<ClusterError> for Ended {
    fn from(error: ClusterError) -> Self {
        Self::Broken(error)
    }
}

/// Where the next stream begins.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// First revision not yet told to the consumer.
    next: i64,
    /// Cluster the revision belongs to.
    cluster: u64,
}

struct Watch {
    client: Client,
    prefix: Prefix,
    events: mpsc::Sender<Event>,
    backoff: Backoff,
    /// `None`: a listing is needed.
    position: Option<Position>,
    /// The trouble the consumer knows of.
    lost: Option<ClusterError>,
}

impl Watch {
    fn new(client: Client, prefix: Prefix, events: mpsc::Sender<Event>, seed: u64) -> Self {
        Self { client, prefix, events, backoff: Backoff::new(seed), position: None, lost: None }
    }

    async fn run(mut self) {
        while let Err(Ended::Broken(error)) = self.pass().await {
            if self.report(error).await.is_err() {
                return;
            }
            let delay: Duration = self.backoff.next_delay();
            sleep(delay).await;
        }
    }

    /// Lists if needed, then follows the stream until it breaks.
    async fn pass(&mut self) -> Result<(), Ended> {
        let listed = match self.position {
            Some(_) => false,
            None => {
                self.list().await?;
                true
            }
        };
        let Some(position) = self.position else { return Ok(()) };
        let (member, mut stream) = self.open(position).await.inspect_err(|error| self.forget_position_on(error))?;
        let followed = self.follow(&mut stream, position, listed).await;
        if let Err(Ended::Broken(error)) = &followed {
            self.forget_position_on(error);
            if error.reason == Reason::Unreachable {
                self.client.leave(member);
            }
        }
        followed
    }

    /// Only a member out of reach lets us go on where we were: anything else means the position is no good.
    fn forget_position_on(&mut self, error: &ClusterError) {
        if error.reason != Reason::Unreachable {
            self.position = None;
        }
    }

    async fn list(&mut self) -> Result<(), Ended> {
        let mut pages = Pages::new(&self.client, &self.prefix);
        // The first page is awaited before `Reset`: while nobody answers there is nothing to announce.
        let mut page = pages.next().await?;
        self.tell(Event::Reset).await?;
        while let Some(entries) = page {
            for entry in entries {
                let key = self.prefix.below(entry.key());
                let revision = entry.mod_revision();
                let (_, value) = entry.into_key_value();
                self.tell(Event::Put { key, value, revision }).await?;
            }
            page = pages.next().await?;
        }
        self.tell(Event::Complete).await?;
        self.lost = None;
        self.position = Some(Position { next: pages.revision().saturating_add(1), cluster: pages.cluster() });
        Ok(())
    }

    async fn open(&self, position: Position) -> Result<(usize, WatchStream), ClusterError> {
        let options = WatchOptions::new()
            .with_range(self.prefix.range_end())
            .with_start_revision(position.next)
            // Without it the position of a quiet folder ages until it is compacted away.
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

    async fn follow(&mut self, stream: &mut WatchStream, position: Position, listed: bool) -> Result<(), Ended> {
        let limit = self.client.limits().operation;
        let first = timeout(limit, self.message(stream)).await;
        let first = first.map_err(|_| self.broken(format!("no answer within {limit:?}"), Reason::Unreachable))??;
        if !first.created() {
            return Err(self.broken("the stream did not begin with its creation".into(), Reason::Other).into());
        }
        self.check_same_history(&first, position)?;
        if !listed && self.lost.take().is_some() {
            self.tell(Event::Resumed).await?;
        }
        self.backoff.reset();
        loop {
            let message = self.message(stream).await?;
            self.take(&message).await?;
        }
    }

    /// A store that was wiped or restored begins with older revisions: a watch from ours would stay silent until
    /// it has caught up, and miss everything until then.
    fn check_same_history(&self, created: &WatchResponse, position: Position) -> Result<(), ClusterError> {
        let Some(header) = created.header() else { return Ok(()) };
        if header.cluster_id() != position.cluster || header.revision().saturating_add(1) < position.next {
            let message = format!("the store went back to revision {} (ours is {})", header.revision(), position.next);
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

    async fn take(&mut self, message: &WatchResponse) -> Result<(), Ended> {
        for event in message.events() {
            let Some(entry) = event.kv() else { continue };
            let (key, revision) = (self.prefix.below(entry.key()), entry.mod_revision());
            let told = match event.event_type() {
                EventType::Put => Event::Put { key, value: entry.value().to_vec(), revision },
                EventType::Delete => Event::Delete { key, revision },
            };
            self.tell(told).await?;
        }
        // Responses hold whole revisions (no fragments are asked for), and a progress notice is sent only to a
        // watcher that has everything up to its revision.
        if let (Some(header), Some(position)) = (message.header(), self.position.as_mut()) {
            let told = message.events().iter().filter_map(|event| event.kv()).map(etcd_client::KeyValue::mod_revision);
            let seen = told.max().unwrap_or_else(|| header.revision());
            position.next = position.next.max(seen.saturating_add(1));
        }
        Ok(())
    }

    async fn tell(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Unheard)
    }

    /// Tells the consumer of trouble it does not know of yet.
    async fn report(&mut self, error: ClusterError) -> Result<(), Ended> {
        if self.lost.as_ref() == Some(&error) {
            return Ok(());
        }
        tracing::debug!(%error, "etcd watch broke off");
        self.lost = Some(error.clone());
        self.tell(Event::Lost(error)).await
    }

    fn broken(&self, message: String, reason: Reason) -> ClusterError {
        let endpoint = self.client.current_endpoint();
        let mut error = ClusterError::new("watch", self.prefix.to_string(), endpoint, message, Class::Retry);
        error.reason = reason;
        error
    }
}
