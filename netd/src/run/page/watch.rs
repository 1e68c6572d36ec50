//! What one who watches is sent: the parts of the page that differ from what was sent last.
//!
//! Invariant: a client that is slower than the changes gets the newest state, not all of them; when it has gone, nothing is done for it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use daemon::http::EventSender;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::gather::Gatherer;
use crate::page::Query;
use crate::page::sections::sections;
use crate::run::VERSION;

/// How often what announces no changes is read: files, and ipvs-proxy.
const PERIOD: Duration = Duration::from_secs(2);

/// Shortest time between two events.
const PAUSE: Duration = Duration::from_millis(500);

/// Longest time without one.
const ALIVE: Duration = Duration::from_secs(10);

/// What was sent last, by part.
type Sent = BTreeMap<&'static str, u64>;

/// Sends what changes to one who watches until there is nobody any more.
pub(super) async fn watch(gatherer: &Gatherer, query: &Query, sender: EventSender) {
    let (mut changes, mut sent, mut last) = (gatherer.changes(), Sent::new(), Instant::now());
    loop {
        changes.mark_unchanged();
        let snapshot = gatherer.snapshot(&query.services).await;
        let event = changed(&mut sent, sections(&snapshot, query)).map(|parts| ("sections", parts));
        if let Some((name, data)) = event.or_else(|| (last.elapsed() >= ALIVE).then(|| ("alive", json!({})))) {
            if !sender.send(name, &data).await {
                return;
            }
            last = Instant::now();
        }
        let next = async {
            sleep(PAUSE).await;
            tokio::select! {
                // The daemon that put them up ends with this process.
                Ok(()) = changes.changed() => {}
                () = sleep(PERIOD) => {}
            }
        };
        tokio::select! {
            () = next => {}
            () = sender.closed() => return,
        }
    }
}

/// The event with the parts that are not as they were sent, which are noted.
fn changed(sent: &mut Sent, sections: BTreeMap<&'static str, String>) -> Option<Value> {
    let is_new = |(id, html): &(&'static str, String)| {
        let mut hasher = DefaultHasher::new();
        html.hash(&mut hasher);
        let now = hasher.finish();
        sent.insert(id, now) != Some(now)
    };
    let new: BTreeMap<_, _> = sections.into_iter().filter(is_new).collect();
    (!new.is_empty()).then(|| json!({"version": VERSION, "sections": new}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parts_that_changed_are_sent() {
        let mut sent = Sent::new();
        let parts = |pods: &str| BTreeMap::from([("nodes", "<p></p>".to_owned()), ("pods", pods.to_owned())]);
        let of = |sections: Value| Some(json!({"version": VERSION, "sections": sections}));
        assert_eq!(changed(&mut sent, parts("a")), of(json!({"nodes": "<p></p>", "pods": "a"})));
        assert_eq!(changed(&mut sent, parts("a")), None);
        assert_eq!(changed(&mut sent, parts("b")), of(json!({"pods": "b"})));
    }
}
