//! The stream behind a listing, and whether it shows everything.
//!
//! Invariants: every few seconds another member is asked how far it is, and a stream that does not get as far within
//! [`Limits::operation`](super::config::Limits::operation) is left for that member; a slow, jittered audit counts the keys
//! besides. Asking never holds up what comes through the stream.

use std::pin::pin;
use std::sync::Arc;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until, timeout, timeout_at};

use super::audit::Count;
use super::comparison::Other;
use super::fault::fault;
use super::member::Member;
use super::pages::MAX_MESSAGE;
use super::watch::{Ended, Watch, broken};
use crate::error::Reason;
use crate::{Backoff, ClusterError, Origin};

/// Time after which a stream that has not shown enough is asked again how far it is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// An open stream.
pub(super) struct Stream {
    pub(super) member: Arc<Member>,
    stream: WatchStream,
    /// Changes when its connection is to be left.
    left: watch::Receiver<()>,
    /// The listing that it goes on from.
    listed: Origin,
}

impl<V: Send + Sync + 'static> Watch<V> {
    pub(super) async fn open(&self, listed: Origin) -> Result<Stream, ClusterError> {
        let options = WatchOptions::new()
            .with_range(self.range.end())
            .with_start_revision(listed.revision.saturating_add(1))
            // A member that has fallen silent behind a living connection shows by their absence.
            .with_progress_notify();
        let left = self.client.left();
        let (member, stream) =
            self.client
                .call_member("watch", &self.range.to_string(), |client| {
                    let (start, options) = (self.range.start(), options.clone());
                    async move {
                        client.watch_client().max_decoding_message_size(MAX_MESSAGE).watch(start, Some(options)).await
                    }
                })
                .await?;
        Ok(Stream { member, stream, left, listed })
    }

    pub(super) async fn follow(&mut self, stream: &mut Stream) -> Result<std::convert::Infallible, Ended> {
        let limit = self.client.limits().operation;
        let first = timeout(limit, self.message(stream)).await;
        let first =
            first.map_err(|_| self.broken(stream, format!("no answer within {limit:?}"), Reason::Unreachable))??;
        if !first.created() {
            let text = "the stream did not begin with its creation".to_owned();
            return Err(self.broken(stream, text, Reason::Other).into());
        }
        self.check_same_store(&first, stream)?;
        let opened = Instant::now();
        for _ in 0..self.client.limits().audits_per_listing.max(1) {
            let audit = Instant::now() + self.jittered(self.client.limits().audit);
            self.follow_until(audit, stream, opened).await?;
            self.heartbeat.busy();
            self.client.reload().await;
            self.audit(stream).await?;
        }
        Err(Ended::Audit)
    }

    /// Follows until `audit`, and asks other members meanwhile how far they are.
    async fn follow_until(&mut self, audit: Instant, stream: &mut Stream, opened: Instant) -> Result<(), Ended> {
        loop {
            let pace = self.client.pace();
            let mut left = stream.left.clone();
            let (client, key, at) = (self.client.clone(), self.range.start(), Instant::now() + self.jittered(pace));
            let mut other = pin!(async move {
                sleep_until(at).await;
                client.other_member(&key, pace / 2).await
            });
            let other = loop {
                self.heartbeat.back_within(audit.saturating_duration_since(Instant::now()));
                let message = tokio::select! {
                    message = self.message(stream) => message,
                    other = &mut other => break other,
                    () = sleep_until(audit) => return Ok(()),
                    // No trouble: what has changed meanwhile is listed at once.
                    _ = left.changed() => return Err(Ended::Audit),
                };
                let message = message.inspect_err(|_| self.calm_down(opened))?;
                self.take(&message).await?;
            };
            if let Some(other) = other {
                self.compare(stream, &other).await?;
            }
        }
    }

    /// Leaves a stream that does not get as far as another member is.
    async fn compare(&mut self, stream: &mut Stream, other: &Other) -> Result<(), Ended> {
        let there = other.origin.revision;
        if other.origin.store != stream.listed.store {
            return Ok(());
        }
        if let Err(ended) = self.catch_up(stream, there, other.member.endpoint.as_str()).await {
            if self.seen.revision < there {
                self.client.prefer(&other.member);
            }
            return Err(ended);
        }
        Ok(())
    }

    /// Takes in what the stream shows until it has come to revision `there`, which `whose` has shown.
    async fn catch_up(&mut self, stream: &mut Stream, there: i64, whose: &str) -> Result<(), Ended> {
        let limit = self.client.limits().operation;
        let end = Instant::now() + limit;
        while self.seen.revision < there {
            stream.stream.request_progress().await.map_err(|error| self.failed(stream, &error))?;
            let again = Instant::now() + PROGRESS_PAUSE;
            while self.seen.revision < there {
                let Ok(message) = timeout_at(again.min(end), self.message(stream)).await else { break };
                self.take(&message?).await?;
            }
            if end <= Instant::now() && self.seen.revision < there {
                let here = self.seen.revision;
                let text = format!(
                    "the member is behind: its watch is at revision {here}, {} less than {whose} has, for {limit:?}",
                    there.saturating_sub(here)
                );
                return Err(self.broken(stream, text, Reason::Unreachable).into());
            }
        }
        Ok(())
    }

    /// Asks whether the stream has shown everything.
    async fn audit(&mut self, stream: &mut Stream) -> Result<(), Ended> {
        let count = Count::take(&self.client, &self.range).await?;
        let end = Instant::now() + self.client.limits().operation;
        self.catch_up(stream, count.origin.revision, "the cluster").await?;
        if count.is_of(&stream.listed) {
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

    /// Half to one and a half of `time`, so that the nodes of a cluster do not ask in step.
    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.5 + self.random.f64())
    }

    /// The stream may come from another member than the listing: one that is behind, or of another cluster, would stay
    /// silent until it has caught up.
    fn check_same_store(&self, created: &WatchResponse, stream: &Stream) -> Result<(), ClusterError> {
        let Some(header) = created.header() else { return Ok(()) };
        let listed = stream.listed;
        if header.cluster_id() != listed.store || header.revision() < listed.revision {
            let message =
                format!("the store went back to revision {} (listed was {})", header.revision(), listed.revision);
            return Err(self.broken(stream, message, Reason::Unreachable));
        }
        Ok(())
    }

    async fn message(&self, from: &mut Stream) -> Result<WatchResponse, ClusterError> {
        let message = from.stream.message().await;
        let message = message.map_err(|error| self.failed(from, &error))?;
        let closed = || self.broken(from, "the member closed the stream".into(), Reason::Unreachable);
        let message = message.ok_or_else(closed)?;
        if message.compact_revision() != 0 {
            let text = format!("compacted up to revision {}", message.compact_revision());
            return Err(self.broken(from, text, Reason::Compacted));
        }
        if message.canceled() {
            return Err(self.broken(from, format!("cancelled: {}", message.cancel_reason()), Reason::Other));
        }
        Ok(message)
    }

    fn failed(&self, stream: &Stream, error: &etcd_client::Error) -> ClusterError {
        fault("watch", &self.range.to_string(), stream.member.endpoint.as_str(), error)
    }

    fn broken(&self, stream: &Stream, message: String, reason: Reason) -> ClusterError {
        broken(&self.range, stream.member.endpoint.as_str(), message, reason)
    }
}
