//! A consumer of a source, as the programs are: folds the events and remembers what was said.

use std::time::{Duration, Instant};

use cluster::{Event, Snapshot, Source};
use tokio::time::timeout;

/// Far above what any case needs; reached only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

pub(crate) struct Consumer {
    source: Source,
    pub(crate) snapshot: Snapshot,
    pub(crate) log: Vec<Event>,
}

impl From<Source> for Consumer {
    fn from(source: Source) -> Self {
        Self { source, snapshot: Snapshot::new(), log: Vec::new() }
    }
}

impl Consumer {
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
            let last: Vec<_> = self.log.iter().skip(self.log.len().saturating_sub(20)).collect();
            panic!("never: {what}; {} keys known; last events: {last:?}", self.snapshot.entries().len());
        }
        begin.elapsed()
    }
}
