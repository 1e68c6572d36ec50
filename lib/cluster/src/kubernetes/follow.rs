//! The changes behind a listing.
//!
//! Invariants: a stream that ends (the server ends each after some minutes, a load balancer when it likes), or whose connection is left, goes on at the last revision
//! that it showed, and nothing is missed; a server on which nothing changes is asked whether it is there, so that a paused or vanished
//! one shows within a minute, and what it shows meanwhile does not wait for that; a state that the server does not keep any more is
//! listed anew, and nothing known goes until that is whole.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::client::Query;
use super::lines::Lines;
use super::list::SILENCE;
use super::object::Message;
use super::watch::{Ended, Watch};
use crate::Event;

/// Silence after which a stream with bookmarks, which come every minute, is left for another one.
const WITHOUT_BOOKMARK: Duration = Duration::from_secs(180);

/// A stream that ends sooner than this, without a word, is trouble.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Shortest and longest life of a stream in seconds, as client-go's reflector asks for it.
const LIFE: std::ops::Range<u64> = 300..600;

/// An open stream.
pub(super) struct Stream {
    lines: Lines,
    opened: Instant,
    /// When something came through it.
    last: Instant,
    has_bookmarks: bool,
    has_messages: bool,
    /// Changes when its connection is left.
    left: watch::Receiver<()>,
}

impl Stream {
    fn new(lines: Lines, left: watch::Receiver<()>) -> Self {
        let now = Instant::now();
        Self { lines, opened: now, last: now, has_bookmarks: false, has_messages: false, left }
    }

    /// A stream that has shown a list before.
    pub(super) fn behind_list(lines: Lines, left: watch::Receiver<()>) -> Self {
        Self { has_messages: true, has_bookmarks: true, ..Self::new(lines, left) }
    }
}

impl<V: Send + 'static> Watch<V> {
    /// For how long a stream is asked for, in seconds.
    pub(super) fn life(&mut self) -> String {
        self.random.u64(LIFE).to_string()
    }

    pub(super) async fn open(&mut self, revision: &str) -> Result<Stream, Ended> {
        self.heartbeat.busy();
        let life = self.life();
        let parameters = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", revision),
            ("timeoutSeconds", life.as_str()),
        ];
        let path = self.collection.path(&parameters);
        let left = self.client.left();
        match self.client.send(Query::get("watch", &self.name, &path), SILENCE).await {
            Ok(response) => Ok(Stream::new(Lines::new(response.into_body()), left)),
            Err(fault) if fault.error.status() == Some(410) => Err(Ended::Expired),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Follows a stream to its end; `revision` is what was shown last.
    pub(super) async fn follow(&mut self, stream: &mut Stream, revision: &mut String) -> Result<(), Ended> {
        loop {
            let silence = SILENCE.mul_f64(1.0 + self.random.f64() / 3.0);
            self.heartbeat.back_within(silence);
            let asked = async {
                sleep(silence).await;
                self.heartbeat.busy();
                self.client.verify(SILENCE).await
            };
            // What comes while the server is asked whether it is there is the answer, and does not wait for another one.
            let come = tokio::select! {
                biased;
                line = stream.lines.next() => Ok(line),
                _ = stream.left.changed() => return Ok(()),
                verified = asked => Err(verified),
            };
            let line = match come {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return self.over(stream, "the server ended the stream at once".to_owned()),
                Ok(Err(broken)) => return self.over(stream, broken.to_string()),
                Err(verified) => {
                    verified
                        .map_err(|fault| self.broken("watch", format!("silent, and {}", fault.error.asked_once())))?;
                    if stream.has_bookmarks && stream.last.elapsed() > WITHOUT_BOOKMARK {
                        return Ok(());
                    }
                    continue;
                }
            };
            self.heartbeat.busy();
            self.client.note_answer();
            stream.last = Instant::now();
            stream.has_messages = true;
            let message = Message::parse(line).map_err(|reason| self.broken("watch", reason))?;
            // A stream that shows nothing but why it ends costs a listing each time.
            if !matches!(message, Message::Error { .. }) {
                self.backoff.reset();
            }
            match message {
                Message::Put(raw) => {
                    raw.revision.clone_into(revision);
                    self.put(&raw).await?;
                    self.send(Event::Commit).await?;
                }
                Message::Delete(raw) => {
                    raw.revision.clone_into(revision);
                    self.delete(raw).await?;
                    self.send(Event::Commit).await?;
                }
                Message::Bookmark { revision: shown, .. } => {
                    stream.has_bookmarks = true;
                    *revision = shown;
                }
                Message::Error { code, message } => return Err(self.ended_by(code, &message)),
            }
        }
    }

    /// What a stream's end means: nothing, unless it showed nothing.
    fn over(&mut self, stream: &Stream, reason: String) -> Result<(), Ended> {
        if stream.has_messages || stream.opened.elapsed() >= AT_ONCE {
            tracing::debug!(collection = self.name, reason, "the stream ended; it goes on at the last revision");
            return Ok(());
        }
        Err(self.broken("watch", reason))
    }

    /// What an error inside a stream means.
    fn ended_by(&self, code: u16, message: &str) -> Ended {
        if code == 410 {
            tracing::debug!(collection = self.name, message, "listing anew");
            return Ended::Expired;
        }
        let server = self.client.server();
        Ended::Broken(self.client.ask("watch", &self.name, &server).error_of(code, message).into())
    }
}
