//! `Notices`: which Events are due for an operator, and their texts.
//!
//! Pure; time is an argument. Invariants: what passes by itself within [`DWELL`] is no Event; one that stands is repeated every
//! [`REPEAT`], since the API server forgets Events after an hour; of all together there are at most [`BURST`] in [`WINDOW`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use crate::format::node::{Node, rfc3339};
use crate::source::Trouble;

/// How long something must be wrong.
const DWELL: Duration = Duration::from_secs(10);

/// When it is said again.
const REPEAT: Duration = Duration::from_secs(30 * 60);

/// Events within [`WINDOW`].
const BURST: usize = 10;
const WINDOW: Duration = Duration::from_secs(10 * 60);

/// Longest message that the API server takes, in bytes (`NoteLengthLimit`, pkg/apis/core/validation/events.go).
const LONGEST: usize = 1024;

/// The component that the Events come from.
const COMPONENT: &str = "netd";

/// What is wrong, since when, and when it was said.
#[derive(Debug, Default)]
pub(super) struct Notices {
    standing: BTreeMap<Trouble, Times>,
    sent: VecDeque<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    since: Duration,
    said: Option<Duration>,
}

impl Times {
    fn due(self) -> Duration {
        self.said.map_or_else(|| self.since.saturating_add(DWELL), |said| said.saturating_add(REPEAT))
    }
}

impl Notices {
    /// Exactly this is wrong at `now`.
    pub(super) fn set(&mut self, troubles: Vec<Trouble>, now: Duration) {
        self.standing.retain(|trouble, _| troubles.contains(trouble));
        for trouble in troubles {
            self.standing.entry(trouble).or_insert(Times { since: now, said: None });
        }
    }

    /// What is to be said at `now`; it counts as said.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<Trouble> {
        while self.sent.front().is_some_and(|sent| now.saturating_sub(*sent) >= WINDOW) {
            self.sent.pop_front();
        }
        if self.sent.len() >= BURST {
            return None;
        }
        let (trouble, times) = self.standing.iter_mut().find(|(_, times)| times.due() <= now)?;
        times.said = Some(now);
        self.sent.push_back(now);
        Some(trouble.clone())
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let due = self.standing.values().map(|times| times.due()).min()?;
        let free = self.sent.front().filter(|_| self.sent.len() >= BURST).map(|first| first.saturating_add(WINDOW));
        Some(free.map_or(due, |free| free.max(due)))
    }
}

/// An Event of core/v1 about a Node, at `now` since 1970; `number` makes its name that one and no other.
pub(super) fn event(name: &str, node: Option<&Node>, trouble: &Trouble, now: Duration, number: u64) -> Value {
    let time = rfc3339(now);
    let message: String = if trouble.message.len() > LONGEST {
        let end = trouble.message.floor_char_boundary(LONGEST - 3);
        format!("{}...", trouble.message.get(..end).unwrap_or_default())
    } else {
        trouble.message.clone()
    };
    // kubectl describe finds Events of a Node by its uid, or by its name in the place of that.
    let uid = node.map_or(name, |node| node.metadata.uid.as_str());
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": format!("{name}.{number:016x}"), "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid},
        "reason": trouble.reason,
        "message": message,
        "type": "Warning",
        "source": {"component": COMPONENT, "host": name},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn trouble(number: usize) -> Trouble {
        Trouble { reason: "NoSubnet", message: format!("reason {number}") }
    }

    #[test]
    fn what_passes_is_no_event_and_what_stands_is_said_again_every_half_hour() {
        let mut notices = Notices::default();
        notices.set(vec![trouble(1)], at(0));
        assert_eq!((notices.take_due(at(9)), notices.next_due()), (None, Some(at(10))));
        notices.set(Vec::new(), at(9));
        assert_eq!((notices.take_due(at(60)), notices.next_due()), (None, None));
        notices.set(vec![trouble(1)], at(100));
        for now in 101..3000 {
            notices.set(vec![trouble(1)], at(now));
            let said = notices.take_due(at(now)).is_some();
            assert_eq!(said, now == 110 || now == 1910, "at {now}");
        }
    }

    #[test]
    fn a_flood_is_a_few_events() {
        let mut notices = Notices::default();
        let mut said = 0;
        for now in 0..599 {
            // Another text every second, all of which stand.
            notices.set((0..40).map(trouble).collect(), at(now));
            said += std::iter::from_fn(|| notices.take_due(at(now))).count();
        }
        assert_eq!((said, notices.next_due()), (10, Some(at(610))));
        assert!(notices.take_due(at(610)).is_some());
    }

    #[test]
    fn an_event_names_the_node_and_has_a_message_that_the_server_takes() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1", "uid": "u-1"}})).unwrap();
        let long = Trouble { reason: "NoSubnet", message: "ä".repeat(1000) };
        let event = event("n1", Some(&node), &long, at(1_795_762_705), 7);
        assert_eq!(event["metadata"]["name"], "n1.0000000000000007");
        assert_eq!(event["involvedObject"], json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-1"}));
        assert_eq!(event["lastTimestamp"], "2026-11-27T06:58:25Z");
        let message = event["message"].as_str().unwrap();
        assert!(message.len() <= 1024 && message.ends_with("..."), "{}", message.len());
    }
}
