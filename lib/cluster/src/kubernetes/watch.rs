//! List, then follow; list again after an outage, and when what was shown last is no longer kept.
//!
//! Invariants: those of [`crate::event`]. A stream that ends goes on by itself; only a server that does not answer, or refuses, is
//! reported as [`Event::Lost`], and then everything is listed anew when it is back: a store that was restored meanwhile may have passed
//! the revision that was shown last, and nothing but a listing shows what is gone.

use std::collections::VecDeque;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::client::Client;
use super::collection::Collection;
use super::fault::Fault;
use super::list::{Listed, Way};
use super::object::{Raw, number};
use crate::heartbeat::Heartbeat;
use crate::{Backoff, ClusterError, Event, Source};

/// Watches a collection. Keys are `namespace/name` or `name`; values are what `T` reads of an object, or why it reads nothing;
/// revisions are the API's, as numbers. `seed` spreads the retries of many nodes.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch<T>(client: &Client, collection: Collection, seed: u64) -> Source<String, Result<Box<T>, String>>
where
    T: DeserializeOwned + Send + 'static,
{
    watch_read(client, collection, seed, |_, text| {
        serde_json::from_str(text).map(Box::new).map_err(|error| error.to_string())
    })
}

/// As [`watch`], with what `read` makes of the key and the JSON text of an object as the value.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch_read<V: Send + 'static>(
    client: &Client,
    collection: Collection,
    seed: u64,
    read: fn(&str, &str) -> V,
) -> Source<String, V> {
    start(client, (collection, read), Vec::new(), seed)
}

/// As [`watch_read`], of the first of these collections that the server has: the same objects in the forms of several versions of the
/// API. When the server is replaced by one that has it no more, the next one that it has is listed; each listing begins with the first.
///
/// Must be called inside a tokio runtime.
#[must_use]
pub fn watch_first<V: Send + 'static>(
    client: &Client,
    first: Form<V>,
    others: Vec<Form<V>>,
    seed: u64,
) -> Source<String, V> {
    start(client, first, others, seed)
}

fn start<V: Send + 'static>(client: &Client, first: Form<V>, others: Vec<Form<V>>, seed: u64) -> Source<String, V> {
    let client = client.clone();
    Source::spawn(move |events, heartbeat| {
        let (collection, read) = first;
        let watch = Watch {
            client,
            name: collection.to_string(),
            collection,
            others: others.into(),
            turned: 0,
            events,
            heartbeat,
            read,
            backoff: Backoff::new(seed),
            random: fastrand::Rng::with_seed(seed),
            lost: None,
            way: Way::Unknown,
        };
        watch.run()
    })
}

/// A collection, and what is made of key and JSON text of one of its objects.
pub type Form<V> = (Collection, fn(&str, &str) -> V);

/// Why a pass over list and streams ended.
pub(super) enum Ended {
    /// The consumer is gone.
    Closed,
    /// What was shown last is no longer kept, or the connection of a listing was left.
    Expired,
    /// Trouble; try again after a pause.
    Broken(Fault),
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self::Broken(fault)
    }
}

pub(super) struct Watch<V> {
    pub(super) client: Client,
    pub(super) collection: Collection,
    /// The collection as RBAC names it.
    pub(super) name: String,
    /// Other forms of the same objects, the next one first.
    others: VecDeque<Form<V>>,
    /// How many forms were passed over since the first one.
    turned: usize,
    events: mpsc::Sender<Event<String, V>>,
    pub(super) heartbeat: Heartbeat,
    read: fn(&str, &str) -> V,
    pub(super) backoff: Backoff,
    pub(super) random: fastrand::Rng,
    /// The trouble that the consumer knows of.
    pub(super) lost: Option<ClusterError>,
    pub(super) way: Way,
}

impl<V: Send + 'static> Watch<V> {
    async fn run(mut self) {
        loop {
            let ended = match self.pass().await {
                Err(ended) => ended,
                Ok(never) => match never {},
            };
            let wait = match ended {
                Ended::Closed => return,
                Ended::Broken(fault) if fault.error.status() == Some(404) && self.turn() => continue,
                Ended::Expired => Duration::ZERO,
                Ended::Broken(fault) => {
                    if self.report(fault.error).await.is_err() {
                        return;
                    }
                    fault.wait.unwrap_or_default()
                }
            };
            // The server may have a better form now, or have had it all the time: a load balancer answers with 404 too.
            while self.turned != 0 {
                self.turn();
            }
            let delay = self.backoff.next_delay().max(wait);
            self.heartbeat.back_within(delay);
            sleep(delay).await;
        }
    }

    /// Goes on with the next form of the objects; false when that is the first one again.
    fn turn(&mut self) -> bool {
        let Some((collection, read)) = self.others.pop_front() else { return false };
        let before = (std::mem::replace(&mut self.collection, collection), std::mem::replace(&mut self.read, read));
        self.others.push_back(before);
        self.name = self.collection.to_string();
        self.turned = if self.turned < self.others.len() { self.turned.saturating_add(1) } else { 0 };
        self.turned != 0
    }

    /// Lists, then follows one stream after the other.
    async fn pass(&mut self) -> Result<std::convert::Infallible, Ended> {
        let Listed { mut revision, mut stream } = self.list().await?;
        loop {
            let mut opened = match stream.take() {
                Some(stream) => stream,
                None => self.open(&revision).await?,
            };
            self.follow(&mut opened, &mut revision).await?;
            drop(opened);
            // Many nodes lose their streams together when one server of several goes.
            let pause = Duration::from_millis(self.random.u64(10..200));
            self.heartbeat.back_within(pause);
            sleep(pause).await;
        }
    }

    pub(super) async fn put(&self, raw: &Raw<'_>) -> Result<(), Ended> {
        let value = (self.read)(&raw.key, raw.text);
        self.send(Event::Put { key: raw.key.clone(), value, revision: number(&raw.revision) }).await
    }

    pub(super) async fn delete(&self, raw: Raw<'_>) -> Result<(), Ended> {
        self.send(Event::Delete { key: raw.key, revision: number(&raw.revision) }).await
    }

    pub(super) async fn send(&self, event: Event<String, V>) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Closed)
    }

    /// Trouble with an answer.
    pub(super) fn broken(&self, verb: &'static str, message: impl Into<String>) -> Ended {
        let server = self.client.server();
        Ended::Broken(self.client.ask(verb, &self.name, &server).broken(message).into())
    }

    /// Reports trouble that the consumer does not know of yet.
    async fn report(&mut self, error: ClusterError) -> Result<(), Ended> {
        if self.lost.as_ref() == Some(&error) {
            return Ok(());
        }
        tracing::debug!(%error, "the watch broke off");
        self.lost = Some(error.clone());
        self.send(Event::Lost(error)).await
    }
}
