//! What is asked of a consumer of etcd.

use std::time::{Duration, Instant};

use cluster::Event;
use cluster::etcd::{Client, Prefix, watch};

pub(crate) use crate::common::{Consumer, DEADLINE};

impl Consumer {
    pub(crate) fn of(client: &Client, prefix: &Prefix) -> Self {
        watch(client, prefix, 1).into()
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
