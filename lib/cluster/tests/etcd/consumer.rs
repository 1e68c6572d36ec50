//! A consumer of a watch, as the programs are: folds the events and remembers what was said.

use std::time::{Duration, Instant};

use cluster::etcd::{Client, Prefix, watch};
use cluster::{Event, Snapshot, Source};
use tokio::time::timeout;

/// Far above what any case needs; reached only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

pub(crate) struct Consumer {
    source: Source,
    pub(crate) snapshot: Snapshot,
    pub(crate) log: Vec<Event>,
}

impl Consumer {
    pub(crate) fn of(client: &Client, prefix: &Prefix) -> Self {
        Self { source: watch(client, prefix, 1), snapshot: Snapshot::new(), log: Vec::new() }
    }

    /// Takes in events until the condition holds; returns how long that took.
    pub(crate) async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) -> Duration {
        let begin = Instant::now();
        let wait = async {
            while !reached(self) {
                let event = self.source.next().await.unwrap();
                self.snapshot.apply(event.clone());
                self.log.push(event);
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            let last = &self.log[self.log.len().saturating_sub(20)..];
            panic!("never: {what}; {} keys known; last events: {last:?}", self.snapshot.entries().len());
        }
        begin.elapsed()
    }

    pub(crate) async fn listed(&mut self) {
        self.until("the first listing", |consumer| consumer.snapshot.is_complete()).await;
    }

    pub(crate) fn knows(&self, key: &str) -> bool {
        self.snapshot.get(key).is_some()
    }

    pub(crate) fn resets(&self) -> usize {
        self.log.iter().filter(|event| matches!(event, Event::Reset)).count()
    }

    /// What was reported since the last listing began.
    pub(crate) fn since_reset(&self) -> &[Event] {
        let begin = self.log.iter().rposition(|event| matches!(event, Event::Reset)).unwrap_or(0);
        &self.log[begin..]
    }
}

/// Waits until an asynchronous condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
