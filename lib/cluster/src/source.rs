//! A running source: a bounded queue of events and the task that fills it.
//!
//! Invariant: dropping the [`Source`] ends its task; a task never outlives the consumer. A slow consumer slows
//! the source down (the queue is bounded), it never loses events.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Event;
use crate::heartbeat::{Heartbeat, Progress};

/// Events in flight between a source and its consumer: enough for a page of a listing, small against the
/// listing itself.
const QUEUE: usize = 1024;

/// Longest time that the task works without a pause. Each request has a limit of its own, and a listing beats for each of
/// its pages.
const LIMIT: Duration = Duration::from_secs(300);

/// The receiving end of a source.
#[derive(Debug)]
pub struct Source<K = String, V = Vec<u8>> {
    events: mpsc::Receiver<Event<K, V>>,
    task: JoinHandle<()>,
    progress: Progress,
}

impl<K: Send + 'static, V: Send + 'static> Source<K, V> {
    /// Starts `run` on the current tokio runtime with the sending end of the queue and the task's heartbeat.
    pub(crate) fn spawn<F>(run: impl FnOnce(mpsc::Sender<Event<K, V>>, Heartbeat) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, events) = mpsc::channel(QUEUE);
        let heartbeat = Heartbeat::new(LIMIT);
        let progress = heartbeat.progress();
        Self { events, task: tokio::spawn(run(sender, heartbeat)), progress }
    }

    /// The next event. Cancel-safe: may be used in `select!`.
    ///
    /// A source retries for ever, so `None` means only that its runtime is shutting down.
    pub async fn next(&mut self) -> Option<Event<K, V>> {
        self.events.recv().await
    }

    /// Whether the task makes progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// An event that is already waiting, without waiting for one.
    pub fn try_next(&mut self) -> Option<Event<K, V>> {
        self.events.try_recv().ok()
    }
}

impl<K, V> Drop for Source<K, V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
